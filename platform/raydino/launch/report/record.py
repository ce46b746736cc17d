"""A run as its folder tells it, whatever version of raydino wrote it and whether or not it is over.

Nothing is computed with the recipe as a config: fields come and go between versions, and a page of an old run is worth as much.
What is not there is named in `missing` and left out.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from raydino.config import ConfigError, read_yaml_file
from raydino.launch.job import QUARANTINE, SKIPPED, TRIALS
from raydino.launch.lock import LOCK, refuse_if_held
from raydino.launch.report.card import Card, read_card
from raydino.launch.results import JSON_FILE, Result, load
from raydino.launch.resume import RECIPE_FILE, flat, read_run
from raydino.launch.summary import figures
from raydino.launch.trials.outcome import ending
from raydino.launch.workers.failure import FAILURE
from raydino.tracking.opening import Opening
from raydino.tracking.outbox import recorded_run
from raydino.tracking.redact import redact_text
from raydino.tracking.spool import METRICS_FILE, PICTURES_FOLDER, entries, pictures_in

NEEDED = ("steps", "global_batch", "evals")
APART = ("name", "seed", "cadence", "guards")
"""Fields in which repeats of one recipe may differ."""


@dataclass(frozen=True)
class Recorded:
    """What a run's folder holds."""

    folder: Path
    recipe: Mapping[str, Any]
    """By dotted key, as it was written."""
    recipe_yaml: str
    cluster: Mapping[str, Any]
    rows: Mapping[int, Mapping[str, float]]
    """Metrics by step."""
    began: float | None
    """Seconds since 1970 of the first line of the record."""
    ended: float | None
    """Of the last."""
    state: str
    """finished, in progress, failed, stopped, or interrupted."""
    reason: str
    """Why it is not finished, where that is known."""
    pictures: tuple[tuple[str, Path, int], ...] = ()
    """Name, file and step."""
    evaluations: tuple[Result, ...] = ()
    """What recipes/evaluate.py found of it."""
    card: Card | None = None
    quarantined: Mapping[str, int] = field(default_factory=dict)
    """Images that could not be used, by reason."""
    skipped: int = 0
    """Steps that changed nothing."""
    device: str | None = None
    """GPU or core: what a worker held, where that was written down."""
    history: tuple[Mapping[str, Any], ...] = ()
    """What was changed on resuming."""
    mlflow_run_id: str | None = None
    missing: tuple[str, ...] = ()
    """Sentences on what is not there."""

    @property
    def name(self) -> str:
        """Name of its folder, which tells it from others."""
        return self.folder.name

    @property
    def steps(self) -> int:
        """Steps that the recipe asks for."""
        return int(self.recipe["steps"])

    @property
    def global_batch(self) -> int:
        """Images per step."""
        return int(self.recipe["global_batch"])

    @property
    def evals(self) -> set[str]:
        """Names of the evaluations that were to be carried out while training."""
        return {key.split(".")[1] for key in self.recipe if key.startswith("evals.")}

    @cached_property
    def figures(self) -> dict[str, Any]:
        """As in summary.json, from the record as it is now."""
        return figures(self.rows, steps=self.steps, global_batch=self.global_batch, evals=self.evals)

    @property
    def kind(self) -> str:
        """Equal for repeats of one recipe, which differ in seed, name, cadence and guards alone."""
        same = {key: value for key, value in self.recipe.items() if key.split(".")[0] not in APART}
        return json.dumps(same, sort_keys=True, default=str)

    def worker_hours(self) -> float:
        """Hours of workers in training, from the record: seconds of all steps times workers."""
        return self.figures["seconds"] * int(self.cluster.get("workers", 1)) / 3600

    def devices_per_worker(self) -> float:
        """GPUs or cores that each worker held."""
        name = "gpus_per_worker" if self.device == "GPU" else "cpus_per_worker"
        return float(self.cluster.get(name, 1.0))


