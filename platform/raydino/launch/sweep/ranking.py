"""Which configuration is best, by how much, and what it cost."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raydino.launch.trials.trial import Status, TrialResult

PLACES: dict[Status, int] = {"finished": 0, "paused": 1, "interrupted": 1, "stopped": 1, "failed": 2}
"""Configurations that were trained to the end come before those that were not, and failed ones last."""


@dataclass(frozen=True)
class Row:
    """A configuration over its seeds."""

    group: str
    params: Mapping[str, Any]
    status: Status
    """The best of its trials'."""
    value: float | None
    """Mean over the seeds that came as far as the best of them; None if none was evaluated."""
    spread: float | None
    """Standard deviation over those seeds; None for one."""
    values: tuple[float, ...]
    images: int
    """Images that those seeds have seen."""
    seconds: float
    """Over all its trials."""
    reason: str
    """Why it did not come to its end."""
    failed: int
    """Trials that failed."""
    untrained: float | None
    """Mean over the same seeds before the first step; None where that was not evaluated."""


def rank(results: Sequence[TrialResult], params: Mapping[str, Mapping[str, Any]], objective: str) -> list[Row]:
    """Rows from the best to the worst; `params` by group.

    A value is that of the last evaluation, never the best of several: the maximum of noise grows with the number of looks.
    """
    groups: dict[str, list[TrialResult]] = {}
    for result in results:
        groups.setdefault(result.trial.group, []).append(result)
    rows = [_row(group, members, params.get(group, {}), objective) for group, members in groups.items()]
    return sorted(rows, key=_order)


def no_gain(rows: Sequence[Row]) -> str:
    """What to say where the best configuration is no better than its network was before the first step; else nothing."""
    best = rows[0] if rows else None
    if best is None or best.value is None or best.untrained is None or best.value > best.untrained:
        return ""
    return f"no configuration is better than the untrained network ({best.untrained:.4f}): give --steps more"


def device_hours(results: Sequence[TrialResult], *, workers: int, each: float) -> float:
    """Hours of devices that trials held: `each` of them for every one of their `workers`."""
    return sum(result.seconds for result in results) * workers * each / 3600


def _row(group: str, members: Sequence[TrialResult], params: Mapping[str, Any], objective: str) -> Row:
    best = min(PLACES[member.status] for member in members)
    judged = [(member, member.value(objective)) for member in members if PLACES[member.status] == best]
    images = max((_judged_at(member, objective) for member, value in judged if value is not None), default=0)
    counted = [(m, v) for m, v in judged if v is not None and _judged_at(m, objective) == images]
    values = tuple(value for _, value in counted)
    starts = [member.history[0] for member, _ in counted]
    before = [start.metrics[objective] for start in starts if start.images == 0 and objective in start.metrics]
    first = counted[0][0] if counted else members[0]
    return Row(
        group=group,
        params=params,
        status=first.status,
        value=statistics.fmean(values) if values else None,
        spread=statistics.stdev(values) if len(values) > 1 else None,
        values=values,
        images=images,
        seconds=sum(member.seconds for member in members),
        reason="; ".join(dict.fromkeys(member.reason for member in members if member.reason)),
        failed=sum(member.status == "failed" for member in members),
        untrained=statistics.fmean(before) if before else None,
    )


def _judged_at(result: TrialResult, objective: str) -> int:
    return max((each.images for each in result.history if objective in each.metrics), default=0)


def _order(row: Row) -> tuple[Any, ...]:
    missing = row.value is None
    return PLACES[row.status], -row.images, missing, -(row.value or 0.0), row.group
