"""What all guards of a run cost a step together: the training step with them against the same step without.

    python benchmarks/guards.py        # about three minutes on two cores

With: the gate on losses and gradients, spikes, running statistics, the clock of each rank's own time, sites of planned faults,
the hang watchdog and its thread, wishes to stop or save, the look after a save in hand. Without: all of these taken out. Both
sides are one process's, step by step in turns, on the laptop recipe with 4 images: a short step, of which the share is large.
Seconds of processor time over all threads are compared, which other programs on the machine change little; the wall clock stands
beside them. A checkpoint's stall is told apart, in steps, because its share depends on how often one is saved.

One worker on a CPU: what the gate's collective and its wait cost on several GPUs is not measured here.
"""

import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))

import numpy as np
import torch
from presets import DINOV2

from raydino import faults
from raydino.launch.checks.facts import random_batch
from raydino.launch.cluster import ClusterConfig
from raydino.launch.workers.watchdog import Watchdog
from raydino.launch.workers.wishes import Wishes
from raydino.launch.workers.worker import build_loop
from raydino.train import checkpoint as checkpoints
from raydino.train import steps as training
from raydino.train.guard import Guard
from raydino.train.saving import Saver

ROOT = Path(__file__).resolve().parents[1]

RESULT = ROOT / "benchmarks" / "results" / "guards.json"
GOAL = 1.02
PAIRS = 200  # of steps, one of each side
CALM = 0.1  # quantile of the steps of a side that is compared: where other programs disturbed least
SAVES = 6
IMAGES = 4  # a batch: a small one, so that the share is large


class Bare(Guard):
    """Judges nothing."""

    def judge(self, *_: Any, **__: Any) -> None:
        """Let every step pass, unread."""


class NoWatch:
    """A stopwatch that does not run."""

    def __init__(self, _: torch.device) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...

    def seconds(self) -> float:
        """None."""
        return 0.0


@contextlib.contextmanager
def without() -> Iterator[None]:
    """The step as it would be if nothing ever went wrong."""
    with (
        mock.patch.object(training, "running_statistics", lambda _: []),
        mock.patch.object(training, "Stopwatch", NoWatch),
        mock.patch.object(faults, "reach", lambda *_, **__: False),
    ):
        yield


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of a step: of the processor, of the wall clock."""
    began = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - began[0], time.perf_counter() - began[1]


def main() -> None:
    recipe = DINOV2["laptop"].override({"global_batch": IMAGES, "lanes": IMAGES})
    batch, cpu = random_batch(recipe, recipe.global_batch), torch.device("cpu")
    plain, guarded = (build_loop(recipe, ClusterConfig(threads=1), cpu) for _ in range(2))
    object.__setattr__(plain, "guard", Bare())
    with (
        tempfile.TemporaryDirectory() as scratch,
        Watchdog(Path(scratch) / "stacks", rank=0, timeout=900.0) as watchdog,  # its thread wakes in both sides' time
    ):
        saver = Saver(Path(scratch) / "checkpoints", keep=2, limit=1)
        wishes = Wishes(Path(scratch), cpu)
        wishes._asked = float("inf")  # Ray is not there to be asked; with it, one round trip in 5 s

        def bare_step() -> None:
            with without():
                training.train_step(plain, batch)

        def guarded_step() -> None:
            training.train_step(guarded, batch)
            watchdog.beat(0)
            wishes.after_step()
            saver.poll()

        sides = [bare_step, guarded_step]
        bare_step(), guarded_step()  # caches fill
        times: list[list[tuple[float, float]]] = [[], []]
        for number in range(PAIRS):
            for side in (0, 1) if number % 2 else (1, 0):
                times[side].append(timed(sides[side]))
        stalls, writes = save_times(guarded, saver, step=timed(bare_step)[1])
    report(np.array(times), stalls, writes)


def save_times(loop: training.Loop, saver: Saver, *, step: float) -> tuple[list[float], list[float]]:
    """How long the training waits for a checkpoint, in steps, and how long it then takes, in seconds."""
    stalls, writes = [], []
    for number in range(1, SAVES + 1):
        began = time.perf_counter()
        saver.save(
            number, model=loop.method.state_dict(), optimizer=checkpoints.optimizer_tensors(loop.optimizer), meta={}
        )
        stalls.append((time.perf_counter() - began) / step)
        writes.append(saver.wait()["checkpoint/seconds"])
    saver.finish()
    return stalls, writes


def report(times: np.ndarray, stalls: list[float], writes: list[float]) -> None:
    """Print and save the ratio of the sides; leave with 1 if the goal is missed. `times`: [side, step, processor or wall]."""
    bare, guarded = times
    ratio, wall = np.quantile(guarded, CALM, axis=0) / np.quantile(bare, CALM, axis=0)
    draw = np.random.default_rng(0).integers(len(bare), size=(1000, len(bare)))
    again = np.quantile(guarded[draw, 0], CALM, axis=1) / np.quantile(bare[draw, 0], CALM, axis=1)
    low, high = np.quantile(again, [0.05, 0.95])
    result = {
        "name": "guards",
        "device": "CPU, one worker, one thread, shared with other programs; seconds of processor time",
        "ratio": round(float(ratio), 4),
        "spread": [round(float(low), 4), round(float(high), 4)],
        "spread_is": f"5 to 95 % of the ratio over {len(bare)} pairs of steps drawn again 1,000 times",
        "goal": f"<= {GOAL}",
        "limit_share": round(float(1 / ratio), 4),  # the limit is a step without any guard
        "command": "python benchmarks/guards.py",
        "wall_clock_ratio": round(float(wall), 4),
        "checkpoint_stall_in_steps": [round(value, 3) for value in (stalls[0], statistics.median(stalls[1:]))],
        "checkpoint_stall_is": "of the first save, which finds the memory, and the median of the others",
        "checkpoint_seconds": round(statistics.median(writes), 3),
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\n{json.dumps(result, indent=1)}\ngoal {result['goal']}: {'met' if ratio <= GOAL else 'MISSED'}")
    sys.exit(bool(ratio > GOAL))


if __name__ == "__main__":
    main()
