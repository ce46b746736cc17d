"""What a trial of a sweep is, and what it comes to: plain data."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from raydino.recipe import Recipe

Status = Literal["finished", "stopped", "paused", "failed", "interrupted"]
"""How a trial ended: at its last step, by the scheduler's verdict, at the end of a segment, by an error, or by a wish to stop
the whole."""


@dataclass(frozen=True)
class Trial:
    """One run of a sweep."""

    name: str
    """Unique in its sweep; the name of its run folder."""
    recipe: Recipe
    """The whole experiment, seed included."""
    group: str
    """Trials of one group are repeats of each other, alike in all but the seed."""
    until: int | None = None
    """Step after which the trial pauses; None for the recipe's last. For a later segment it is given again with a larger one."""
    ancestors: tuple[str, ...] = ()
    """Trials of which a checkpoint was put into this one's folder."""
    spared: bool = False
    """Whether it is never stopped early, though the others are compared with it."""

    @property
    def last_step(self) -> int:
        """Steps after which nothing is left to do."""
        return self.recipe.steps if self.until is None else min(self.until, self.recipe.steps)


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation of a trial found."""

    step: int
    """Finished steps."""
    images: int
    """Images seen until then."""
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class TrialResult:
    """What a trial came to."""

    trial: Trial
    status: Status
    history: tuple[Evaluation, ...]
    """All evaluations by step, that of the untrained teacher first."""
    metrics: Mapping[str, float]
    """The last value of every metric in its record: losses, evaluations, `health/collapsed`."""
    run_dir: Path
    seconds: float
    """Time that it held its resources, over all attempts."""
    images_seen: int
    reason: str = ""
    """Why it did not reach its last step; empty where it did."""

    def value(self, metric: str) -> float | None:
        """The metric at the last evaluation that has it; None if none has."""
        return next((e.metrics[metric] for e in reversed(self.history) if metric in e.metrics), None)
