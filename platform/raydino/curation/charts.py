"""Charts as inline SVG: bars and histograms. Colours come from the page's style sheet, so they follow light and dark."""

import math
from collections.abc import Sequence

from raydino.curation.markup import number, table, text
from raydino.curation.report import Histogram

WIDTH, HEIGHT = 520, 170  # of the plot in SVG units, about the pixels of half a page
LEFT, RIGHT, TOP, BOTTOM = 48, 24, 22, 34  # room for the counts, half a value, the threshold's name and the values
SPREAD = 60  # greatest over median count from which a linear axis would show one bar and a flat line
LEAST = 0.8  # hundredths of a bar that a part of it takes at least: three images of a million are seen


def bar(parts: list[tuple[str, float]], whole: float, label: str) -> str:
    """A horizontal bar of (class, amount) from the left, to the scale of `whole`; `label` says it in words."""
    x, out = 0.0, []
    for kind, amount in parts:
        width = max(100 * amount / whole, LEAST) if whole and amount else 0.0
        x = min(x, 100 - width)
        out.append(f'<rect class="{kind}" x="{x:.3f}" y="0" width="{width:.3f}" height="10"/>')
        x += width
    return (
        f'<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" role="img" aria-label="{text(label)}">'
        f'<rect class="track" width="100" height="10"/>{"".join(out)}</svg>'
    )


def charts(found: Sequence[Histogram]) -> str:
    """Histograms beside each other; empty where there are none."""
    return f'<div class="charts">{"".join(map(histogram, found))}</div>' if found else ""


