"""The picture of an ablation: each variant's difference to the full recipe, a dot per seed and the interval of the mean."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from raydino.launch.ablation.table import Row
from raydino.launch.ablation.variants import FULL

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"worse": "#b2182b", "better": "#2166ac", "close": "#767676"}
"""By what was measured; runs in which the collapse alarm rang are crosses."""
WIDTH, LINE = 8.0, 0.32  # inches


def draw(found: Sequence[Row], path: Path, *, objective: str) -> None:
    """Write the picture to `path` (PNG)."""
    figure(found, objective=objective).savefig(path, dpi=120)


def figure(found: Sequence[Row], *, objective: str) -> "Figure":
    """The picture, the worst variant at the bottom; variants that share no seed with the full recipe are left out."""
    from matplotlib.figure import Figure  # no pyplot: that would pick a display

    full = next(row for row in found if row.variant == FULL)
    shown = [row for row in found if row.variant != FULL and row.difference is not None]
    shown.sort(key=lambda row: row.difference or 0.0)
    picture = Figure(figsize=(WIDTH, 1.4 + LINE * len(shown)), layout="constrained")
    axes = picture.subplots()
    axes.axvline(0, color="black", linewidth=0.8)
    for at, row in enumerate(shown):
        colour = COLOURS[row.direction or "close"]
        for seed in sorted(row.scores.keys() & full.scores.keys()):
            marker = "x" if seed in row.alarmed else "o"
            axes.scatter(
                row.scores[seed] - full.scores[seed], at, marker=marker, s=16, color=colour, alpha=0.6, zorder=2
            )
        axes.errorbar(row.difference or 0.0, at, xerr=row.half_width, fmt="|", color=colour, capsize=3, markersize=10)
    axes.set_yticks(range(len(shown)), [f"{row.component}: {row.variant}" for row in shown], fontsize=8)
    axes.set_xlabel(
        f"{objective} less the full recipe's at the same seed ({full.mean or 0.0:.3f} in the mean); bars: 95 %"
    )
    axes.set_title("× collapse alarm; red worse, blue better, grey too close to tell", fontsize=9, loc="left")
    axes.grid(axis="x", alpha=0.3)
    return picture
