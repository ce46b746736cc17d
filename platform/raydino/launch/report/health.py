"""Whether a run was healthy, from its record: sentences, each with how bad it is. docs/health.md says what the signals mean."""

from typing import Literal, NamedTuple

from raydino.launch.report.record import Recorded
from raydino.launch.terminal.bottleneck import WORTH_SAYING
from raydino.tracking.run import (
    CHECKPOINT_FAILURES,
    COLLAPSED,
    KNN_TOP1,
    LOSS_SPIKES,
    LOSS_TOTAL,
    NOT_FINITE,
    PIXELS_TOP1,
    RANKME,
)

WORDS = {"fine": "fine", "watch": "look at it", "bad": "bad", "unknown": "not judged"}
"""How bad, in words: colours alone say nothing to some eyes, and nothing on paper."""


class Verdict(NamedTuple):
    """One thing that was looked at."""

    level: Literal["fine", "watch", "bad", "unknown"]
    said: str


def verdicts(run: Recorded) -> list[Verdict]:
    """What the record says about collapse, losses, learning, data and saves; the worst first."""
    found = [_collapse(run), *_losses(run), *_learned(run), *_data(run), *_saves(run)]
    order = list(WORDS)[:3][::-1]
    return sorted(found, key=lambda verdict: order.index(verdict.level) if verdict.level in order else len(order))


def _collapse(run: Recorded) -> Verdict:
    seen = {step: row[COLLAPSED] for step, row in run.rows.items() if COLLAPSED in row}
    if not seen:
        return Verdict(
            "unknown", "Collapse: nothing was judged; the alarm needs targets, and steps behind the warm-up."
        )
    alarms = [step for step, value in seen.items() if value]
    if not alarms:
        return Verdict("fine", f"Collapse: the alarm never rang in {len(seen):,} lines of the record.")
    still = "and rings still" if seen[max(seen)] else "but not at last"
    return Verdict(
        "bad",
        f"Collapse: the alarm rang first at step {alarms[0]:,}, {still}. The teacher says the same of all images.",
    )


def _losses(run: Recorded) -> list[Verdict]:
    if not any(LOSS_TOTAL in row for row in run.rows.values()):
        return [Verdict("unknown", "Losses: none was recorded yet.")]
    skipped, spikes = _sum(run, NOT_FINITE), _sum(run, LOSS_SPIKES)
    return [
        Verdict("watch", f"Losses: {skipped:,} steps were not finite and were skipped.")
        if skipped
        else Verdict("fine", "Losses: every step was finite."),
        Verdict("watch", f"Spikes: {spikes:,} steps had a loss far above those before.")
        if spikes
        else Verdict("fine", "Spikes: none."),
    ]


def _learned(run: Recorded) -> list[Verdict]:
    """What was gained over the untrained teacher, and whether raw pixels are still ahead."""
    metrics, found = run.figures["metrics"], []
    name = KNN_TOP1 if KNN_TOP1 in metrics else RANKME
    value = metrics.get(name)
    if (
        value is None
        or value["last"] is None
        or value["untrained"] is None
        or value["best_step"] is None
        or not run.figures["steps"]
    ):
        return [Verdict("unknown", "Learning: there are no two evaluations to compare.")]
    level = "fine" if value["last"] > value["untrained"] else "bad"
    found.append(Verdict(level, f"Learning: {name} {value['last']:.3f}, untrained {value['untrained']:.3f}."))
    pixels = metrics.get(PIXELS_TOP1, {}).get("last")
    if name == KNN_TOP1 and pixels is not None and value["last"] <= pixels:
        found.append(Verdict("watch", f"Raw pixels are still ahead: {pixels:.3f} by the same k-NN."))
    return found


def _data(run: Recorded) -> list[Verdict]:
    bad, wait = sum(run.quarantined.values()), run.figures["data_wait"]
    found = [
        Verdict("watch", f"Images: {bad:,} could not be used and were replaced by neighbours.")
        if bad
        else Verdict("fine", "Images: all that were asked for could be used.")
    ]
    if wait >= WORTH_SAYING:
        found.append(Verdict("watch", f"Data: {wait:.0%} of the time in training was spent waiting for images."))
    return found


def _saves(run: Recorded) -> list[Verdict]:
    failed = max((int(row[CHECKPOINT_FAILURES]) for row in run.rows.values() if CHECKPOINT_FAILURES in row), default=0)
    return [Verdict("watch", f"Checkpoints: up to {failed} saves in a row failed.")] if failed else []


def _sum(run: Recorded, name: str) -> int:
    return int(sum(row[name] for row in run.rows.values() if name in row))
