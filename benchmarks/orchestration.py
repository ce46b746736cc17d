"""What Ray Train and our worker cost a step, and what saving does: each against the bare loop.

    python benchmarks/orchestration.py        # about four minutes on two cores

Steps: the whole worker (`_train`: guards, record with a line a step, wishes, watchdog) as Ray Train runs it, against
`training_steps` in a process of its own that knows no Ray. Both train the same weights on the same pixels, which are in memory,
and take turns block by block through a file; their losses are compared first. Every second block of the worker also writes the
audit, which hashes every pixel and is off in ordinary runs.

Saving: how long training waits for a checkpoint that is written behind it, and for the same one (hashed, flushed, read back)
written in line; and for `torch.save` of the same tensors, which does none of that. Beside it what the writing costs the steps
that go on meanwhile: the time of a block with a save at its start over that of one without.
One worker on a CPU; several workers or a GPU are not measured here.
"""

import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))

import torch
from presets import DINOV2

from raydino.curation.synthetic import write_builtin
from raydino.launch.checks.facts import random_batch
from raydino.launch.cluster import ClusterConfig, worker_environment
from raydino.launch.engine import trainer
from raydino.launch.engine.connect import start_ray
from raydino.launch.job import Job
from raydino.launch.workers.worker import build_loop
from raydino.recipe import Recipe
from raydino.shards.reader import open_collection
from raydino.tracking.run import LOSS_TOTAL
from raydino.train import checkpoint as checkpoints
from raydino.train.saving import Saver
from raydino.train.steps import Loop, train_step, training_steps
from raydino.views import Batch

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "orchestration.json"
GOALS = {"step": 1.02, "stall": 0.1}
IMAGES, STEPS, BLOCKS, WARM = 16, 6, 24, 2  # of a batch, of a block; blocks a side, of which the first are not counted
CLUSTER = ClusterConfig(threads=1)
SAVES, SAVE_STEPS = 5, 14  # rounds, and steps that outlast the writing


def recipe_of() -> Recipe:
    """The laptop's, with a small batch, so that what does not grow with it shows."""
    changes = {"global_batch": IMAGES, "lanes": 4, "steps": BLOCKS * STEPS + 1, "data.window": 32, "evals": {}}
    return DINOV2["laptop"].override(
        {**changes, "cadence": {"log": 1, "evaluate": 0, "checkpoint": 0, "pictures": False}}
    )


class Turns:
    """Batches in blocks, each when it is this side's turn; how long the consumer had a block in hand is written down."""

    starved = 0.0

    def __init__(
        self, folder: Path, recipe: Recipe, *, side: int, before: Callable[[int], object] = lambda _: None
    ) -> None:
        self._folder, self._side, self._before = folder, side, before
        self._first, self._step, self._began = random_batch(recipe, recipe.global_batch), 0, 0.0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._step % STEPS == 0:
            block = self._step // STEPS
            if block:
                self._pass_on(2 * (block - 1) + self._side + 1)
            if block == BLOCKS:
                raise StopIteration
            while self._turn() != 2 * block + self._side:
                time.sleep(0.002)
            self._before(block)
            self._began = time.perf_counter()
        self._step += 1
        return replace(self._first, step=self._step - 1)

    def close(self) -> None:
        """Nothing runs ahead."""

    def _turn(self) -> int:
        with contextlib.suppress(ValueError, FileNotFoundError):
            return int((self._folder / "turn").read_text())
        return 0 if not (self._folder / "turn").exists() else -1

    def _pass_on(self, turn: int) -> None:
        took = time.perf_counter() - self._began
        with (self._folder / f"side-{self._side}.jsonl").open("a") as table:
            table.write(json.dumps(took) + "\n")
        (self._folder / "turn.part").write_text(str(turn))
        (self._folder / "turn.part").rename(self._folder / "turn")


def plain(folder: Path) -> None:
    """The bare loop."""
    recipe = recipe_of()
    loop = build_loop(recipe, CLUSTER, torch.device("cpu"))
    losses = [float(report.metrics[LOSS_TOTAL]) for report in training_steps(loop, Turns(folder, recipe, side=0))]
    (folder / "losses.json").write_text(json.dumps(losses))


def worker_on_turns(folder: str) -> Callable[[dict[str, Any]], None]:
    """The whole worker, fed block by block; what Ray Train is to run."""
    batches = Turns

    def run(config: dict[str, Any]) -> None:
        from raydino.launch.workers import audit, worker

        witnesses: list[audit.Audit] = []

        def witness(*arguments: Any, **options: Any) -> audit.Audit:
            witnesses.append(audit.Audit(*arguments, **options))
            return witnesses[0]

        def switch(block: int) -> None:
            if witnesses:
                witnesses[0]._folder = f"{folder}/audit" if block % 2 else ""

        class Module:
            """`audit` as the worker knows it."""

            FOLDER, Audit = f"{folder}/audit", staticmethod(witness)

        job = config["job"]
        worker.audit = Module  # type: ignore[assignment]
        worker.batches = lambda *_, **__: batches(Path(folder), job.recipe, side=1, before=switch)  # type: ignore[assignment]
        worker.train_worker(job, None)

    return run


