"""Schedules: pure functions of the step. No state, so resuming at any step costs nothing.

The shape is that of the published code (DINO and DINOv2 share it): linear warm-up from `warmup_from` to `start`, both ends
included, then a half cosine from `start` towards `end` over the steps that remain, then `end` for good.
"""

import math
from typing import Literal, Self

from pydantic import model_validator

from raydino.config import Config, Length, in_steps


class Schedule(Config):
    """A value that changes with the step."""

    start: float
    """Value after the warm-up."""
    end: float
    """Value at the end of `length`."""
    shape: Literal["cosine", "linear", "constant"] = "cosine"
    """How `start` becomes `end`."""
    warmup: Length = 0
    """Linear warm-up before it: steps (int) or share of the run (float)."""
    warmup_from: float = 0.0
    """Value at step 0 of the warm-up."""
    length: Length = 1.0
    """Where `end` is reached, warm-up included: steps (int) or share of the run (float)."""

    @model_validator(mode="after")
    def _constant_has_one_value(self) -> Self:
        if self.shape == "constant" and self.start != self.end:
            raise ValueError(
                f"a constant schedule has start == end, not {self.start} and {self.end}; set both or another shape"
            )
        return self

    def at(self, step: int, *, steps: int) -> float:
        """The value at `step` (from 0) of a run of `steps` steps."""
        warmup, length = in_steps(self.warmup, steps), in_steps(self.length, steps)
        if step < warmup:
            return self.warmup_from + (self.start - self.warmup_from) * (step / (warmup - 1) if warmup > 1 else 1.0)
        if step >= length:
            return self.end
        done = (step - warmup) / (length - warmup)
        if self.shape == "cosine":
            done = 0.5 * (1.0 - math.cos(math.pi * done))
        return self.start + (self.end - self.start) * (done if self.shape != "constant" else 0.0)


def cosine(start: float, end: float, *, warmup: int | float = 0, warmup_from: float = 0.0) -> Schedule:
    """Half cosine from `start` to `end` after a linear warm-up."""
    return Schedule(start=start, end=end, warmup=warmup, warmup_from=warmup_from)


def constant(value: float, *, warmup: int | float = 0, warmup_from: float = 0.0) -> Schedule:
    """`value` throughout, after a linear warm-up."""
    return Schedule(start=value, end=value, shape="constant", warmup=warmup, warmup_from=warmup_from)
