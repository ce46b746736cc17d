"""The table of an ablation: what each variant scores, how far from the full recipe at equal seeds, and whether as expected.

A difference is taken seed by seed, because two runs of one seed share their initial weights, order and crops. It is told from
none only if its 95 % interval (Student's t over the seeds) leaves out 0; with one seed nothing is.
"""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean, stdev
from typing import Any, Literal

from raydino.launch.ablation.variants import FULL, Expected, LeftOut, Variant

TABLE, PICTURE = "ablation", "ablation.png"
"""The table's files in the ablation's folder (with .md, .json and .csv), and its picture."""
CONFIDENCE = 0.95
SAME = 0.02  # of k-NN: an interval within this of 0 is no difference worth the name
Direction = Literal["worse", "better", "close"]
Agreement = Literal["yes", "no", "in part", "too close to tell", "not published"]


@dataclass(frozen=True)
class Outcome:
    """What came of one run of a variant."""

    variant: str
    """Its name, or FULL."""
    seed: int
    score: float | None
    """The objective after the last step; None where the run did not get there."""
    first_alarm: int | None = None
    """Step at which the collapse detector rang first (train/health.py); None if it never did."""
    watched: bool = True
    """Whether the detector came to judge anything: it does not before the warm-up is over, nor in runs of 50 steps."""
    seconds: float = 0.0
    """Of training, evaluations apart."""
    failure: str = ""
    """Why it did not get there."""


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    variant: str
    component: str
    change: str
    scores: dict[int, float]
    """By seed."""
    mean: float | None
    spread: float | None
    """Sample standard deviation over seeds; None for fewer than two."""
    difference: float | None
    """Mean over seeds of the variant's score less the full recipe's; None for the full recipe, or without a common seed."""
    half_width: float | None
    """Of the 95 % interval of the difference; None with fewer than two common seeds."""
    direction: Direction | None
    expected: Expected | None
    agrees: Agreement | None
    alarmed: tuple[int, ...]
    """Seeds at which the collapse detector rang."""
    first_alarm: int | None
    watched: int
    """Runs in which it came to judge."""
    runs: int
    failures: tuple[str, ...]
    seconds: float | None
    """Mean of a run."""
    published: str


def rows(outcomes: Sequence[Outcome], variants: Sequence[Variant]) -> list[Row]:
    """The full recipe's line and one for each variant, in their order."""
    full = _row(None, [outcome for outcome in outcomes if outcome.variant == FULL], {})
    return [full, *(_row(v, [o for o in outcomes if o.variant == v.name], full.scores) for v in variants)]


def interval(differences: Sequence[float]) -> tuple[float, float | None]:
    """Mean and half width of the 95 % interval of the mean (Student's t); None for fewer than two."""
    if len(differences) < 2:
        return mean(differences), None
    from scipy.stats import t  # here: half a second that a dry run need not wait

    quantile = float(t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1))
    return mean(differences), quantile * stdev(differences) / math.sqrt(len(differences))


def _row(variant: Variant | None, outcomes: Sequence[Outcome], full: Mapping[int, float]) -> Row:
    scores = {outcome.seed: outcome.score for outcome in outcomes if outcome.score is not None}
    apart = [scores[seed] - full[seed] for seed in scores if seed in full]
    difference, half_width = interval(apart) if apart else (None, None)
    direction = _direction(difference, half_width) if difference is not None else None
    alarms = {outcome.seed: outcome.first_alarm for outcome in outcomes if outcome.first_alarm is not None}
    watched = sum(outcome.watched for outcome in outcomes)
    took = [outcome.seconds for outcome in outcomes if outcome.seconds > 0]
    return Row(
        variant=variant.name if variant else FULL,
        component=variant.component if variant else "the full recipe",
        change=variant.change if variant else "",
        scores=scores,
        mean=mean(scores.values()) if scores else None,
        spread=stdev(scores.values()) if len(scores) > 1 else None,
        difference=difference,
        half_width=half_width,
        direction=direction,
        expected=variant.expected if variant else None,
        agrees=_agreement(variant, direction, difference, half_width, alarms=len(alarms), watched=watched),
        alarmed=tuple(alarms),
        first_alarm=min(alarms.values(), default=None),
        watched=watched,
        runs=len(outcomes),
        failures=tuple(f"seed {outcome.seed}: {outcome.failure}" for outcome in outcomes if outcome.failure),
        seconds=mean(took) if took else None,
        published=variant.published if variant else "",
    )


