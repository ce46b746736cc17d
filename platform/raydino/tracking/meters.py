"""What is measured between two log lines: means of scalars, images per second, the share of time spent waiting for
data.

Scalars stay on their device until they are asked for: reading one from a GPU makes the host wait for all work queued
there, so it is done once per log line and for all of them together. The clock is an argument, so tests need not sleep.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from raydino.tracking.run import DATA_WAIT, IMAGES_PER_S, READ_WAIT, STEP_SECONDS


class Meter:
    """Running means of named scalars; a name may be absent from some steps, its mean is over the steps that had it."""

    def __init__(self) -> None:
        """An empty meter."""
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, scalars: Mapping[str, Tensor | float]) -> None:
        """Add one step's scalars. Raises ValueError for a tensor with more than one element."""
        for name, value in scalars.items():
            tensor = torch.as_tensor(value)
            if tensor.numel() != 1:
                raise ValueError(
                    f"{name}: a meter takes scalars, not a tensor of shape {tuple(tensor.shape)}; reduce it first"
                )
            tensor = tensor.detach().reshape(()).float()
            self._sums[name] = self._sums[name] + tensor if name in self._sums else tensor.clone()
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """The means since the last `take`, and start again. One transfer per device."""
        means: dict[str, float] = {}
        for device in {total.device for total in self._sums.values()}:
            names = [name for name, total in self._sums.items() if total.device == device]
            values = torch.stack([self._sums[name] for name in names]).tolist()
            means |= {name: value / self._counts[name] for name, value in zip(names, values, strict=True)}
        order = list(self._sums)
        self._sums, self._counts = {}, {}
        return {name: means[name] for name in order}


class Rate:
    """Throughput between two log lines and over the whole run; pauses (evaluations, checkpoints) do not count."""

    def __init__(
        self, *, clock: Callable[[], float] = time.perf_counter, starved: Callable[[], float] = lambda: 0.0
    ) -> None:
        """Start measuring now; `starved` tells the seconds waited for images to cut since the stream began."""
        self._clock, self._starved = clock, starved
        self._starved_before = 0.0
        self._window_start = clock()
        self._steps = self._images = 0
        self._waited = 0.0
        self._total_steps = self._total_images = 0
        self._total_seconds = self._total_waited = 0.0

    def step(self, *, images: int, waited: float) -> None:
        """Count one step of `images` images (over all ranks) that waited `waited` seconds for its batch."""
        self._steps += 1
        self._images += images
        self._waited += waited

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time spent inside out of every figure."""
        start = self._clock()
        try:
            yield
        finally:
            self._window_start += self._clock() - start

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time spent inside as waiting for data, for what no step tells of: the first batch."""
        start = self._clock()
        try:
            yield
        finally:
            self._waited += self._clock() - start

    def take(self) -> dict[str, float]:
        """Images/s, data-wait share and seconds per step since the last `take`; empty if no step was counted."""
        if not self._steps:
            return {}
        now, starved = self._clock(), self._starved()
        seconds = max(now - self._window_start, 1e-9)
        metrics = {
            IMAGES_PER_S: self._images / seconds,
            DATA_WAIT: min(self._waited / seconds, 1.0),
            READ_WAIT: min((starved - self._starved_before) / seconds, 1.0),
            STEP_SECONDS: seconds / self._steps,
        }
        self._starved_before = starved
        self._total_steps += self._steps
        self._total_images += self._images
        self._total_seconds += seconds
        self._total_waited += self._waited
        self._steps = self._images = 0
        self._waited = 0.0
        self._window_start = now
        return metrics

    def totals(self) -> dict[str, float]:
        """The same figures over everything taken so far."""
        if not self._total_steps:
            return {}
        return {
            IMAGES_PER_S: self._total_images / self._total_seconds,
            DATA_WAIT: min(self._total_waited / self._total_seconds, 1.0),
            STEP_SECONDS: self._total_seconds / self._total_steps,
        }

    def eta(self, *, steps_left: int) -> float | None:
        """Seconds that `steps_left` steps will take at the pace so far; None before the first `take`."""
        return self._total_seconds / self._total_steps * steps_left if self._total_steps else None