def read(folder: Path, *, over: str | None = None) -> Recorded:
    """The run in `folder`. `over`: said by its own driver, which holds the lock: the run is over, for this reason ("" for none).

    Raises:
        ConfigError: there is no run, or its recipe cannot be read.
    """
    path = folder / RECIPE_FILE
    if not folder.exists():
        raise ConfigError(f"run = {str(folder)!r}: there is no such folder; give that of a run, as in runs/.")
    if not path.is_file():
        raise ConfigError(
            f"run = {str(folder)!r}: no {RECIPE_FILE} in it; give the folder of a run, a sweep or an ablation."
        )
    recipe = read_yaml_file(path)
    if absent := [name for name in NEEDED if name not in recipe]:
        raise ConfigError(f"{path}: it has no {', '.join(absent)}; restore it from the run's record in MLflow.")
    missing: list[str] = []
    cluster = _yaml(folder / "cluster.yaml", missing)
    rows, began, ended = _metrics(folder / METRICS_FILE, missing)
    known, opening = read_run(folder), Opening.load(folder)
    flat_recipe = {**flat(recipe), **{f"evals.{name}": {} for name, value in recipe["evals"].items() if not value}}
    run = Recorded(
        folder=folder,
        recipe=flat_recipe,
        recipe_yaml=redact_text(path.read_text()),
        cluster=cluster,
        rows=rows,
        began=began,
        ended=ended,
        state="",
        reason="",
        pictures=tuple(pictures_in(folder / PICTURES_FOLDER)),
        evaluations=_evaluations(folder, missing),
        card=read_card(folder, flat_recipe, opening, missing),
        quarantined=_quarantined(folder / QUARANTINE),
        skipped=len(_lines(folder / SKIPPED)),
        device=known.get("device"),
        history=tuple(known.get("history", ())),
        mlflow_run_id=recorded_run(folder) or known.get("mlflow_run_id"),
        missing=tuple(missing),
    )
    state, reason = _state(run, over)
    return replace(run, state=state, reason=redact_text(reason))


def _state(run: Recorded, over: str | None) -> tuple[str, str]:
    """How the run stands, and why."""
    if run.figures["status"] == "finished":
        return "finished", ""
    if (found := ending(run.folder)) is not None:
        return found.status, found.reason
    if (run.folder / FAILURE).exists():
        try:
            return "failed", str(json.loads((run.folder / FAILURE).read_text())["message"])
        except (OSError, ValueError, KeyError, TypeError):
            return "failed", f"{FAILURE} cannot be read"
    if over is not None:
        return ("failed", over) if over else ("interrupted", "it was asked to stop; --resume auto goes on with it")
    trials = run.folder.resolve().parent
    if _held(run.folder) or (trials.name == TRIALS and _held(trials.parent)):
        return "in progress", ""
    return "interrupted", "no driver has it; --resume auto goes on with it"


def _held(folder: Path) -> bool:
    if not (folder / LOCK).exists():
        return False
    try:
        refuse_if_held(folder)
    except (ConfigError, OSError):  # somebody lives there; or the folder may only be read, and then nobody can tell
        return True
    return False


def _metrics(path: Path, missing: list[str]) -> tuple[dict[int, dict[str, float]], float | None, float | None]:
    """All metrics by step, and when the first and last line were written."""
    merged: dict[int, dict[str, float]] = {}
    times: list[float] = []
    for entry in entries(path) if path.exists() else ():
        merged.setdefault(entry.step, {}).update(entry.metrics)
        times.append(entry.time)
    if not merged:
        missing.append(
            f"{path.name} is {'empty' if path.exists() else 'not there'}: there are no figures and no curves yet."
        )
    return dict(sorted(merged.items())), min(times, default=None), max(times, default=None)


def _yaml(path: Path, missing: list[str]) -> dict[str, Any]:
    try:
        return read_yaml_file(path)
    except ConfigError:
        missing.append(f"{path.name} cannot be read: costs are counted for one worker.")
        return {}


def _evaluations(folder: Path, missing: list[str]) -> tuple[Result, ...]:
    try:
        return tuple(load(folder / "evaluations"))
    except ConfigError:
        missing.append(f"evaluations/{JSON_FILE} is damaged: what evaluate.py found is left out.")
        return ()


def _quarantined(path: Path) -> dict[str, int]:
    """Distinct images by reason; a resumed run may name one again."""
    each = {(line.get("id"), line.get("path")): str(line.get("reason")) for line in _lines(path)}
    return dict(Counter(each.values()).most_common())


def _lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a table of lines; a torn one is passed over."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        found += [value] if isinstance(value, dict) else []
    return found