def histogram(data: Histogram) -> str:
    """A histogram with its thresholds, and its numbers as a table to unfold."""
    most = max(data.counts, default=0)
    filled = sorted(count for count in data.counts if count)
    logarithmic = bool(filled) and most > SPREAD * filled[len(filled) // 2]
    top = _height(most, logarithmic) or 1.0
    cuts = _cuts(data)
    bars = [
        _bar(low, high, HEIGHT * _height(count, logarithmic) / top, count, data, cuts)
        for low, high, count in zip(data.edges, data.edges[1:], data.counts, strict=False)
        if count
    ]
    grid = "".join(_line(count, HEIGHT * _height(count, logarithmic) / top) for count in _counts(most, logarithmic))
    scale = ", logarithmic scale" if logarithmic else ""
    words = _words(data, cuts)
    name = f"{text(data.name)}{f', {text(data.unit)}' if data.unit else ''}"
    svg = (
        f'<svg class="plot" viewBox="0 0 {LEFT + WIDTH + RIGHT} {TOP + HEIGHT + BOTTOM}" role="img" '
        f'aria-label="Histogram of {name}. {words}">{grid}{"".join(bars)}'
        f'<line class="axis" x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{TOP + HEIGHT}" y2="{TOP + HEIGHT}"/>'
        f"{_values(data)}{''.join(_threshold(data, *cut) for cut in cuts)}</svg>"
    )
    rows = [
        (f"{number(low)} to {number(high)}", f"{count:,}")
        for low, high, count in zip(data.edges, data.edges[1:], data.counts, strict=False)
        if count
    ]
    return (
        f'<div class="chart"><h3>{name}</h3><p class="aside">{words}{scale and f" Counts{scale}."}</p>{svg}'
        f"<details><summary>Numbers</summary>{table(f'{name}: counts', ['values', 'images or pairs'], rows)}</details></div>"
    )


def _cuts(data: Histogram) -> list[tuple[str, float, float]]:
    """Side, threshold and where its line stands: after the whole number that still counts, or at the value itself."""
    whole = data.unit == "bits"
    return [
        *([("below", data.below, data.below + whole)] if data.below is not None else []),
        *([("above", data.above, data.above)] if data.above is not None else []),
    ]


def _words(data: Histogram, cuts: list[tuple[str, float, float]]) -> str:
    """The total and how much each threshold takes, in a sentence."""
    total = sum(data.counts)
    parts = [f"{total:,} in all"]
    for side, threshold, cut in cuts:
        taken, exact = 0.0, True
        for low, high, count in zip(data.edges, data.edges[1:], data.counts, strict=False):
            inside = min(max((cut - low) / (high - low), 0.0), 1.0)
            taken += count * (inside if side == "below" else 1 - inside)
            exact = exact and (not count or inside in (0.0, 1.0))
        sign = "≤" if side == "below" else "≥"
        parts.append(f"{'' if exact else 'about '}{round(taken):,} at {sign} {number(threshold)}")
    return f"{', '.join(parts)}."


def _height(count: float, logarithmic: bool) -> float:  # noqa: FBT001 a plain function of two values
    return math.log1p(count) if logarithmic else float(count)


def _x(value: float, data: Histogram) -> float:
    low, high = _range(data)
    return LEFT + WIDTH * (value - low) / (high - low)


def _range(data: Histogram) -> tuple[float, float]:
    """From the least to the greatest value, thresholds included: one that nothing reaches is worth seeing, too."""
    places = [data.edges[0], data.edges[-1], *(cut for _, _, cut in _cuts(data))]
    return min(places), max(places)


def _bar(
    low: float, high: float, height: float, count: int, data: Histogram, cuts: list[tuple[str, float, float]]
) -> str:
    """One bin; the parts that a threshold takes are of another colour."""
    stops = sorted({low, high, *(cut for _, _, cut in cuts if low < cut < high)})
    out = []
    for start, end in zip(stops, stops[1:], strict=False):
        middle = (start + end) / 2
        taken = any(middle < cut if side == "below" else middle > cut for side, _, cut in cuts)
        left, right = _x(start, data), _x(end, data)
        gap = min(1.0, (right - left) / 5)
        out.append(
            f'<rect class="{"taken" if taken else "rest"}" x="{left + gap / 2:.2f}" width="{right - left - gap:.2f}" '
            f'y="{TOP + HEIGHT - max(height, 1):.2f}" height="{max(height, 1):.2f}"/>'
        )
    return f"<g><title>{number(low)} to {number(high)}: {count:,}</title>{''.join(out)}</g>"


def _line(count: float, height: float) -> str:
    y = TOP + HEIGHT - height
    return (
        f'<line class="grid" x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y:.2f}" y2="{y:.2f}"/>'
        f'<text x="{LEFT - 6}" y="{y + 4:.2f}" text-anchor="end">{_short(count)}</text>'
    )


def _values(data: Histogram) -> str:
    return "".join(
        f'<text x="{_x(value, data):.2f}" y="{TOP + HEIGHT + 18}" text-anchor="middle">{number(value)}</text>'
        for value in round_steps(*_range(data), 6)
    )


def _threshold(data: Histogram, side: str, threshold: float, cut: float) -> str:
    x = _x(cut, data)
    start = x > LEFT + WIDTH / 2
    sign = "≤" if side == "below" else "≥"
    return (
        f'<line class="cut" x1="{x:.2f}" x2="{x:.2f}" y1="{TOP - 8}" y2="{TOP + HEIGHT}"/>'
        f'<text class="cut" x="{x + (-5 if start else 5):.2f}" y="{TOP - 8}" '
        f'text-anchor="{"end" if start else "start"}">{sign} {number(threshold)}</text>'
    )


def _counts(most: int, logarithmic: bool) -> list[float]:  # noqa: FBT001 a plain function of two values
    if logarithmic:
        return [10.0**power for power in range(len(str(most)))]
    return [value for value in round_steps(0, most, 4) if value and value == int(value)]


def round_steps(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers from `low` to `high`, steps of 1, 2 or 5 times a power of ten."""
    span = high - low
    if span <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= count)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _short(count: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:g}{unit}"
    return f"{count:g}"
