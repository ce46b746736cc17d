"""What every rank saw and what came of it, step by step: the evidence by which the fault suite compares two runs.

On only where RAYDINO_AUDIT names a folder. Each rank appends to rank-R.jsonl there: a line {"begin": step, ...} when a worker
starts or restarts, and a line per step. Pixels are hashed per image, and the loss is kept bit for bit, so that two runs are the
same if and only if their lines are; slots are global, so that runs on other numbers of workers can be compared too (`merged`).
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from raydino.data.plan import Plan
from raydino.tracking.run import LOSS_TOTAL
from raydino.train.steps import StepReport
from raydino.views import Batch

FOLDER = os.environ.get("RAYDINO_AUDIT", "")


class Audit:
    """One rank's lines; without a folder nothing is hashed or written."""

    def __init__(self, folder: str | Path, plan: Plan, *, rank: int, world: int, start: int) -> None:
        self._folder, self._plan, self._rank, self._world = folder, plan, rank, world
        self._seen: dict[int, dict[str, Any]] = {}
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self._write({"begin": start, "rank": rank, "world": world, "pid": os.getpid()})

    def batches(self, stream: Iterable[Batch]) -> Iterator[Batch]:
        """The batches of `stream`, each noted on its way."""
        for batch in stream:
            if self._folder:
                self._seen[batch.step] = line_of(batch, self._plan, rank=self._rank, world=self._world)
            yield batch

    def step(self, report: StepReport) -> None:
        """Write the line of a finished step."""
        if self._folder:
            loss = float(report.metrics[LOSS_TOTAL]).hex()
            self._write(
                {**self._seen.pop(report.step), "loss": loss, "skipped": report.skipped is not None, "pid": os.getpid()}
            )

    def steps(self, reports: Iterable[StepReport]) -> Iterator[StepReport]:
        """The reports, each written down on its way."""
        for report in reports:
            self.step(report)
            yield report

    def _write(self, line: dict[str, Any]) -> None:
        with Path(self._folder, f"rank-{self._rank}.jsonl").open(
            "a"
        ) as table:  # closed each time: a kill loses no line
            table.write(json.dumps(line) + "\n")


def line_of(batch: Batch, plan: Plan, *, rank: int, world: int) -> dict[str, Any]:
    """A batch as data: its place, and of each image the slot, the id and a hash of its crops and masks."""
    owned = plan.owned_lanes(rank=rank, world=world)
    return {
        "epoch": batch.step // plan.steps_per_epoch,
        "step": batch.step,
        "slots": [turn * plan.lanes + lane for turn in range(plan.per_lane) for lane in owned],
        "ids": [sample.hex() for sample in batch.ids],
        "pixels": [_pixels(batch, number) for number in range(batch.images)],
    }


def read(folder: str | Path, rank: int) -> list[dict[str, Any]]:
    """All lines of a rank, beginnings included, in the order in which they were written."""
    return [json.loads(line) for line in Path(folder, f"rank-{rank}.jsonl").read_text().splitlines()]


def effective(lines: Iterable[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """The steps that count, by number: those that a restart went back behind were undone, and the later line replaces them."""
    steps: dict[int, dict[str, Any]] = {}
    for line in lines:
        if "begin" in line:
            steps = {step: kept for step, kept in steps.items() if step < line["begin"]}
        else:
            steps[line["step"]] = line
    return steps


def merged(ranks: Iterable[dict[str, Any]]) -> list[tuple[int, str, str]]:
    """The lines of all ranks for one step as (slot, id, pixels), ascending: the same for every number of workers."""
    return sorted(image for line in ranks for image in zip(line["slots"], line["ids"], line["pixels"], strict=True))


def _pixels(batch: Batch, number: int) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(batch.crops):
        digest.update(batch.crops[name][:, number].contiguous().numpy().tobytes())
        if batch.colours is not None:
            digest.update(batch.colours[name][:, number].contiguous().numpy().tobytes())
    if batch.masks is not None:
        digest.update(batch.masks[:, number].contiguous().numpy().tobytes())
    return digest.hexdigest()
