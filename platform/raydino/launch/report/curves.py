"""Curves as inline SVG: one metric a chart, a line for each kind of run, the range over its seeds as a band around their mean.

Colours come from the page's style sheet and follow light and dark; lines also differ in their dashes, for print and for eyes that
tell no colours apart. The numbers stand below each chart as a table to unfold.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from raydino.curation.charts import round_steps
from raydino.curation.markup import number, table, text

STYLE = Path(__file__).with_name("report.css")
"""What pages with curves add to the style of all pages."""
WIDTH, HEIGHT = 372, 150  # of the plot in SVG units: a chart that a phone shows whole, at about its own size
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 36
COLOURS = 8  # classes s0 to s7 of report.css
DASHES = ("", "6 3", "2 3")  # each round of colours has its own
MOST_POINTS = 200  # of a line; the means of as many stretches stand for longer records
MOST_ROWS = 20  # of the numbers below a chart
DOTS = 40  # points of a line that are drawn one by one, up to here


class Point(NamedTuple):
    """A mean over seeds at one place of the record, with their range."""

    x: float
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Line:
    """A metric of one kind of run."""

    label: str
    points: Sequence[Point]
    seeds: int
    """Runs that it is the mean of."""
    place: int
    """Number among all kinds on the page, which decides colour and dashes."""


def spread(label: str, runs: Sequence[Mapping[float, float]], *, place: int) -> Line | None:
    """The line of several runs' values by x, where all of them have a finite one; None where there is no such place."""
    if not runs:
        return None
    shared = sorted(set.intersection(*({x for x, value in run.items() if math.isfinite(value)} for run in runs)))
    points = [_point(x, [run[x] for run in runs]) for x in shared]
    return Line(label, _thinned(points), len(runs), place) if points else None


def chart(name: str, lines: Sequence[Line], *, unit: str, marks: Sequence[tuple[str, float]] = ()) -> str:
    """A chart of `lines` over `unit` (steps or images); `marks` are horizontal lines with their name."""
    low_x, high_x = _ends([point.x for line in lines for point in line.points])
    heights = [value for line in lines for point in line.points for value in (point.low, point.high)]
    low_y, high_y = _ends([*heights, *(value for _, value in marks)])

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + WIDTH * (x - low_x) / (high_x - low_x),
            TOP + HEIGHT * (high_y - y) / (high_y - low_y),
        )

    grid = "".join(_level(y, at(low_x, y)[1]) for y in round_steps(low_y, high_y, 5))
    ticks = "".join(_tick(x, at(x, low_y)[0]) for x in round_steps(low_x, high_x, 4))
    named = "".join(_mark(label, at(low_x, y)[1]) for label, y in marks)
    drawn = "".join(
        _drawn(line, [(*at(p.x, p.mean), at(p.x, p.low)[1], at(p.x, p.high)[1]) for p in line.points]) for line in lines
    )
    words = _words(lines, marks)
    svg = (
        f'<svg class="plot curve" viewBox="0 0 {LEFT + WIDTH + RIGHT} {TOP + HEIGHT + BOTTOM}" role="img" '
        f'aria-label="{text(name)} over {unit}. {words}">{grid}{ticks}'
        f'<line class="axis" x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{TOP + HEIGHT}" y2="{TOP + HEIGHT}"/>'
        f'<text x="{LEFT + WIDTH}" y="{TOP + HEIGHT + 32}" text-anchor="end">{unit}</text>{named}{drawn}</svg>'
    )
    return (
        f'<div class="chart"><h3>{text(name)}</h3><p class="aside">{words}</p>{svg}'
        f"<details><summary>Numbers</summary>{_numbers(name, lines, unit)}</details></div>"
    )


def key(labels: Sequence[tuple[str, int]]) -> str:
    """The legend: a stroke of its colour and dashes before each label."""
    items = "".join(
        f'<li><svg class="stroke" viewBox="0 0 26 8" aria-hidden="true"><line class="s{place % COLOURS}" x1="1" x2="25" y1="4" '
        f'y2="4"{_dashes(place)}/></svg>{text(label)}</li>'
        for label, place in labels
    )
    return f'<ul class="key lines">{items}</ul>'


def _point(x: float, values: Sequence[float]) -> Point:
    return Point(x, sum(values) / len(values), min(values), max(values))


