"""What a worker keeps of a run, and takes up again: its checkpoints. Rank 0 writes and chooses, all ranks read.

While steps are being skipped (train/guard.py) the state is the one from before the first of them, and is saved as that step's: a
resumed run meets them again, whatever happened in between, and the newest checkpoint is never one of a run in trouble.
"""

import logging
from typing import Any

import torch

from raydino import collectives
from raydino.config import ConfigError
from raydino.launch.engine.owners import Owners
from raydino.launch.job import Job
from raydino.train import checkpoint as checkpoints
from raydino.train.saving import Saver
from raydino.train.steps import Loop
from raydino.train.verify import damage, require_same

FOLDER = "checkpoints"
log = logging.getLogger(__name__)


class Keeper:
    """The checkpoints of one run on one rank; on ranks other than 0 saving does nothing."""

    def __init__(self, job: Job, loop: Loop, claim: Owners | None) -> None:
        self._job, self._loop, self._claim = job, loop, claim
        self._folder = job.run_dir / FOLDER
        recipe = job.recipe
        self._saver = (
            Saver(self._folder, keep=recipe.cadence.keep, limit=recipe.guards.save_failures)
            if collectives.rank() == 0
            else None
        )

    def restore(self) -> int:
        """Load the newest checkpoint, if there is one; returns the step to go on with. All ranks call it together.

        Raises:
            ConfigError: it is of other data.
            CheckpointError: none can be used, or it is of another architecture.
            OSError: another rank reads other bytes than rank 0.
        """
        loop, rank = self._loop, collectives.rank()
        path = checkpoints.recover(self._folder) if rank == 0 else None
        chosen = checkpoints.step_of(path) if path is not None else -1
        chosen = int(collectives.all_max(torch.tensor(chosen, device=loop.device)))
        if chosen < 0:
            return 0
        path = checkpoints.path_of(self._folder, chosen)
        if rank != 0 and (fault := damage(path)):
            raise OSError(
                f"{path} is sound on rank 0 and not on rank {rank} ({fault}); is the storage the same on all nodes?"
            )
        saved = checkpoints.load(path, device=loop.device)
        for name, now in self._identity().items():
            known = (now, *(self._job.data_before if name == "data" else self._job.ancestors))
            if saved.meta.get(name) not in known:
                raise ConfigError(
                    f"{name}: the checkpoint at step {saved.step} was made with {saved.meta.get(name)}, this run has {now}; "
                    "restore the data it was made with, or start a run under another name."
                )
        require_same(str(path), loop.method.state_dict(), saved.model)
        loop.method.load_state_dict(saved.model)
        checkpoints.load_optimizer(loop.optimizer, saved.optimizer)
        loop.guard.losses.extend(saved.meta.get("losses", ()))
        return saved.step

    def save(self, done: int, *, wait: bool = False) -> dict[str, float]:
        """Begin to save the state after `done` steps, and `wait` until it is there; returns metrics of saves that ended.

        Raises:
            CheckpointError: too many saves in a row have failed.
        """
        if self._saver is None:
            return {}
        loop, guard = self._loop, self._loop.guard
        finished = done == self._job.recipe.steps and guard.error is None
        told = self._saver.save(
            done if finished else done - guard.in_a_row,
            model=loop.method.state_dict(),
            optimizer=checkpoints.optimizer_tensors(loop.optimizer),
            meta={
                **self._identity(),
                "losses": list(guard.losses),
                "mlflow_run_id": self._job.mlflow_run_id,
                "torch": torch.__version__,
                "world": collectives.world_size(),
            },
            # first: claims beyond a checkpoint are found again as they were, missing ones are not
            before=(lambda: None) if self._claim is None else self._claim.save,
        )
        return told | (self.wait() if wait else {})

    def poll(self) -> dict[str, float]:
        """Metrics of a save that has ended, else nothing. Raises CheckpointError as `save`."""
        return {} if self._saver is None else self._saver.poll()

    def wait(self) -> dict[str, float]:
        """Wait for the save in hand; returns what `poll` would. Raises CheckpointError as `save`."""
        return {} if self._saver is None else self._saver.wait()

    def finish(self) -> dict[str, float]:
        """Wait for the last save, and repeat it if it failed. Raises CheckpointError if it cannot be saved."""
        return {} if self._saver is None else self._saver.finish()

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must share with the run that takes it up."""
        return {"run": self._job.run_dir.name, "data": self._job.data_digest}
