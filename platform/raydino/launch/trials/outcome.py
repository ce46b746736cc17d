"""What a trial's folder says about it: its evaluations, how it ended, how long it held its resources.

Everything is read from there, so a driver that was killed loses nothing: the next one knows the same.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raydino.launch.resume import steps_done, write
from raydino.launch.trials.trial import Evaluation, Status, Trial, TrialResult
from raydino.tracking.run import RANKME
from raydino.tracking.spool import METRICS_FILE, Entry, entries, read_metrics

ENDING, ATTEMPTS = "ending.json", "attempts.jsonl"
"""Files in the trial's folder: how it ended, and when each attempt began and ended."""


@dataclass(frozen=True)
class Ending:
    """How a trial ended."""

    status: Status
    reason: str
    step: int
    """Finished steps."""
    recorded: str | None = None
    """MLflow run below which this ending is recorded; empty for one without a parent, None where it is not recorded yet."""


def end(run_dir: Path, ending: Ending) -> None:
    """Write down how a trial ended."""
    write(run_dir / ENDING, json.dumps(asdict(ending), indent=1))


def ending(run_dir: Path) -> Ending | None:
    """How a trial ended; None if it has not."""
    try:
        return Ending(**json.loads((run_dir / ENDING).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def over(trial: Trial, run_dir: Path) -> bool:
    """Whether nothing of a trial is left to do; one that failed or was interrupted goes on."""
    found = ending(run_dir)
    if found is None or found.status in ("failed", "interrupted"):
        return False
    return found.status != "paused" or found.step >= trial.last_step


def attempt(run_dir: Path, *, begins: bool) -> None:
    """Note that an attempt begins or ends now."""
    with (run_dir / ATTEMPTS).open("a") as file:
        file.write(json.dumps({"begin" if begins else "end": round(time.time(), 3)}) + "\n")


def held(run_dir: Path) -> float:
    """Seconds that a trial has held its resources. An attempt that was killed ends with its last entry in the record."""
    moments = [entry.time for entry in _record(run_dir)]
    path = run_dir / ATTEMPTS
    lines: list[dict[str, float]] = (
        [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    )
    total = 0.0
    for number, line in enumerate(lines):
        if "begin" not in line:
            continue
        after = lines[number + 1] if number + 1 < len(lines) else {}
        limit = after.get("begin", float("inf"))
        last = max((moment for moment in moments if line["begin"] <= moment < limit), default=line["begin"])
        total += after.get("end", last) - line["begin"]
    return total


def evaluations(run_dir: Path, *, offset: int = 0) -> Iterator[Entry]:
    """The lines of a record that hold an evaluation, from byte `offset` on."""
    return (entry for entry in _record(run_dir, offset=offset) if RANKME in entry.metrics)


def result_of(trial: Trial, run_dir: Path, *, otherwise: Ending) -> TrialResult:
    """What a trial came to; `otherwise` where its folder does not say how it ended."""
    found = ending(run_dir) or otherwise
    rows = read_metrics(run_dir / METRICS_FILE)
    batch = trial.recipe.global_batch
    history = [Evaluation(step, step * batch, row) for step, row in rows.items() if RANKME in row]
    last: dict[str, Any] = {}
    for row in rows.values():
        last |= row
    return TrialResult(
        trial=trial,
        status=found.status,
        history=tuple(history),
        metrics=last,
        run_dir=run_dir,
        seconds=held(run_dir),
        images_seen=max([found.step, steps_done(run_dir)]) * batch,
        reason=found.reason,
    )


def _record(run_dir: Path, *, offset: int = 0) -> Iterator[Entry]:
    path = run_dir / METRICS_FILE
    return entries(path, offset=offset) if path.exists() else iter(())