def _direction(difference: float, half_width: float | None) -> Direction:
    if half_width is None or abs(difference) <= half_width:
        return "close"
    return "better" if difference > 0 else "worse"


def _agreement(
    variant: Variant | None,
    direction: Direction | None,
    difference: float | None,
    half_width: float | None,
    *,
    alarms: int,
    watched: int,
) -> Agreement | None:
    """Whether a variant did what its papers say: collapses by the alarm, all else by the interval of its difference."""
    if variant is None or difference is None:
        return None
    if variant.expected is None:
        return "not published"
    if variant.expected == "collapse":
        if not watched:
            return "too close to tell"
        return "yes" if alarms == watched else "in part" if alarms else "no"
    if variant.expected == "same" and half_width is not None and abs(difference) + half_width <= SAME:
        return "yes"
    if direction == "close":
        return "too close to tell"
    return "yes" if direction == variant.expected else "no"


def markdown(found: Sequence[Row], *, left_out: Sequence[LeftOut], objective: str) -> str:
    """The table for people."""
    head = [
        "component",
        "variant",
        objective,
        "difference",
        "expected",
        "agrees",
        "collapse alarm",
        "seconds",
        "published",
    ]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for row in found:
        variant = f"`{row.variant}`" + (f": {row.change}" if row.change else "")
        cells = [row.component, variant, _score(row), _difference(row), row.expected or "", row.agrees or ""]
        cells += [_alarm(row), "" if row.seconds is None else f"{row.seconds:.0f}", row.published]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(f"Failed, `{row.variant}`, {failure}" for row in found for failure in row.failures)]
    lines += [f"Left out, `{part.name}`: {part.reason}." for part in left_out]
    return "\n".join(lines).rstrip() + "\n"


def as_json(found: Sequence[Row], *, left_out: Sequence[LeftOut], about: Mapping[str, Any]) -> str:
    """The table for programs: `about`, every line with its scores by seed, and what was left out."""
    body = {**about, "rows": [asdict(row) for row in found], "left_out": [asdict(part) for part in left_out]}
    return json.dumps(body, indent=1) + "\n"


def as_csv(found: Sequence[Row]) -> str:
    """The table for spreadsheets: scores by seed in columns of their own."""
    seeds = sorted({seed for row in found for seed in row.scores})
    plain = [
        {name: value for name, value in asdict(row).items() if name not in ("scores", "alarmed", "failures")}
        for row in found
    ]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*plain[0], *(f"seed_{seed}" for seed in seeds), "alarmed", "failures"])
    for row, values in zip(found, plain, strict=True):
        alarmed = " ".join(map(str, row.alarmed))
        writer.writerow([*values.values(), *map(row.scores.get, seeds), alarmed, "; ".join(row.failures)])
    return out.getvalue()


def _score(row: Row) -> str:
    if row.mean is None:
        return "failed" if row.runs else "not run"
    spread = "" if row.spread is None else f" ± {row.spread:.3f}"
    missing = f" ({len(row.scores)} of {row.runs} runs)" if len(row.scores) < row.runs else ""
    return f"{row.mean:.3f}{spread}{missing}"


def _difference(row: Row) -> str:
    if row.difference is None or row.variant == FULL:
        return ""
    width = "" if row.half_width is None else f" ± {row.half_width:.3f}"
    return f"{row.difference:+.3f}{width}"


def _alarm(row: Row) -> str:
    if not row.watched:
        return "not judged"
    return f"{len(row.alarmed)} of {row.watched}" + (f", from step {row.first_alarm}" if row.alarmed else "")
