"""What a worker keeps of a run, and takes up again: its checkpoints. Rank 0 writes and chooses, all ranks read.

While steps are being skipped (train/guard.py) the state is the one from before the first of them, and is saved as that step's: a
resumed run meets them again, whatever happened in between, and the newest checkpoint is never one of a run in trouble.
"""

import logging
from pathlib import Path
from typing import Any

import torch

from raydino import collectives
from raydino.config import ConfigError
from raydino.launch.engine.owners import Owners
from raydino.launch.job import Job
from raydino.train import checkpoint as checkpoints
from raydino.train.saving import Saver
from raydino.train.sharding import is_sharded, load_whole
from raydino.train.steps import Loop
from raydino.train.verify import CheckpointError, damage, require_same

FOLDER = "checkpoints"
log = logging.getLogger(__name__)


def choose(job: Job, device: torch.device) -> Path | None:
    """The checkpoint to go on from, None for a fresh start; its name tells the step. All ranks call it together.

    Apart from `Keeper.restore`, because the stream of batches can begin there before there is a model to load it into.

    Raises:
        CheckpointError: none can be used.
    """
    folder = job.run_dir / FOLDER
    path = checkpoints.recover(folder) if collectives.rank() == 0 else None
    step = checkpoints.step_of(path) if path is not None else -1
    step = int(collectives.all_max(torch.tensor(step, device=device)))
    return None if step < 0 else checkpoints.path_of(folder, step)


class Keeper:
    """The checkpoints of one run on one rank; ranks other than 0 save nothing, but hand over their part of a sharded model."""

    def __init__(self, job: Job, loop: Loop, claim: Owners | None) -> None:
        self._job, self._loop, self._claim = job, loop, claim
        self._folder = job.run_dir / FOLDER
        recipe = job.recipe
        self._saver = (
            Saver(self._folder, keep=recipe.cadence.keep, limit=recipe.guards.save_failures)
            if collectives.rank() == 0
            else None
        )

    def restore(self, path: Path | None) -> int:
        """Load the checkpoint that was chosen (`choose`), if there is one; returns the step to go on with.

        Raises:
            ConfigError: it is of other data.
            CheckpointError: it is of another architecture, or of another step than its name says.
            OSError: another rank reads other bytes than rank 0.
        """
        if path is None:
            return 0
        loop, rank = self._loop, collectives.rank()
        if rank != 0 and (fault := damage(path)):
            raise OSError(
                f"{path} is sound on rank 0 and not on rank {rank} ({fault}); is the storage the same on all nodes?"
            )
        # whole tensors, of which a sharded model takes its part: on the device there may be no room for them
        saved = checkpoints.load(path, device="cpu" if is_sharded(loop.method) else loop.device)
        if saved.step != checkpoints.step_of(path):
            raise CheckpointError(
                f"{path}: holds the state after step {saved.step}; give the folder its own name again."
            )
        for name, now in self._identity().items():
            known = (now, *(self._job.data_before if name == "data" else self._job.ancestors))
            if saved.meta.get(name) not in known:
                raise ConfigError(
                    f"{name}: the checkpoint at step {saved.step} was made with {saved.meta.get(name)}, this run has {now}; "
                    "restore the data it was made with, or start a run under another name."
                )
        require_same(str(path), loop.method.state_dict(), saved.model)
        load_whole(loop.method, saved.model)
        checkpoints.load_optimizer(loop.optimizer, saved.optimizer)
        loop.guard.losses.extend(saved.meta.get("losses", ()))
        return saved.step

    def save(self, done: int, *, wait: bool = False) -> dict[str, float]:
        """Begin to save the state after `done` steps, and `wait` until it is there; returns metrics of saves that ended.
        All ranks call it together, because each holds a part of a sharded model.

        Raises:
            CheckpointError: too many saves in a row have failed.
        """
        loop, guard = self._loop, self._loop.guard
        if self._saver is None and not is_sharded(loop.method):
            return {}
        model, optimizer = loop.method.state_dict(), checkpoints.optimizer_tensors(loop.optimizer)
        if self._saver is None:
            for tensor in (*model.values(), *optimizer.values()):
                collectives.whole(tensor)  # for rank 0
            return {}
        finished = done == self._job.recipe.steps and guard.error is None
        told = self._saver.save(
            done if finished else done - guard.in_a_row,
            model=model,
            optimizer=optimizer,
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
