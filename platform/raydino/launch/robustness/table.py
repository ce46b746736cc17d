"""The tables of a robustness study: means over seeds with 95 % intervals, differences to the baseline, errors by kind.

Intervals are Student's t over the seeds, by the same function as an ablation's; differences are taken seed by seed. They
hold what another seed of training would change, and not what other test images would.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from raydino.evals.corruptions import KINDS
from raydino.evals.shift import Line, corruption_error
from raydino.launch.ablation.table import interval
from raydino.launch.robustness.scores import Lines, Scores, elsewhere, figures
from raydino.launch.subjects import PIXELS

DROP = "drop, other domains"
NO_WIDTH = 1e-9
"""Half widths up to this are of equal values, but for rounding."""


@dataclass(frozen=True)
class Figure:
    """A figure of a group."""

    values: dict[int, float]
    """By seed."""
    mean: float
    half_width: float | None
    """Of the 95 % interval; None for one seed, and for what has no seeds of its own."""
    difference: float | None = None
    """Mean over seeds of how far it is above the baseline's; None for the baseline."""
    difference_half_width: float | None = None


@dataclass(frozen=True)
class HeadTable:
    """What one head says of all groups."""

    head: str
    figures: dict[str, dict[str, Figure | None]]
    """By figure and group; None where some seed has none."""
    kinds: dict[str, dict[str, Figure | None]]
    """Corruption errors by kind and group."""
    lines: Lines
    domains: dict[str, dict[str, dict[str, Figure | None]]]
    """Accuracies, and the drop, by domain learned from, domain judged and group; empty where domains were not asked for."""


def head_tables(scores: Sequence[Scores], expected: Mapping[str, Lines]) -> list[HeadTable]:
    """A table for each head; the group of the first scores is the baseline. `expected`: by head."""
    tables = []
    for head in dict.fromkeys(s.head for s in scores):
        of_head = [s for s in scores if s.head == head]
        baseline = {s.seed: s for s in of_head if s.group == of_head[0].group}
        every: dict[str, dict[int, dict[str, float | None]]] = {}
        errors: dict[str, dict[int, dict[str, float | None]]] = {}
        for s in of_head:
            every.setdefault(s.group, {})[s.seed] = figures(s, baseline[s.seed], expected[head])
            errors.setdefault(s.group, {})[s.seed] = corruption_error(s.errors, baseline[s.seed].errors)
        tables.append(HeadTable(head, _by_name(every), _by_name(errors), expected[head], _by_domain(of_head)))
    return tables


def _by_domain(of_head: Sequence[Scores]) -> dict[str, dict[str, dict[str, Figure | None]]]:
    found = {}
    for source in of_head[0].domains:
        rows: dict[str, dict[int, dict[str, float | None]]] = {}
        for s in of_head:
            row = s.domains[source]
            rows.setdefault(s.group, {})[s.seed] = {**row, DROP: row[source] - elsewhere(row, source)}
        found[source] = _by_name(rows)
    return found


def _by_name(every: Mapping[str, Mapping[int, Mapping[str, float | None]]]) -> dict[str, dict[str, Figure | None]]:
    first = next(iter(every))
    names = next(iter(every[first].values()))
    return {name: {group: _figure(name, group, every, baseline=first) for group in every} for name in names}


def _figure(
    name: str, group: str, every: Mapping[str, Mapping[int, Mapping[str, float | None]]], *, baseline: str
) -> Figure | None:
    values = {seed: value for seed, found in every[group].items() if (value := found[name]) is not None}
    if len(values) < len(every[group]):
        return None
    mean, half_width = interval(list(values.values()))
    if group == PIXELS and len(set(values.values())) == 1:
        half_width = None  # the same for every seed: it has none
    others = {seed: found[name] for seed, found in every[baseline].items()}
    apart = [value - other for seed, value in values.items() if (other := others[seed]) is not None]
    if group == baseline or len(apart) < len(values):
        return Figure(values, mean, half_width)
    return Figure(values, mean, half_width, *interval(apart))


