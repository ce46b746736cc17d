"""Pictures of a sweep: every configuration as a line through its values, and the objective against each of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raydino.launch.sweep.ranking import Row
from raydino.launch.sweep.space import Choice, Distribution, Range, Space, label
from raydino.launch.trials.trial import TrialResult

INK, FAINT, BEST = "#22262a", "#b9bec4", "#2f7f79"
COLOURS = colormaps["viridis"]


def parallel_coordinates(rows: Sequence[Row], space: Space, own: Mapping[str, Any], objective: str, path: Path) -> Path:
    """One line a configuration through its place in each dimension and its objective; trained to the end bold, stopped thin.

    `own` are the recipe's values, for the configuration that sets none.
    """
    judged = [row for row in rows if row.value is not None]
    keys = list(space)
    figure = Figure(figsize=(2.4 + 1.9 * len(keys), 4.2), layout="constrained")
    axes = figure.subplots()
    low, high = _limits([row.value for row in judged if row.value is not None])
    for row in reversed(judged):
        places = [space[key].place(row.params.get(key, own.get(key))) for key in keys]
        end = ((row.value or 0.0) - low) / (high - low)
        done = row.status == "finished"
        heights = [*(float("nan") if place is None else place for place in places), end]
        axes.plot(
            *(range(len(heights)), heights),
            color=COLOURS(end),
            marker="o",
            markersize=4,
            linewidth=2.4 if done else 1.0,
            alpha=0.95 if done else 0.55,
        )
    for position, key in enumerate(keys):
        axes.axvline(position, color=FAINT, linewidth=0.8, zorder=0)
        for place, text in _marks(space[key]):
            axes.text(position + 0.03, place, text, fontsize=8, color=INK, va="center")
    axes.axvline(len(keys), color=INK, linewidth=0.8, zorder=0)
    for place in (0.0, 0.5, 1.0):
        axes.text(len(keys) + 0.03, place, f"{low + place * (high - low):.3g}", fontsize=8, color=INK, va="center")
    axes.set_xticks(range(len(keys) + 1), [*(label(key) for key in keys), objective], fontsize=9)
    axes.set_xlim(-0.1, len(keys) + 0.35)
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    figure.savefig(path, dpi=130)
    return path


def response_curves(
    results: Sequence[TrialResult],
    params: Mapping[str, Mapping[str, Any]],
    space: Space,
    objective: str,
    path: Path,
    *,
    images: int,
) -> Path:
    """The objective against each dimension: after `images` images, where all trials were, and at the end of whole ones."""
    keys = list(space)
    figure = Figure(figsize=(3.4 * len(keys), 3.3), layout="constrained")
    panels = figure.subplots(1, len(keys), sharey=True, squeeze=False)[0]
    for axes, key in zip(panels, keys, strict=True):
        early, late = [], []
        for result in results:
            value = params.get(result.trial.group, {}).get(key)
            if space[key].place(value) is None:
                continue
            at = {each.images: each.metrics[objective] for each in result.history if objective in each.metrics}
            early += [(value, at[seen]) for seen in at if seen == max((i for i in at if 0 < i <= images), default=0)]
            late += [(value, at[max(at)])] if result.status == "finished" and at else []
        _dots(axes, space[key], early, marker="o", color=FAINT, name=f"after {images:,} images")
        _dots(axes, space[key], late, marker="D", color=BEST, name="at the end")
        axes.set_xlabel(label(key), fontsize=9)
        axes.grid(color="#e4e1da", linewidth=0.6)
        axes.tick_params(labelsize=8)
    panels[0].set_ylabel(objective, fontsize=9)
    panels[0].legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)
    return path


def _dots(
    axes: Axes, each: Distribution, points: Sequence[tuple[Any, float]], *, marker: str, color: str, name: str
) -> None:
    if isinstance(each, Choice):
        axes.set_xticks(range(len(each.values)), [_short(value) for value in each.values])
        points = [(each.values.index(value), height) for value, height in points]
    elif isinstance(each, Range) and each.log:
        axes.set_xscale("log")
    points = sorted(points)
    axes.plot(
        [x for x, _ in points],
        [y for _, y in points],
        marker,
        color=color,
        label=name,
        markeredgecolor=INK,
        markersize=6,
    )


def _marks(each: Distribution) -> list[tuple[float, str]]:
    if isinstance(each, Choice):
        return [(each.place(value) or 0.0, _short(value)) for value in each.values]
    ends = [0.0, 0.5, 1.0 - 1e-9]
    return [(end, f"{each.at(end):.4g}") for end in ends]


def _short(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 18 else f"{text[:17]}…"


def _limits(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    return (low, high) if high > low else (low - 0.5, low + 0.5)
