"""Saving behind the training: a step waits for a copy of the weights in host memory, a thread makes a checkpoint of it.

A full or absent disk is no reason to stop at once: the older checkpoints are still there, and the next save may succeed. After
`limit` failures in a row it is, for then nobody would know how much work is at stake.
"""

import errno
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raydino import collectives
from raydino.tracking.run import CHECKPOINT_FAILURES, CHECKPOINT_SECONDS, CHECKPOINT_STALL
from raydino.train.checkpoint import Checkpoint, CheckpointError, prune, save

FULL = (errno.ENOSPC, errno.EDQUOT)
LEAST = 2  # checkpoints that a full disk leaves: one more than needed, since the newest may turn out damaged
log = logging.getLogger(__name__)


class Saver:
    """Saves checkpoints of one run, one after another; rank 0's alone."""

    def __init__(self, folder: Path, *, keep: int, limit: int) -> None:
        self._folder, self._keep, self._limit = folder, keep, limit
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="raydino-save")
        self._pending: Future[float] | None = None
        self._last: tuple[Checkpoint, Callable[[], None]] | None = None
        self._host: dict[
            str, Tensor
        ] = {}  # the same memory for every copy: finding new pages takes longer than copying
        self._stall, self._failed = 0.0, 0

    def save(
        self,
        step: int,
        *,
        model: Mapping[str, Tensor],
        optimizer: Mapping[str, Tensor],
        meta: dict[str, Any],
        before: Callable[[], None] = lambda: None,
    ) -> dict[str, float]:
        """Copy the state after `step` finished steps and begin to save it; returns what `poll` would.

        Of a sharded model one whole tensor after the other is gathered, in the order of the mappings: the other ranks call
        `collectives.whole` for each at the same time.
        Waits for the save before. `before` is called by the thread first; if it raises OSError, nothing is saved.

        Raises:
            CheckpointError: the saves before have failed too often.
        """
        begin = time.perf_counter()
        told = self.wait()
        copies = {name: self._copies(part, prefix=name) for name, part in (("model", model), ("optimizer", optimizer))}
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # copies to pinned memory do not wait by themselves
        self._last = (Checkpoint(step, copies["model"], copies["optimizer"], meta), before)
        self._stall = time.perf_counter() - begin
        self._pending = self._thread.submit(self._write)
        return told

    def poll(self) -> dict[str, float]:
        """Metrics of a save that has ended since the last call, else nothing. Raises CheckpointError after `limit` failures."""
        return self.wait() if self._pending is not None and self._pending.done() else {}

    def wait(self) -> dict[str, float]:
        """Wait for the save in hand, if there is one; returns what `poll` would. Raises CheckpointError as `poll`."""
        if self._pending is None or self._last is None:
            return {}
        step = self._last[0].step
        pending, self._pending = self._pending, None
        try:
            seconds = pending.result()
        except OSError as error:
            self._failed += 1
            log.warning("step %d: no checkpoint was saved (%s); the ones before it stay", step, error)
            if self._failed >= self._limit:
                raise CheckpointError(
                    f"{self._failed} checkpoints in a row could not be saved in {self._folder}, the last at step {step}: "
                    f"{error}. Free space there (or mend its permissions) and go on with --resume auto."
                ) from error
            return {CHECKPOINT_FAILURES: float(self._failed)}
        self._failed = 0
        return {CHECKPOINT_FAILURES: 0.0, CHECKPOINT_SECONDS: seconds, CHECKPOINT_STALL: self._stall}

    def finish(self) -> dict[str, float]:
        """Wait for the save in hand and end the thread; if it failed, try again at once, for there is no next one.

        Raises:
            CheckpointError: it failed `limit` times.
        """
        told = self.wait()
        while self._failed:
            time.sleep(min(self._failed, 5))  # a disk that was full for a moment
            self._pending = self._thread.submit(self._write)
            told |= self.wait()
        self._thread.shutdown()
        return told

    def _write(self) -> float:
        """Seconds that it took; in the thread. A full disk is given a second try without the oldest checkpoints."""
        assert self._last is not None
        begin, (checkpoint, before) = time.perf_counter(), self._last
        before()
        try:
            save(self._folder, checkpoint, keep=self._keep)
        except OSError as error:
            if error.errno not in FULL:
                raise
            prune(self._folder, keep=LEAST, upto=checkpoint.step)
            save(self._folder, checkpoint, keep=self._keep)
        return time.perf_counter() - begin

    def _copies(self, tensors: Mapping[str, Tensor], *, prefix: str) -> dict[str, Tensor]:
        copies = {}
        for name, tensor in tensors.items():
            key = f"{prefix}/{name}"
            tensor = collectives.whole(tensor)
            host = self._host.get(key)
            if host is None or (host.shape, host.dtype) != (tensor.shape, tensor.dtype):
                host = self._host[key] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            copies[name] = host.copy_(tensor, non_blocking=True)
        return copies
