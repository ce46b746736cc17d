"""How much memory a worker needs, found without computing anything: one micro-batch goes through the real step as shapes alone.

Its tensors are torch's fake ones, which have sizes and no content, on a pretended CPU: so it needs neither a GPU nor the memory
that it counts, and follows every change of the step. What it cannot see is the device's own: its context, the gaps that its
allocator leaves, the workspaces of its kernels.
"""

import weakref
from collections import Counter
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
}  # the same, while an optimiser that takes all tensors at once steps
SUMS = {"alone": ("other", "cast", "gradient"), "replicated": ("other", "cast"), "sharded": ("other",)}
"""The kinds of memory that one worker has beside weights and moments; several have a place for gradients all the time; sharded
networks make copies in another precision only where they gather."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one worker at the worst moment of a step."""

    student: int
    """Its parameters and buffers, and those of the losses."""
    teacher: int
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
    shapes: Mapping[str, tuple[int, ...]],
    *,
    masks: tuple[int, ...] | None,
    masked: int,
    labels: bool,
    workers: int,
    parallel: Literal["ddp", "fsdp"],
    device: Literal["cpu", "cuda"],
) -> Memory:
    """The memory of one of `workers` workers on `device`.

    Args:
        loop: As on one worker, on the meta device, in the precision of `device`; of no further use.
        shapes: Of a micro-batch's crops, [V, B, C, H, W] by group.
        masks: Their shape, [V, B, P]; None for a method that masks nothing.
        masked: Patches masked among them.
        labels: Whether the method needs them.
        workers: How many there are.
        parallel: What they share (`cluster.parallel`).
        device: What they compute on.
    """
    images = next(iter(shapes.values()))[1]
    with FakeTensorMode(), _as_on(device):
        loop.method._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
        repeats = min(loop.accumulate, 2)  # the second meets the gradients of the first, and so does every other
        loop = replace(loop, device=torch.device("cpu"), accumulate=repeats)
        batch = Batch(
            {name: torch.empty(v, repeats * b, *rest, dtype=torch.uint8) for name, (v, b, *rest) in shapes.items()},
            None if masks is None else torch.empty(masks[0], repeats * images, *masks[2:], dtype=torch.bool),
            (b"",) * (repeats * images),
            step=0,
            labels=torch.empty(repeats * images, dtype=torch.int64) if labels else None,
        )
        with _Ledger(loop.method, masked) as ledger:
            steps._backward(loop, batch, Stopwatch(loop.device))
        return _of_worker(loop, ledger.most, workers=workers, parallel=parallel, device=device)


def _of_worker(
    loop: steps.Loop,
    most: Mapping[str, int],
    *,
    workers: int,
    parallel: Literal["ddp", "fsdp"],
    device: Literal["cpu", "cuda"],
) -> Memory:
    method, optimizer = loop.method, loop.optim.optimizer
    trained = FLOAT * sum(parameter.numel() for parameter in method.parameters() if parameter.requires_grad)
    moments, temporary = trained * MOMENTS[optimizer], trained * TEMPORARY.get((optimizer, device), 0)
    whole = _bytes([*method.parameters(), *method.buffers()])
    teacher = _bytes(method.teacher.parameters())
    if workers == 1:
        return Memory(whole - teacher, teacher, trained, moments, max(most["alone"] - trained, temporary))
    if parallel == "ddp":
        return Memory(whole - teacher, teacher, trained, moments, max(most["replicated"], temporary))
    buffers, student = _bytes(method.buffers()), _bytes(method.student.parameters())
    return Memory(
        student // workers + buffers,
        teacher // workers,
        trained // workers + (trained if loop.accumulate > 1 else 0),
        moments // workers,
        max(most["sharded"], temporary // workers),
        _gathered(method, compute=2 if loop.precision == "bf16" else FLOAT),
    )


def _gathered(method: Method, *, compute: int) -> int:
    """Bytes of a group in use and the next on its way, each as it comes and as it is used, and of its gradients before and after
    they are packed; `compute` bytes a number."""
    sizes = sorted(sum(p.numel() for p in group) for group in groups(method.student))
    return sizes[-1] * (2 * compute + compute + FLOAT) + sum(sizes[-2:-1]) * 2 * compute


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class _Ledger(TorchDispatchMode):
    """Bytes of the tensors made within it, by kind: gradients, casts of weights to another precision, and all others."""

    def __init__(self, method: nn.Module, masked: int) -> None:
        super().__init__()
        self._masked = masked
        self._kinds: dict[int, tuple[str, int]] = {}  # by storage
        self._now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        """The most that there was of each of SUMS."""
        for tensor in (*method.parameters(), *method.buffers()):
            self._kinds[_storage(tensor)] = ("weight", 0)
        for parameter in method.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._is_gradient)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is aten.nonzero.default:  # how many are masked is the one size that shapes do not tell
            out = torch.empty(self._masked, args[0].ndim, dtype=torch.int64)
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
        self._now[kind] += size
        if size > 0:
            for name, kinds in SUMS.items():
                self.most[name] = max(self.most[name], sum(self._now[kind] for kind in kinds))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


@contextmanager
def _as_on(device: Literal["cpu", "cuda"]) -> Iterator[None]:
    """The cross-entropy takes as many scores at once as on `device`."""
    before = cross_entropy.CACHED
    if device != "cpu":
        cross_entropy.CACHED = cross_entropy.AT_ONCE
    try:
        yield
    finally:
        cross_entropy.CACHED = before