def _thinned(points: Sequence[Point]) -> list[Point]:
    """At most MOST_POINTS of them, each the mean of a stretch with the range of all in it; the last stays itself."""
    if len(points) <= MOST_POINTS:
        return list(points)
    found = []
    for index in range(MOST_POINTS - 1):
        part = points[
            index * (len(points) - 1) // (MOST_POINTS - 1) : (index + 1) * (len(points) - 1) // (MOST_POINTS - 1)
        ]
        mean = sum(point.mean for point in part) / len(part)
        found.append(Point(part[-1].x, mean, min(p.low for p in part), max(p.high for p in part)))
    return [*found, points[-1]]


def _ends(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    if high > low:
        return low, high
    room = abs(low) / 10 or 0.5
    return low - room, low + room


def _drawn(line: Line, places: Sequence[tuple[float, float, float, float]]) -> str:
    """The band, the line, and a dot at each point where there are few."""
    kind = f"s{line.place % COLOURS}"
    out = []
    if any(abs(low - high) > 0.05 for _, _, low, high in places):
        edge = [f"{x:.1f},{high:.1f}" for x, _, _, high in places] + [
            f"{x:.1f},{low:.1f}" for x, _, low, _ in reversed(places)
        ]
        out.append(f'<polygon class="band {kind}" points="{" ".join(edge)}"/>')
    way = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in places)
    out.append(f'<polyline class="{kind}" points="{way}"{_dashes(line.place)}/>')
    if len(places) <= DOTS:
        out += [
            f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="2.4"><title>{text(line.label)}: {number(point.mean)} at '
            f"{number(point.x)}</title></circle>"
            for (x, y, _, _), point in zip(places, line.points, strict=True)
        ]
    return "".join(out)


def _dashes(place: int) -> str:
    pattern = DASHES[place // COLOURS % len(DASHES)]
    return f' stroke-dasharray="{pattern}"' if pattern else ""


def _level(value: float, y: float) -> str:
    return (
        f'<line class="grid" x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(value)}</text>'
    )


def _tick(value: float, x: float) -> str:
    return f'<text x="{x:.1f}" y="{TOP + HEIGHT + 17}" text-anchor="middle">{_short(value)}</text>'


def _mark(label: str, y: float) -> str:
    up = y > TOP + 16
    return (
        f'<line class="cut" x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{LEFT + WIDTH - 2}" y="{y - 4 if up else y + 13:.1f}" text-anchor="end">{text(label)}</text>'
    )


def _words(lines: Sequence[Line], marks: Sequence[tuple[str, float]]) -> str:
    """First and last value of a single line; of two the last of each; of more the range of the last."""
    said = [f"{text(label)} {number(value)}" for label, value in marks]
    last = [line.points[-1] for line in lines]
    if len(lines) == 1:
        words = f"{number(lines[0].points[0].mean)} at first, {_value(last[0])} at last"
    elif len(lines) == 2:
        words = "At last: " + "; ".join(f"{text(line.label)} {_value(line.points[-1])}" for line in lines)
    else:
        words = f"{number(min(p.mean for p in last))} to {number(max(p.mean for p in last))} at last"
    return ", ".join([words, *said])


def _value(point: Point) -> str:
    return (
        number(point.mean)
        if point.low == point.high
        else f"{number(point.mean)} ({number(point.low)} to {number(point.high)})"
    )


def _numbers(name: str, lines: Sequence[Line], unit: str) -> str:
    every = sorted({point.x for line in lines for point in line.points})
    chosen = (
        every if len(every) <= MOST_ROWS else [every[i * (len(every) - 1) // (MOST_ROWS - 1)] for i in range(MOST_ROWS)]
    )
    values = [{point.x: point for point in line.points} for line in lines]
    rows = [(number(x), *(_value(each[x]) if x in each else "" for each in values)) for x in chosen]
    return table(text(name), [unit, *(text(line.label) for line in lines)], rows)


def _short(value: float) -> str:
    """A tick's number in few characters."""
    size = abs(value)
    if size >= 1e9:
        return f"{value / 1e9:g}G"
    if size >= 1e6:
        return f"{value / 1e6:g}M"
    if size >= 1e4:
        return f"{value / 1e3:g}k"
    return f"{value:.0e}".replace("e-0", "e-") if 0 < size < 1e-3 else f"{value:g}"
