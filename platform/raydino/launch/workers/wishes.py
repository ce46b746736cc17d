"""What the outside wants of a run while it trains: to stop, or to save because machines are about to go or to come."""

import time
from dataclasses import dataclass
from pathlib import Path

import ray.train
import torch

from raydino import collectives

STOP = "STOP"
"""File in the run's folder: a wish to stop."""
SAVE = "SAVE"
"""File in the run's folder: a wish to save and go on; removed when that is done."""
ASK = 5.0  # s between two questions about preemption: Ray itself looks as often, and an answer is a round trip of all ranks


@dataclass(frozen=True)
class Wish:
    """What is to be done after a step; the same on all ranks."""

    stop: bool = False
    """Save and leave."""
    save: bool = False
    """Save at once, and wait for it, and go on: a node is announced to be lost, or the number of workers is about to change."""
    deadline: float | None = None
    """When, in seconds since 1970, if Ray knows."""


class Wishes:
    """Asked by all ranks together after every step: a rank that left alone would leave the others waiting."""

    def __init__(self, run_dir: Path, device: torch.device) -> None:
        self._run_dir, self._device = run_dir, device
        self._asked = time.monotonic()
        self._answered: set[tuple[str, ...]] = set()

    def after_step(self) -> Wish:
        """What is wanted now. Rank 0 looks; one collective carries it to the others, a question to Ray only now and then."""
        first = collectives.rank() == 0
        flags = [
            float(first and (self._run_dir / STOP).exists()),
            float(first and (self._run_dir / SAVE).exists()),
            float(first and time.monotonic() - self._asked >= ASK),
        ]
        if collectives.world_size() > 1:
            flags = collectives.all_sum(torch.tensor(flags, device=self._device)).tolist()
        stop, save, ask = (flag > 0 for flag in flags)
        notice = self._notice() if ask else None
        return (
            Wish(stop, save)
            if notice is None
            else Wish(stop, save=True, deadline=notice.deadline_ms and notice.deadline_ms / 1000)
        )

    def saved(self) -> None:
        """Tell who wished for it that the state is saved."""
        if collectives.rank() == 0:
            (self._run_dir / SAVE).unlink(missing_ok=True)

    def _notice(self) -> "ray.train.PreemptionInfo | None":
        """Which nodes Ray says are to be lost; None if that has been answered with a checkpoint already."""
        self._asked = time.monotonic()
        notice = ray.train.get_preemption_info()
        if notice is None or (nodes := tuple(notice.preempted_node_ids)) in self._answered:
            return None
        self._answered.add(nodes)
        return notice
