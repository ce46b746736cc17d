"""What is known of a set of trials while they run: who is next, who runs, what the judge says, what they came to.

Ray Tune asks this board and tells it; the terminal shows it. Nothing here needs a cluster.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from raydino.config import ConfigError
from raydino.launch.job import TRIALS, Job
from raydino.launch.resume import RECIPE_FILE, changes_since, steps_done
from raydino.launch.trials.halving import Judge
from raydino.launch.trials.outcome import ENDING, Ending, end, evaluations, over, result_of
from raydino.launch.trials.trial import Trial, TrialResult
from raydino.launch.workers.wishes import STOP, told

INTERRUPTED = "interrupted"
log = logging.getLogger(__name__)


class Source(Protocol):
    """Where trials come from."""

    def ask(self) -> Trial | None:
        """The next trial; None when there are no more."""
        ...

    def tell(self, result: TrialResult) -> None:
        """What became of a trial. Every trial asked for is told once."""
        ...

    def known(self) -> Sequence[Trial]:
        """The trials that an earlier driver may have begun."""
        ...


class Listed:
    """Trials from a list."""

    def __init__(self, trials: Sequence[Trial]) -> None:
        if twice := {trial.name for trial in trials if sum(other.name == trial.name for other in trials) > 1}:
            raise ConfigError(f"trials {', '.join(sorted(twice))}: a name may stand once; it is the name of a folder.")
        self._left = list(reversed(trials))

    def ask(self) -> Trial | None:
        """The next of the list."""
        return self._left.pop() if self._left else None

    def tell(self, result: TrialResult) -> None:
        """Nothing depends on it."""

    def known(self) -> Sequence[Trial]:
        """All that are left."""
        return list(reversed(self._left))


@dataclass
class Board:
    """The trials of one `run_trials`. Methods are called by Tune's thread, `running` and `results` read by another."""

    source: Source
    folder: Path
    prepare: Callable[[Trial, Path], Job]
    """Fills a trial's folder."""
    ended: Callable[[TrialResult], object]
    """Told of every trial that ends now."""
    judge: Judge | None = None
    running: dict[str, Trial] = field(default_factory=dict)
    """By the id that Tune gave."""
    results: dict[str, TrialResult] = field(default_factory=dict)
    """By name, in the order in which they ended."""
    order: list[str] = field(default_factory=list)
    """Names in the order in which they were asked for."""

    def __post_init__(self) -> None:
        self._stopping, self._lock = False, threading.RLock()
        self.error: ConfigError | None = None
        """Why there are no more trials, where that is a fault."""

    def __getstate__(self) -> dict[str, object]:
        """Nothing: Tune pickles whatever it is given, for a restart of its own that is never made."""
        return {}

    def run_dir(self, trial: Trial) -> Path:
        """A trial's folder."""
        return self.folder / TRIALS / trial.name

    def next(self, key: str) -> Job | None:
        """The job of the next trial to run, which Tune calls `key`; None when none is left. Those that are over are passed by,
        those that cannot be run fail here, and neither takes a place from the others."""
        while not self._stopping and (trial := self._asked()) is not None:
            self.order.append(trial.name)
            run_dir = self.run_dir(trial)
            try:
                _refuse_another(run_dir, trial)
                if over(trial, run_dir):
                    self._keep(result_of(trial, run_dir, otherwise=Ending("finished", "", trial.last_step)))
                    continue
                if (reason := _wish(run_dir)) not in ("", INTERRUPTED):  # the driver died before it was obeyed
                    self._end(trial, Ending("stopped", reason, steps_done(run_dir)))
                    continue
                run_dir.mkdir(parents=True, exist_ok=True)
                (run_dir / ENDING).unlink(missing_ok=True)
                job = self.prepare(trial, run_dir)
            except (ConfigError, OSError) as error:  # of this trial; the others may have other images
                run_dir.mkdir(parents=True, exist_ok=True)
                self._end(trial, Ending("failed", str(error), steps_done(run_dir)))
                continue
            with self._lock:
                self.running[key] = trial
            return job
        return None

    def _asked(self) -> Trial | None:
        try:
            return self.source.ask()
        except ConfigError as error:  # in Tune's thread; raised by `run_trials` when those that run are over
            self.error = error
            return None

    def evaluated(self, key: str, images: int, value: float | None) -> None:
        """A trial has been evaluated; it is asked to stop if the judge says so."""
        trial = self.running[key]
        reason = self.judge.see(trial.name, images, value) if self.judge else None
        if reason is not None and not trial.spared:
            (self.run_dir(trial) / STOP).write_text(reason)

    def over(self, key: str, failure: str | None) -> None:
        """A trial has ended, well or with `failure`."""
        trial = self.running[key]
        run_dir = self.run_dir(trial)
        done = steps_done(run_dir)
        if failure is not None:
            found = Ending("failed", failure, done)
        elif done >= trial.recipe.steps:
            found = Ending("finished", "", done)
        elif reason := _wish(run_dir):
            found = Ending("interrupted" if reason == INTERRUPTED else "stopped", reason, done)
        elif trial.until is not None and done >= trial.last_step:
            found = Ending("paused", f"segment ends at step {done}", done)
        else:
            found = Ending("failed", f"it ended after step {done} of {trial.recipe.steps} without a word", done)
        self._end(trial, found)
        with self._lock:
            del self.running[key]

    def stop(self) -> None:
        """Begin no more trials, and let those that run save and leave."""
        with self._lock:
            self._stopping = True
            for trial in self.running.values():
                if not (self.run_dir(trial) / STOP).exists():
                    (self.run_dir(trial) / STOP).write_text(INTERRUPTED)

    def snapshot(self) -> list[Trial]:
        """The trials that run now."""
        with self._lock:
            return list(self.running.values())

    def _end(self, trial: Trial, found: Ending) -> None:
        run_dir = self.run_dir(trial)
        end(run_dir, found)
        result = result_of(trial, run_dir, otherwise=found)
        self._keep(result)
        self.ended(result)

    def _keep(self, result: TrialResult) -> None:
        self.results[result.trial.name] = result
        self.source.tell(result)


def remember(judge: Judge, trials: Sequence[Trial], folder: Path, *, objective: str) -> None:
    """Tell a judge what it was told of these trials before: the evaluations after which they were let go on or stopped."""
    judge.replay(
        (entry.time, trial.name, entry.step * trial.recipe.global_batch, entry.metrics.get(objective))
        for trial in trials
        for run_dir in [folder / TRIALS / trial.name]
        for entry in evaluations(run_dir)
        if entry.step <= told(run_dir) or _wish(run_dir) or over(trial, run_dir)
    )


def _wish(run_dir: Path) -> str:
    try:
        return (run_dir / STOP).read_text().strip() or INTERRUPTED
    except FileNotFoundError:
        return ""


def _refuse_another(run_dir: Path, trial: Trial) -> None:
    """Raise ConfigError where the folder holds another experiment; a segment may follow one that was trained otherwise."""
    if trial.until is not None or not (run_dir / RECIPE_FILE).exists():
        return
    if changes := changes_since(run_dir, trial.recipe):
        raise ConfigError(
            f"{run_dir} holds another trial ({'; '.join(map(str, changes[:3]))}); give another --name, or remove the folder."
        )
