"""Failures that no restart can mend: written to the run's folder, where the driver finds them and stops at once.

Ray Train restarts the workers after any failure, which is right for a lost machine and useless for a bug: the same step
fails again in the same way, after the same minutes. So every exception of a worker is kept with the step it came at, and
the second of a kind ends the run. A killed worker leaves no exception behind and is always replaced.
"""

import json
import traceback
from pathlib import Path

from raydino.tracking.redact import redact_text

FAILURE, ERRORS = "failure.json", "errors-rank{}.jsonl"
"""Files in the run's folder: the failure that ends the run, and every exception of a worker with its traceback."""


def give_up(run_dir: Path, error: BaseException, message: str) -> None:
    """Leave word for the driver that a restart would not help."""
    failure = {"error": type(error).__name__, "message": message}
    (run_dir / FAILURE).write_text(json.dumps(failure))


def came_again(run_dir: Path, error: BaseException, *, rank: int, step: int) -> bool:
    """Keep an exception that came after `step` finished steps; whether this rank's last one was the same.

    The same are type, step and last line of the message: the lines above it, which Ray writes around an error that comes
    from one of its tasks, name processes and addresses.
    """
    found = {"step": step, "error": type(error).__name__, "message": last_line(error)}
    path = run_dir / ERRORS.format(rank)
    before = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    trace = redact_text("".join(traceback.format_exception(error)))
    with path.open("a") as table:
        table.write(json.dumps({**found, "traceback": trace}) + "\n")
    return bool(before) and all(before[-1][name] == value for name, value in found.items())


def explanation(error: BaseException, *, rank: int, step: int) -> str:
    """What to tell about an exception that came twice."""
    return (
        f"{type(error).__name__} after step {step}, and again after a restart: {last_line(error)}. "
        f"Restarting does not help; {ERRORS.format(rank)} has the traceback."
    )


def last_line(error: BaseException) -> str:
    """The last line of an error's message that says something."""
    lines = [line.strip() for line in redact_text(str(error)).splitlines() if line.strip()]
    return lines[-1] if lines else ""
