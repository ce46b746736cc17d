"""Early stopping by asynchronous successive halving (ASHA, Li et al. 2020), with Ray Tune's scheduler as the judge.

Trials are compared at rungs, `grace`, `grace`·`reduction`, … images seen: one that comes to a rung goes on if it is in the best
1/`reduction` of those that have been there. k-NN of the first steps ranks poorly, so the first rung comes late; and rungs count
images, not steps or evaluations, so that trials of other batch sizes meet at the same place.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from raydino.config import ConfigError


@dataclass(frozen=True)
class Halving:
    """Where trials are compared, and how many go on."""

    grace: int
    """Images seen at the first rung."""
    most: int
    """Images of a whole trial."""
    reduction: float = 3.0
    """One in so many goes on."""

    def __post_init__(self) -> None:
        if not 0 < self.grace <= self.most or self.reduction <= 1:
            raise ConfigError(
                f"grace = {self.grace}, reduction = {self.reduction}: of trials of {self.most} images, "
                "grace must be more than 0 and at most all of them, and reduction above 1."
            )

    @property
    def rungs(self) -> list[float]:
        """Images seen at which trials are compared; the end is none, as nothing is left to stop there."""
        count = 1 + math.floor(math.log(self.most / self.grace) / math.log(self.reduction) + 1e-9)
        return [rung for k in range(count) if (rung := self.grace * self.reduction**k) < self.most]


class Judge:
    """Says of every evaluation whether its trial goes on, and why not.

    Ray Tune's ASHA decides. It is asked directly, by the trials' own names, so that a driver that goes on with a sweep can tell
    it first what was seen before; and nobody is stopped by Tune itself, which would kill the trial rather than let it save.
    """

    def __init__(self, halving: Halving, *, objective: str) -> None:
        self._halving, self._name = halving, objective
        self._asha = ASHAScheduler(
            *("images", "value", "max"),
            max_t=halving.most,
            grace_period=halving.grace,
            reduction_factor=halving.reduction,
        )
        self._trials: dict[str, Any] = {}
        self._seen: dict[float, dict[str, float]] = {rung: {} for rung in halving.rungs}

    def see(self, trial: str, images: int, value: float | None) -> str | None:
        """Take in an evaluation; why the trial is to stop, or None. One without a value, or at the end, stops nobody."""
        passed = [rung for rung in self._halving.rungs if rung <= images]
        if value is None or not math.isfinite(value) or not passed or images >= self._halving.most:
            return None
        if trial not in self._trials:
            self._trials[trial] = SimpleNamespace(trial_id=trial)
            self._asha.on_trial_add(None, self._trials[trial])  # pyright: ignore[reportArgumentType] it asks the controller nothing
        action = self._asha.on_trial_result(
            None,  # pyright: ignore[reportArgumentType]
            self._trials[trial],
            {"images": images, "value": value},
        )
        others = self._seen[passed[-1]]
        others.setdefault(trial, value)
        if action != TrialScheduler.STOP:
            return None
        place = 1 + sum(other > value for other in others.values())
        return (
            f"stopped by ASHA at rung {len(passed)} of {len(self._halving.rungs)}: {self._name} {value:.4g} "
            f"after {images:,} images, place {place} of {len(others)} there"
        )

    def replay(self, seen: Iterable[tuple[float, str, int, float | None]]) -> None:
        """Take in evaluations from before as (time, trial, images, value), in the order of their times."""
        for _, trial, images, value in sorted(seen, key=lambda each: each[0]):
            self.see(trial, images, value)
