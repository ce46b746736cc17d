"""How much memory a worker needs, found without computing anything: one micro-batch goes through the real step as shapes alone.

Its tensors are torch's fake ones, which have sizes and no content, on a pretended CPU: so it needs neither a GPU nor the memory
that it counts, and follows every change of the step. What it cannot see is the device's own: its context, the gaps that its
allocator leaves, the workspaces of its kernels; nor how late gloo's threads let go of what they sent (up to a sixth more seen, of
sharded networks on CPUs).
"""

import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from raydino.methods.method import Method
from raydino.nn import cross_entropy
from raydino.train import steps
from raydino.train.sharding import groups
from raydino.train.stopwatch import Stopwatch
from raydino.views import Batch

aten = torch.ops.aten
FLOAT = 4  # bytes
MOMENTS = {"adamw": 2, "sgd": 1, "lars": 1}  # float32 for every parameter trained
TEMPORARY = {
    ("adamw", "cpu"): 1,
    ("sgd", "cuda"): 1,
}  # the same, while an optimiser steps that takes all tensors at once


@dataclass(frozen=True)
class Memory:
    """Bytes on one worker at the worst moment of a step."""

    student: int
    """Its parameters and buffers, and those of the losses."""
    teacher: int
    """The parameters of all other networks."""
    gradients: int
    moments: int
    activations: int
    """All that a step makes beside gradients: activations, scores and their gradients, temporary values."""
    gathered: int = 0
    """Of sharded networks: parameters gathered for use, gradients on their way to other workers."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.student + self.teacher + self.gradients + self.moments + self.activations + self.gathered


def estimate(
    loop: steps.Loop,
    batch: Batch,
    *,
    workers: int,
    parallel: Literal["ddp", "fsdp"],
    device: Literal["cpu", "cuda"],
    fused_losses: bool = False,
) -> Memory:
    """The memory of one of `workers` workers on `device`, which share as `cluster.parallel` says.

    `loop` is made as for one worker, on the meta device and in the precision of `device`, and of no further use; `batch` is a
    micro-batch as it comes: uint8 crops, and of the masks the number of masked patches counts, or what makes it the same in all.
    With `fused_losses` the cross-entropy is a kernel that has no temporaries.
    """
    masked = batch.most_masked
    if masked is None:
        masked = 0 if batch.masks is None else int(batch.masks.sum())
    repeats = min(
        loop.accumulate, 2
    )  # the second micro-batch meets the gradients of the first, and so does every other
    shared = parallel == "fsdp" and workers > 1
    if shared:  # what is cast is what is gathered; a gradient shrinks to a part, or stays until the last micro-batch
        counted = {"cast": 0.0, "gradient": 1 / workers if repeats == 1 else 1.0}
    else:  # several replicas have a place for all gradients all the time
        counted = {"cast": 1.0, "gradient": 1.0 if workers == 1 else 0.0}
    with FakeTensorMode(), _as_on(device, pieces=0 if fused_losses else 2):
        loop.method._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
        loop = replace(loop, device=torch.device("cpu"), accumulate=repeats)
        with _Ledger(loop.method, masked, {"other": 1.0, **counted}) as ledger:
            steps._backward(loop, _without_content(batch, repeats), Stopwatch(loop.device))
        return _of_worker(loop, int(ledger.most), share=workers if shared else 1, workers=workers, device=device)


def _without_content(batch: Batch, repeats: int) -> Batch:
    """Empty tensors of `repeats` micro-batches."""

    def empty(tensor: Tensor) -> Tensor:
        views, images, *rest = tensor.shape
        return torch.empty(views, repeats * images, *rest, dtype=tensor.dtype)

    return Batch(
        {name: empty(crop) for name, crop in batch.crops.items()},
        None if batch.masks is None else empty(batch.masks),
        batch.ids * repeats,
        batch.step,
        None if batch.labels is None else torch.empty(repeats * batch.images, dtype=torch.int64),
        colours=None if batch.colours is None else {name: empty(own) for name, own in batch.colours.items()},
        most_masked=batch.most_masked,
    )


def _of_worker(loop: steps.Loop, traced: int, *, share: int, workers: int, device: Literal["cpu", "cuda"]) -> Memory:
    """What a worker holds of the networks, one of `share` parts, and beside them."""
    method, optimizer = loop.method, loop.optim.optimizer
    trained = FLOAT * sum(parameter.numel() for parameter in method.parameters() if parameter.requires_grad)
    temporary = trained * TEMPORARY.get((optimizer, device), 0) // share
    gradients = trained // share
    beside = traced if workers > 1 and share == 1 else traced - gradients
    return Memory(
        student=_bytes(method.student.parameters()) // share + _bytes(method.buffers()),
        teacher=(_bytes(method.parameters()) - _bytes(method.student.parameters())) // share,
        gradients=gradients,
        moments=trained * MOMENTS[optimizer] // share,
        activations=max(beside, temporary),
        gathered=_gathered(method, compute=2 if loop.precision == "bf16" else FLOAT) if share > 1 else 0,
    )


def _gathered(method: Method, *, compute: int) -> int:
    """Bytes of the largest group in use and as much on its way, `compute` a number, and of its gradients packed for sending."""
    return max(sum(p.numel() for p in group) for group in groups(method.student)) * (2 * compute + FLOAT)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class _Ledger(TorchDispatchMode):
    """Bytes of the tensors made within it, by kind: gradients, casts of weights to another precision, and all others."""

    def __init__(self, method: nn.Module, masked: int, counted: Mapping[str, float]) -> None:
        super().__init__()
        self._masked, self._counted = masked, counted
        self._kinds: dict[int, tuple[str, int]] = {}  # by storage
        self._now = 0.0
        self.most = 0.0
        """The most that there was at once, every kind by the share that is `counted` of it."""
        for tensor in (*method.parameters(), *method.buffers()):
            self._kinds[_storage(tensor)] = ("weight", 0)
        for parameter in method.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._is_gradient)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is aten.nonzero.default:  # how many are masked is the one number that shapes do not tell
            out = torch.empty(self._masked, args[0].ndim, dtype=torch.int64)
        elif func is aten._local_scalar_dense.default:
            return self._masked
        else:
            out = func(*args, **(kwargs or {}))
        is_cast = func is aten._to_copy.default and self._kinds.get(_storage(args[0]), ("", 0))[0] == "weight"
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._note(tensor, "cast" if is_cast else "other")
        return out

    def _note(self, tensor: Tensor, kind: str) -> None:
        if (key := _storage(tensor)) not in self._kinds:
            storage = tensor.untyped_storage()
            self._kinds[key] = (kind, storage.nbytes())
            weakref.finalize(storage, self._gone, key).atexit = False
            self._count(kind, storage.nbytes())

    def _is_gradient(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        kind, size = self._kinds[key := _storage(parameter.grad)]
        if kind != "gradient":
            self._kinds[key] = ("gradient", size)
            self._count(kind, -size)
            self._count("gradient", size)

    def _gone(self, key: int) -> None:
        kind, size = self._kinds.pop(key)
        self._count(kind, -size)

    def _count(self, kind: str, size: int) -> None:
        self._now += self._counted.get(kind, 0.0) * size
        self.most = max(self.most, self._now)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


@contextmanager
def _as_on(device: Literal["cpu", "cuda"], *, pieces: int) -> Iterator[None]:
    """The cross-entropy takes as many scores at once as on `device`, and the first `pieces` of a view: others are like them, and
    thousands of them would be most of the time that an estimate takes."""
    before = cross_entropy.CACHED
    if device != "cpu":
        cross_entropy.CACHED = cross_entropy.AT_ONCE
    cross_entropy.PIECES = pieces
    try:
        yield
    finally:
        cross_entropy.CACHED, cross_entropy.PIECES = before, None