def markdown(tables: Sequence[HeadTable], protocol: Mapping[str, str]) -> str:
    """The page for people."""
    lines = ["# Robustness", ""]
    for table in tables:
        groups = list(next(iter(table.figures.values())))
        lines += [f"## {table.head}", "", *_grid(["figure", *groups], _rows(table.figures)), ""]
        apart = _rows(table.figures, differences=True)
        if len(groups) > 1:
            lines += [f"Less {groups[0]}'s at the same seed; bold where the 95 % interval leaves out 0:", ""]
            lines += [*_grid(["figure", *groups[1:]], [[row[0], *row[2:]] for row in apart]), ""]
        lines += [f"Corruption error by kind, {groups[0]}'s is 1:", ""]
        lines += [*_grid(["kind", "group", *groups[1:]], [_kind_row(k, row) for k, row in table.kinds.items()]), ""]
        lines += [f"Effective robustness, {name}: {_told(line)}." for name, line in table.lines.items()] + [""]
        lines += _matrices(table.domains, groups)
    lines += ["## Protocol", "", *(f"- **{name}**: {text}." for name, text in protocol.items())]
    return "\n".join(lines) + "\n"


def as_json(tables: Sequence[HeadTable], scores: Sequence[Scores], about: Mapping[str, Any]) -> str:
    """The tables for programs: `about`, every figure with its values by seed, and every accuracy."""
    body = {**about, "tables": [asdict(t) for t in tables], "scores": [asdict(s) for s in scores]}
    return json.dumps(body, indent=1) + "\n"


def _rows(found: Mapping[str, Mapping[str, Figure | None]], *, differences: bool = False) -> list[list[str]]:
    return [[name, *(_cell(f, differences=differences) for f in row.values())] for name, row in found.items()]


def _kind_row(kind: str, row: Mapping[str, Figure | None]) -> list[str]:
    return [kind, KINDS[kind].group, *[_cell(figure) for figure in row.values()][1:]]


def _cell(figure: Figure | None, *, differences: bool = False) -> str:
    if figure is None:
        return "–"
    if not differences:
        return f"{figure.mean:.3f}" + ("" if figure.half_width is None else f" ± {figure.half_width:.3f}")
    if figure.difference is None:
        return "–"
    if figure.difference_half_width is None:
        return f"{figure.difference:+.3f}"
    text = f"{figure.difference:+.3f} ± {figure.difference_half_width:.3f}"
    # Where all seeds say the same, which few images make likely, the interval has no width, and that is no certainty.
    return f"**{text}**" if abs(figure.difference) > figure.difference_half_width > NO_WIDTH else text


def _matrices(domains: Mapping[str, Mapping[str, Mapping[str, Figure | None]]], groups: Sequence[str]) -> list[str]:
    """For each group what heads that learned from one domain (rows) say of each (columns), then beside the baseline."""
    lines = []
    for group, differences in [*((group, False) for group in groups), *((group, True) for group in groups[1:])] * bool(
        domains
    ):
        less = f" less {groups[0]}'s at the same seed" if differences else ""
        lines += [f"Accuracy by domain, {group}{less}:", ""]
        rows = [
            [source, *(_cell(row[group], differences=differences) for row in found.values())]
            for source, found in domains.items()
        ]
        lines += [*_grid(["learned from", *next(iter(domains.values()))], rows), ""]
    return lines


def _told(line: Line | str) -> str:
    if isinstance(line, str):
        return f"none ({line})"
    return (
        f"above logit(shifted) = {line.slope:.2f} · logit(clean) {line.intercept:+.2f}, fitted on {line.points} networks of the "
        f"baseline with clean accuracies of {line.least:.3f} to {line.most:.3f}, none outside these"
    )


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---", *["---:"] * (len(head) - 1)], *rows)]
