"""Whether a step may change anything: its loss and gradients are finite on all ranks, and its loss is no spike.

A step that may not is skipped on all ranks: weights, moments, centres, teacher and running statistics stay bit for bit as they
were, and so does what the optimiser counts (AdamW's bias correction does not move on). Its number and its images are used up:
schedules, order and random draws follow the number of the step, so the next one is what it would have been anyway.
"""

from collections import deque
from dataclasses import dataclass
from statistics import median
from typing import Literal

import torch
from torch import Tensor, nn

from raydino import collectives
from raydino.train.config import Guards

WINDOW = 32  # losses whose median the next is compared with
LEAST_SEEN = 16  # of them before anything is judged: the first losses of a run move fast
LEAST_LOSS = 0.1  # nats; what is small already may double without harm (supervised runs end near 0)


class UnhealthyError(RuntimeError):
    """Steps had to be skipped too often in a row. Raised on every rank; all that is kept is as it was before step `first`."""

    def __init__(self, message: str, first: int) -> None:
        super().__init__(message)
        self.first = first


class NonFiniteError(UnhealthyError):
    """The loss or a gradient is NaN or infinite, step after step."""


class LossSpikeError(UnhealthyError):
    """The loss is far above what it was."""


@dataclass(frozen=True)
class Skip:
    """Why a step was left out."""

    reason: Literal["not finite", "spike"]
    loss: float
    """Of this rank."""
    grad_norm: float
    suspect: bool
    """Whether this rank's own images may be the cause: its loss is not finite, or every rank's is and the gradient is not."""
    ids: tuple[bytes, ...]
    """This rank's images of the step."""


class Guard:
    """Judges one step after the other. The same on every rank, and the same again after a resume that sets `losses`."""

    def __init__(self, guards: Guards | None = None) -> None:
        self.guards = guards or Guards()
        self.losses: deque[float] = deque(maxlen=WINDOW)
        """Mean losses over ranks of the last steps that counted."""
        self.in_a_row = 0
        """Steps skipped since the last good one."""
        self.spike = False
        """Whether the last step's loss was a spike."""
        self.error: UnhealthyError | None = None
        """Why the run has to end, once it has to."""

    def judge(self, total: Tensor, grad_norm: Tensor, *, ids: tuple[bytes, ...], step: int) -> Skip | None:
        """Whether to skip `step`. All ranks call it together; it waits for the device, once."""
        bad_loss, bad_norm = ~total.isfinite(), ~grad_norm.isfinite()
        here = torch.stack([bad_loss.float(), (bad_loss | bad_norm).float(), total.float()])
        bad_losses, bad_ranks, loss = collectives.all_sum(here).tolist()
        loss /= collectives.world_size()
        self.spike = not bad_ranks and self._spikes(loss)
        if not bad_ranks and (not self.spike or self.guards.spike == "warn"):
            self.losses.append(loss)
            self.in_a_row = 0
            return None
        self.in_a_row += 1
        suspect = bool(bad_loss) or (bool(bad_norm) and not bad_losses) or self.spike
        skip = Skip("spike" if self.spike else "not finite", total.item(), grad_norm.item(), suspect, ids)
        self.error = self._error(skip, step, ranks=int(bad_ranks), mean=loss)
        return skip

    def _spikes(self, loss: float) -> bool:
        if len(self.losses) < LEAST_SEEN:
            return False
        return loss > self.guards.spike_factor * max(median(self.losses), LEAST_LOSS)

    def _error(self, skip: Skip, step: int, *, ranks: int, mean: float) -> UnhealthyError | None:
        first = step - self.in_a_row + 1
        where = f"step {step}" if self.in_a_row == 1 else f"steps {first} to {step}"
        if skip.reason == "spike" and (self.guards.spike == "stop" or self.in_a_row >= self.guards.not_finite):
            return LossSpikeError(
                f"{where}: loss = {mean:.4g}, above guards.spike_factor = {self.guards.spike_factor:g} times the median of the "
                f"last {len(self.losses)} ({median(self.losses):.4g}); nothing was updated. Lower optim.lr, lengthen "
                "optim.warmup, or let it pass with --guards.spike warn.",
                first,
            )
        if self.in_a_row >= self.guards.not_finite:
            return NonFiniteError(
                f"{where}: loss = {skip.loss:.4g}, gradient norm = {skip.grad_norm:.4g} on rank {collectives.rank()} ({ranks} of "
                f"{collectives.world_size()} ranks not finite; first image {skip.ids[0].hex()}); nothing was updated. Lower "
                "optim.lr or method.teacher_temperature, or lengthen optim.warmup.",
                first,
            )
        return None


def running_statistics(module: nn.Module) -> list[Tensor]:
    """The buffers that a forward pass in training changes: those of batch norms, DINO's convolutional networks have some."""
    return [
        buffer
        for part in module.modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm)
        for buffer in part.buffers(recurse=False)
    ]
