"""A board's trials on Ray Tune: which of its parts are used, and what they are told.

Tune places trials, keeps their actors, and starts a lost one again. Whose turn it is, who stops and what is kept are the board's:
Tune's own experiment state is never read, so every start has a name of its own, as for Ray Train.
"""

import logging
import secrets
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from raydino.launch.engine.connect import environment
from raydino.launch.trials.board import Board
from raydino.launch.trials.host import FAILED, IMAGES, OBJECTIVE, Handed, Host, failure_in
from raydino.launch.workers.failure import ERRORS

SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # CSV, JSON and TensorBoard of its own: the record has it all
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that fails has no objective
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the main thread has it
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # its own state is not read
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


class Feed(Searcher):
    """Hands Tune the board's trials."""

    def __init__(self, board: Board, objective: str) -> None:
        super().__init__(metric=OBJECTIVE, mode="max")
        self._board, self._objective = board, objective

    def suggest(self, trial_id: str) -> Any:
        """The next trial."""
        job = self._board.next(trial_id)
        if job is None:
            return Searcher.FINISHED
        return {"name": job.run_dir.name, "job": Handed(ray.put(job)), "objective": self._objective}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:  # noqa: FBT001, FBT002 Tune's signature
        """A trial is over; Tune calls this once, also for those that it gave up."""
        if trial_id not in self._board.running:
            return
        failure = (result or {}).get(FAILED)
        if failure is not None or error:
            run_dir = self._board.run_dir(self._board.running[trial_id])
            failure = failure_in(run_dir) or failure or _given_up(run_dir)
        self._board.over(trial_id, failure)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: see above."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see above."""


class Ask(FIFOScheduler):
    """Passes evaluations on to the board. Nobody is stopped here: a trial asked to stop saves and ends by itself."""

    def __init__(self, board: Board) -> None:
        super().__init__()
        self._board = board

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """The trial goes on, if only to leave."""
        self._board.evaluated(trial.trial_id, result[IMAGES], result.get(OBJECTIVE))
        return TrialScheduler.CONTINUE


class Tuning:
    """Tune in a thread: the main thread has the terminal and the signals."""

    def __init__(
        self,
        board: Board,
        *,
        objective: str,
        at_once: int,
        resources: Mapping[str, float],
        max_failures: int,
        folder: Path,
    ) -> None:
        self._error: Exception | None = None
        self._state = folder / "ray"
        shutil.rmtree(self._state, ignore_errors=True)  # of a driver that was killed
        tuner = tune.Tuner(
            tune.with_resources(Host, dict(resources)),
            tune_config=tune.TuneConfig(
                num_samples=-1,
                search_alg=Feed(board, objective),
                scheduler=Ask(board),
                max_concurrent_trials=at_once,
                reuse_actors=True,
                trial_name_creator=lambda trial: trial.config["name"],
                trial_dirname_creator=lambda trial: trial.config["name"],
            ),
            run_config=tune.RunConfig(
                name=f"attempt-{secrets.token_hex(4)}",
                storage_path=str(self._state),
                failure_config=tune.FailureConfig(max_failures=max_failures),
                verbose=0,
            ),
        )
        self._thread = threading.Thread(target=self._fit, args=(tuner,), name="ray-tune", daemon=True)
        self._thread.start()

    def _fit(self, tuner: tune.Tuner) -> None:
        loggers = [logging.getLogger(name) for name in ("ray.tune", "ray.train", "ray.air")]
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)  # a trial that fails is told of by the board
        try:
            with environment(SETTINGS):
                tuner.fit()
        except Exception as error:  # shown by the main thread
            self._error = error
        finally:
            shutil.rmtree(self._state, ignore_errors=True)

    def ended(self, *, timeout: float) -> bool:
        """Wait up to `timeout` seconds; whether all trials are over."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def check(self) -> None:
        """Raise what Tune itself met, if anything."""
        if self._error is not None:
            raise self._error


def _given_up(run_dir: Path) -> str:
    """Why Tune gave a trial up."""
    if (run_dir / ERRORS.format(0)).exists():
        return f"it failed again and again; {ERRORS.format(0)} has the traceback"
    return "its worker was lost more often than cluster.max_failures allows"
