"""Where a trial lives: an actor of Ray Tune, which outlasts it and takes the next one, since its imports take 20 s of a core.

A trial of one worker trains in the actor itself, in a thread, and holds what the actor reserves. One of several workers is a
driver here: Ray Train places its workers. Either way the trial is followed through its own record, tells Tune of every
evaluation, and waits there for the verdict.
"""

import json
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune

from raydino.launch.engine.trainer import fit
from raydino.launch.job import Job
from raydino.launch.trials.outcome import attempt, evaluations
from raydino.launch.workers.failure import FAILURE, last_line
from raydino.launch.workers.wishes import STOP, tell
from raydino.tracking.spool import METRICS_FILE

OBJECTIVE, IMAGES, STEP, FAILED = "objective", "images", "step", "failed"
"""Keys of what Tune is told."""
LOOK = 0.1  # s between two looks at the record


@dataclass(frozen=True)
class Handed:
    """A job in Ray's memory. Tune writes all configurations to disk, and a job may hold a tracker's password."""

    job: ray.ObjectRef

    def __deepcopy__(self, memo: dict[int, Any]) -> "Handed":
        return self


class Host(tune.Trainable):
    """One trial after another; `config` holds its `job` (`Handed`) and the `objective` to report."""

    def setup(self, config: dict[str, Any]) -> None:
        """Begin the first trial."""
        self._begin(ray.get(config["job"].job), config["objective"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin another trial in this process."""
        self.cleanup()
        self._begin(ray.get(new_config["job"].job), new_config["objective"])
        return True

    def step(self) -> dict[str, Any]:
        """Let the trial go on until its next evaluation, or its end; raises what ended it unless it would end so again."""
        if self._reported is not None:
            tell(self._job.run_dir, self._reported)
        while True:
            ended = not self._thread.is_alive()  # asked before the record is read: then all of it is there
            for entry in evaluations(self._job.run_dir, offset=self._offset):
                self._offset = entry.end
                if 0 < entry.step < self._job.last_step and not ended:
                    self._reported = entry.step
                    return self._result(entry.step, entry.metrics.get(self._objective), done=False)
            if ended:
                return self._ending()
            time.sleep(LOOK)

    def cleanup(self) -> None:
        """Ask the trial to save and leave, and wait for it."""
        if self._thread.is_alive():
            (self._job.run_dir / STOP).touch()
        self._thread.join()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: a trial keeps its own checkpoints."""

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Nothing: a trial finds its own checkpoints."""

    def _begin(self, job: Job, objective: str) -> None:
        self._job, self._objective = job, objective
        record = job.run_dir / METRICS_FILE
        self._offset = record.stat().st_size if record.exists() else 0
        self._reported: int | None = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="trial", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        attempt(self._job.run_dir, begins=True)
        try:
            carry_out(self._job)
        except Exception as error:  # told to Tune by `step`
            self._error = error
        finally:
            attempt(self._job.run_dir, begins=False)

    def _ending(self) -> dict[str, Any]:
        if self._error is None:
            return self._result(self._job.last_step, None, done=True)
        if (self._job.run_dir / FAILURE).exists():  # Tune would only try it again
            return {
                **self._result(0, None, done=True),
                FAILED: f"{type(self._error).__name__}: {last_line(self._error)}",
            }
        raise self._error

    def _result(self, step: int, value: float | None, *, done: bool) -> dict[str, Any]:
        known = {} if value is None else {OBJECTIVE: value}
        return {STEP: step, IMAGES: step * self._job.recipe.global_batch, **known, "done": done}


def carry_out(job: Job) -> None:
    """Train, from the newest checkpoint on; raises what training raises."""
    if not job.alone:
        fit(job)
        return
    from raydino.launch.engine.owners import (
        start_owners,  # with torch, which the driver of several workers has no use for
    )
    from raydino.launch.workers.worker import train_worker

    claim = start_owners(job) if job.recipe.data.stream_dedup else None  # they live as long as this handle
    train_worker(job, claim)


def failure_in(run_dir: Path) -> str | None:
    """Why a trial failed for good, as its worker wrote it down."""
    try:
        return str(json.loads((run_dir / FAILURE).read_text())["message"])
    except (OSError, ValueError, KeyError):
        return None
