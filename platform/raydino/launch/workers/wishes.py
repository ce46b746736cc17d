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
GO = "GO"
"""File in the run's folder: the step of the last evaluation after which a judged run may go on."""
LOOK = 0.05  # s between two looks for a verdict
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

    def __init__(self, run_dir: Path, device: torch.device, *, alone: bool = False) -> None:
        self._run_dir, self._device, self._alone = run_dir, device, alone
        self._asked = time.monotonic()
        self._answered: set[tuple[str, ...]] = set()

    def after_step(self) -> Wish:
        """What is wanted now. Rank 0 looks; one collective carries it to the others, a question to Ray only now and then."""
        first = collectives.rank() == 0
        flags = [
            float(first and (self._run_dir / STOP).exists()),
            float(first and (self._run_dir / SAVE).exists()),
            float(first and not self._alone and time.monotonic() - self._asked >= ASK),
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

    def wait_for_verdict(self, done: int) -> bool:
        """Wait until somebody has judged the evaluation after `done` steps; whether the run is to stop. All ranks together."""
        stop = 0.0
        if collectives.rank() == 0:
            while told(self._run_dir) < done and not (self._run_dir / STOP).exists():
                time.sleep(LOOK)
            stop = float((self._run_dir / STOP).exists())
        if collectives.world_size() > 1:
            stop = float(collectives.all_sum(torch.tensor(stop, device=self._device)))
        return stop > 0

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


def tell(run_dir: Path, step: int) -> None:
    """Let a judged run go on after its evaluation at `step`."""
    beside = run_dir / f".{GO}.tmp"
    beside.write_text(str(step))
    beside.replace(run_dir / GO)


def told(run_dir: Path) -> int:
    """The step up to which a judged run may go on, -1 before the first verdict."""
    try:
        return int((run_dir / GO).read_text())  # opened, because NFS asks its server again only then
    except FileNotFoundError:
        return -1
