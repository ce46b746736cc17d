"""How long a rank needs for its own part of a step, so that the one the others wait for can be named."""

import time

import torch

from raydino import collectives


class Stopwatch:
    """Seconds spent inside its `with` blocks. On a GPU by events in its queue, to be read once the host has waited for it."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._host, self._began = 0.0, 0.0
        self._events: list[torch.cuda.Event] = []

    def __enter__(self) -> None:
        if self._on_gpu:
            self._event()
        else:
            self._began = time.perf_counter() - collectives.waited()

    def __exit__(self, *_: object) -> None:
        if self._on_gpu:
            self._event()
        else:
            self._host += time.perf_counter() - collectives.waited() - self._began

    def _event(self) -> None:
        self._events.append(torch.cuda.Event(enable_timing=True))
        self._events[-1].record()

    def seconds(self) -> float:
        """All of them together."""
        pairs = zip(self._events[::2], self._events[1::2], strict=True)
        return self._host + sum(begin.elapsed_time(end) for begin, end in pairs) / 1000  # torch tells milliseconds
