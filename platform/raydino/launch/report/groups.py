"""Several runs on one page: which are repeats of one recipe, what the recipes differ in, and one metric of all of them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from raydino.launch.report.curves import Line, spread
from raydino.launch.report.record import Recorded
from raydino.launch.resume import ABSENT
from raydino.tracking.run import PIXELS_TOP1, RANKME


@dataclass(frozen=True)
class Group:
    """Repeats of one recipe, over seeds; most times one run."""

    label: str
    runs: tuple[Recorded, ...]
    place: int
    """Number on the page, from 0."""

    def values(self, pick: str, name: str) -> list[float]:
        """`last`, `best` or `untrained` of an evaluation metric, of the runs that have it."""
        found = [run.figures["metrics"].get(name, {}).get(pick) for run in self.runs]
        return [value for value in found if value is not None]


def grouped(runs: Sequence[Recorded], labels: Mapping[str, str] | None = None) -> list[Group]:
    """Runs by recipe, in the order of their first; `labels` by the name of a run take the place of names."""
    kinds: dict[str, list[Recorded]] = {}
    for run in runs:
        kinds.setdefault((labels or {}).get(run.name, run.kind), []).append(run)
    found = []
    for place, members in enumerate(kinds.values()):
        label = (labels or {}).get(members[0].name) or members[0].name
        if len(members) > 1:
            label = f"{label if labels else members[0].recipe.get('name', label)} ({len(members)} seeds)"
        found.append(Group(label, tuple(members), place))
    taken = [group.label for group in found]
    return [
        Group(f"{g.label} {g.runs[0].name.rpartition('-')[2]}", g.runs, g.place) if taken.count(g.label) > 1 else g
        for g in found
    ]


def differences(runs: Sequence[Recorded]) -> dict[str, list[Any]]:
    """Dotted keys in which recipes differ, with the value of each run; ABSENT where a recipe has no such field."""
    keys = dict.fromkeys(key for run in runs for key in run.recipe)
    values = {key: [run.recipe.get(key, ABSENT) for run in runs] for key in keys}
    # As text, as in a fingerprint: 1 is one step, 1.0 the whole run.
    return {key: found for key, found in values.items() if len({json.dumps(value, default=str) for value in found}) > 1}


def unit_of(groups: Sequence[Group]) -> str:
    """What curves are drawn over: steps, or images where a step is not the same number of them everywhere."""
    return "steps" if len({run.global_batch for group in groups for run in group.runs}) == 1 else "images"


def metric_names(groups: Sequence[Group]) -> list[str]:
    """All metrics of the records, in order of appearance."""
    return list(
        dict.fromkeys(name for group in groups for run in group.runs for row in run.rows.values() for name in row)
    )


def lines_of(name: str, groups: Sequence[Group], unit: str) -> list[Line]:
    """One metric of each group that has it, over steps or images."""
    found = []
    for group in groups:
        series = [_series(run, name, unit) for run in group.runs]
        line = spread(group.label, [each for each in series if each], place=group.place)
        found += [line] if line is not None else []
    return found


def headline_names(runs: Sequence[Recorded]) -> list[str]:
    """The two or three judgements that a run is known by."""
    names = dict.fromkeys(name for run in runs for name in run.figures["metrics"])
    firsts = [next(members) for _, members in groupby(n for n in names if n not in (PIXELS_TOP1, RANKME))]
    first = [name for name in firsts if name.endswith("top1")] or firsts
    return [*first[:2], *(name for name in names if name == RANKME)]


def _series(run: Recorded, name: str, unit: str) -> dict[float, float]:
    scale = run.global_batch if unit == "images" else 1
    return {step * scale: row[name] for step, row in run.rows.items() if name in row}