def steps(folder: Path) -> dict[str, Any]:
    """Seconds of the blocks of both sides, the worker's with and without audit."""
    images, turns = folder / "images", folder / "turns"
    write_builtin(str(images), train=240, test=60)
    turns.mkdir()
    run_dir = folder / "run"
    run_dir.mkdir()
    digest = open_collection(str(images), split="train").manifest.digest
    job = Job(recipe_of(), CLUSTER.override({"storage": str(folder)}), run_dir, str(images), digest, "", None)
    trainer._train_worker = worker_on_turns(str(turns))
    alike = {**os.environ, **worker_environment(CLUSTER.threads)}  # nothing but Ray Train and the worker is to differ
    bare = subprocess.Popen([sys.executable, "-W", "ignore", __file__, "plain", str(turns)], env=alike)
    try:
        with start_ray(CLUSTER):
            trainer.fit(job)
        bare.wait(60)
    finally:
        bare.kill()
    sides = [[json.loads(line) for line in (turns / f"side-{side}.jsonl").read_text().splitlines()] for side in (0, 1)]
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    mine = [line[LOSS_TOTAL] for line in lines if LOSS_TOTAL in line]
    if mine != json.loads((turns / "losses.json").read_text())[: len(mine)] or len(mine) < BLOCKS * STEPS:
        sys.exit("the sides do not train alike: their losses differ")
    found: dict[str, Any] = {"seconds_a_step": round(statistics.median(sides[0][WARM:]) / STEPS, 4)}
    for name, odd in (("worker", 0), ("worker_with_audit", 1)):
        ratios = sorted(sides[1][n] / sides[0][n] for n in range(WARM, BLOCKS) if n % 2 == odd)
        found[name] = {
            "ratio": round(statistics.median(ratios), 4),
            "spread": [round(ratios[1], 4), round(ratios[-2], 4)],
        }
    return found


def saving(folder: Path) -> dict[str, Any]:
    """What training waits for a checkpoint, and what a block of steps takes with one."""
    recipe = DINOV2["vits16"].override(
        {
            "global_batch": 2,
            "lanes": 2,
            "method": {
                "global_crops": {"size": 64},
                "local_crops": {"size": 32, "count": 2},
                "head": {"prototypes": 8192},
            },
        }
    )
    loop, batch = build_loop(recipe, CLUSTER, torch.device("cpu")), random_batch(recipe, recipe.global_batch)
    saver = Saver(folder / "checkpoints", keep=2, limit=1)

    def state() -> dict[str, Any]:
        return {"model": loop.method.state_dict(), "optimizer": checkpoints.optimizer_tensors(loop.optimizer)}

    def behind(number: int) -> None:
        saver.save(number, **state(), meta={})

    def in_line(number: int) -> None:
        behind(number)
        saver.wait()

    saves: dict[str, Callable[[int], object]] = {
        "none": lambda _: None,
        "behind": behind,
        "in_line": in_line,
        "torch_save": lambda _: torch.save(state(), folder / "plain.pt"),
    }
    waited: dict[str, list[float]] = {side: [] for side in saves}
    blocks: dict[str, list[float]] = {side: [] for side in saves}
    block(loop, batch, lambda: behind(1))  # memory is found, and the optimiser has its state
    saver.wait()
    for number in range(SAVES):
        for place, side in enumerate(list(saves) if number % 2 else list(saves)[::-1]):
            step = 2 + number * len(saves) + place
            stall, whole = block(loop, batch, lambda side=side, step=step: saves[side](step))
            waited[side].append(stall)
            blocks[side].append(whole)
            if side == "behind" and not saver.poll():
                sys.exit("the checkpoint was not written within the block; raise SAVE_STEPS")
    size = sum(tensor.numel() * tensor.element_size() for part in state().values() for tensor in part.values())
    each = sorted(ours / other for ours, other in zip(waited["behind"], waited["in_line"], strict=True))
    none = statistics.median(blocks["none"])
    return {
        "state_mb": round(size / 2**20),
        "seconds_a_step": round(none / SAVE_STEPS, 4),
        "ratio": round(statistics.median(each), 3),
        "spread": [round(each[0], 3), round(each[-1], 3)],
        "ratio_is": "seconds that training waits for a save behind it, over those of the same save in line",
        "waited_s": {side: round(statistics.median(seconds), 4) for side, seconds in waited.items()},
        "block_with_over_without": {
            side: round(statistics.median(seconds) / none, 3) for side, seconds in blocks.items() if side != "none"
        },
        "steps_in_a_block": SAVE_STEPS,
    }


def block(loop: Loop, batch: Batch, save: Callable[[], object]) -> tuple[float, float]:
    """Seconds of a save, and of it and the steps after it."""
    began = time.perf_counter()
    save()
    saved = time.perf_counter()
    for _ in range(SAVE_STEPS):
        train_step(loop, batch)
    return saved - began, time.perf_counter() - began


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        of_steps = steps(Path(scratch))
        print(json.dumps(of_steps, indent=1), flush=True)
        of_saving = saving(Path(scratch))
    result = {
        "name": "orchestration",
        "device": "CPU, one worker, one thread, shared with other programs",
        "ratio": of_steps["worker"]["ratio"],
        "spread": of_steps["worker"]["spread"],
        "ratio_is": "seconds of a step, the worker under Ray Train over the bare loop; second least and most of the blocks",
        "goal": f"<= {GOALS['step']}; waiting for a save <= {GOALS['stall']} of the same in line",
        "limit_share": round(1 / of_steps["worker"]["ratio"], 4),
        "command": "python benchmarks/orchestration.py",
        "steps": of_steps,
        "saving": of_saving,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    met = result["ratio"] <= GOALS["step"] and of_saving["ratio"] <= GOALS["stall"]
    print("goals met" if met else "goals MISSED")
    sys.exit(not met or math.isnan(result["ratio"]))


if __name__ == "__main__":
    if sys.argv[1:2] == ["plain"]:
        plain(Path(sys.argv[2]))
    else:
        main()
