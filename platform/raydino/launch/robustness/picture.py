"""The picture of a robustness study: accuracy by level of corruption, a line a group, a band from its worst seed to its best."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from raydino.evals.corruptions import LEVELS
from raydino.launch.robustness.scores import Scores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#2166ac", "#b2182b", "#1b7837", "#762a83", "#e08214", "#767676")
WIDTH, HEIGHT = 4.2, 3.4  # inches, of a head's panel


def draw(scores: Sequence[Scores], path: Path) -> None:
    """Write the picture to `path` (PNG)."""
    figure(scores).savefig(path, dpi=120)


def figure(scores: Sequence[Scores]) -> "Figure":
    """A panel for each head."""
    from matplotlib.figure import Figure  # no pyplot: that would pick a display

    heads, groups = (list(dict.fromkeys(getattr(s, name) for s in scores)) for name in ("head", "group"))
    picture = Figure(figsize=(WIDTH * len(heads), HEIGHT), layout="constrained")
    panels = picture.subplots(1, len(heads), sharey=True, squeeze=False)[0]
    levels = (0, *LEVELS)
    for axes, head in zip(panels, heads, strict=True):
        for index, group in enumerate(groups):
            seeds = [s for s in scores if (s.head, s.group) == (head, group)]
            if not seeds:  # raw pixels have no regression
                continue
            every = [[s.at_level(level) for s in seeds] for level in levels]
            colour = COLOURS[index % len(COLOURS)]
            axes.plot(levels, [mean(values) for values in every], marker="o", markersize=3, color=colour, label=group)
            axes.fill_between(
                levels, list(map(min, every)), list(map(max, every)), color=colour, alpha=0.2, linewidth=0
            )
        axes.set_title(head, fontsize=10)
        axes.set_xlabel("level of corruption (0: clean)")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy, mean of 15 kinds")
    panels[0].legend(fontsize=8)
    return picture
