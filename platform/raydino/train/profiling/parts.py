"""The parts of a step, by the names they have in a trace. Each is named here and nowhere else.

Ranges are marked only while torch's profiler runs; otherwise a mark costs a look at one flag. Networks are marked from outside,
by hooks, so methods know nothing of it. What a method does between its networks is `LOSSES`: targets, losses, diagnostics.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from raydino.methods.method import Method

STEP = "step"
WAITING = "waiting for data"
INPUT = "transfer and normalisation"
STUDENT = "student backbone"
TEACHER = "teacher backbone"
HEADS = "heads"
LOSSES = "losses and targets"
OPTIMISER = "optimiser and teacher update"
COMMUNICATION = "communication"
OTHER = "other computing"
GAPS = "gaps"

COMPUTING = (STUDENT, TEACHER, HEADS, LOSSES, OPTIMISER, INPUT, COMMUNICATION, OTHER)
"""Parts in which the device works; with waiting and gaps they make up a step."""
MARKED = frozenset({WAITING, INPUT, STUDENT, TEACHER, HEADS, LOSSES, OPTIMISER})
"""Parts that have ranges of their own; the others follow from the trace."""


def span(name: str) -> AbstractContextManager[object]:
    """A range of the trace while the profiler runs, else nothing."""
    profiling = torch.autograd.profiler._is_profiler_enabled  # what torch itself asks before it names ranges
    return torch.profiler.record_function(name) if profiling else nullcontext()


@contextmanager
def marked(method: Method, module: nn.Module) -> Iterator[None]:
    """Mark the networks of `method`, and all else in `module`'s forward pass as losses, while the context lasts.

    The backward pass has no ranges: its operations are of the part whose forward pass made them (trace.py).
    """
    places: list[tuple[nn.Module, str]] = [(module, LOSSES)]
    for network in method.networks():
        backbone = STUDENT if network is method.student else TEACHER
        heads = (network.head, network.ibot_head)
        places += [(network.backbone, backbone), *((head, HEADS) for head in heads if head is not None)]
    handles = [handle for place, name in places for handle in _mark(place, name)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _mark(module: nn.Module, name: str) -> list[Any]:
    """Hooks that open a range before a module's forward pass and close it after."""
    open_ranges: list[AbstractContextManager[object]] = []

    def begin(*_: object) -> None:
        open_ranges.append(span(name))
        open_ranges[-1].__enter__()

    def end(*_: object) -> None:
        open_ranges.pop().__exit__(None, None, None)

    return [
        module.register_forward_pre_hook(begin, prepend=True),
        module.register_forward_hook(end, always_call=True),
    ]
