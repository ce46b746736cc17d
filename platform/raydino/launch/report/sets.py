"""Folders of many runs: sweeps and ablations. Their page is one, report.html, whether they left it or it is asked for."""

from pathlib import Path

from raydino.config import ConfigError
from raydino.launch.job import TRIALS
from raydino.launch.report.page import page
from raydino.launch.report.record import Recorded, read
from raydino.launch.resume import RECIPE_FILE


def is_set(folder: Path) -> bool:
    """Whether a folder is that of a sweep or an ablation."""
    return (folder / TRIALS).is_dir() and not (folder / RECIPE_FILE).exists()


def members(folder: Path) -> list[Recorded]:
    """The runs in it that have begun, by name. Raises ConfigError where there are none."""
    found = [read(path.parent) for path in sorted((folder / TRIALS).glob(f"*/{RECIPE_FILE}"))]
    if not found:
        raise ConfigError(f"run = {str(folder)!r}: none of its trials has begun; wait for the first.")
    return found


def set_page(folder: Path, *, command: str) -> str:
    """The page of a sweep or an ablation: the one it ends with, or, where it has not ended, its trials beside each other.

    Raises:
        ConfigError: nothing has begun, or what it left cannot be read.
    """
    from raydino.launch.ablation.page import ablation_page
    from raydino.launch.sweep import page as sweep_page
    from raydino.launch.sweep.search import Plan
    from raydino.launch.sweep.told import curves, told_in

    plan = Plan.load(folder)
    if plan is not None and (told := told_in(folder, plan)) is not None:
        return sweep_page.page(told, curves=curves(plan, folder))
    if plan is None and (found := ablation_page(folder)) is not None:
        return found
    return page(members(folder), command=command, title=f"{folder.name}: no table yet")
