"""Our stream against torch's DataLoader: the same crops of the same photographs for a consumer that does nothing.

    python benchmarks/stream.py [--crops fast] [--rounds 5]        # about three minutes on two cores

Ours reads shards by Ray Data and cuts in threads of this process (`threads`), or cuts in Ray's tasks (`cluster`). The peer has
the best that is known for it: the encoded images in the memory of its workers, so that it reads nothing; a whole batch for an
item, cut in place and handed over in shared memory; as many workers as cores, kept between passes. All sides follow one plan, and
batches are compared first, pixel by pixel. Sides take turns; each pass starts anew, on a Ray that runs and workers that live.
Timed are the first batch, then BATCHES batches once as many as may lie ready have been taken. Processor time is that of all
processes of a side.

With a consumer that takes a fixed time for a step, longer than a batch takes to make, the share of the time it waits is told.
Real images are looked for in RAYDINO_DATA, else in ../shared/data.
"""

import argparse
import hashlib
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, Dataset

from raydino.data.batches import batches
from raydino.data.crops import Cropper
from raydino.data.decode import decode
from raydino.data.plan import Plan
from raydino.launch.cluster import ClusterConfig
from raydino.launch.engine.connect import start_ray
from raydino.shards.reader import Collection, open_collection
from raydino.views import Crops, Views

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
GOALS = {"steady": 0.95, "first_batch": 3.0, "stall": 0.01}
BATCH, BATCHES, AHEAD = 64, 12, 8  # images of a batch; batches timed; taken before, for so many may lie ready
COPIES, GROUP = 5, 64  # of the 430 photographs, each under ids of its own; rows of a row group
STEP = 1.5  # a fixed step takes so many times as long as the peer needs to make a batch
CORES = len(os.sched_getaffinity(0))
SIDES = ("loader", "threads", "cluster")


@dataclass(frozen=True)
class Pass:
    """What one pass of a side took."""

    first: float
    """Seconds to the first batch."""
    rate: float
    """Images per second after that."""
    cpu: float
    """Milliseconds of processor time an image, over all processes of the side."""


class Held(Dataset[dict[str, torch.Tensor]]):
    """Whole batches by step, from encoded images in memory."""

    def __init__(self, collection: Collection, plan: Plan, views: Views) -> None:
        tables = [collection.read(group).select(["id", "bytes"]) for group in range(len(collection.row_groups))]
        rows = pa.concat_tables(tables).to_pydict()
        self._ids, self._bytes, self._plan, self._cropper = rows["id"], rows["bytes"], plan, Cropper(views, seed=0)

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        views, epoch = self._cropper.views, step // self._plan.steps_per_epoch
        crops = {name: np.empty(shape, np.uint8) for name, shape in views.shapes(BATCH).items()}
        for column, row in enumerate(self._plan.slots(step)):
            out = {name: array[:, column] for name, array in crops.items()}
            self._cropper.cut(decode(self._bytes[row]), epoch=epoch, sample=self._ids[row], out=out)
        return {name: torch.from_numpy(array) for name, array in crops.items()}


class Sides:
    """Passes of each side over the steps of one plan."""

    def __init__(self, folder: Path, views: Views) -> None:
        self.collection, self.views = open_collection(str(folder)), views
        self.plan = Plan(self.collection.row_groups, seed=0, global_batch=BATCH, lanes=4, window=64)
        self._steps: list[int] = []
        held = Held(self.collection, self.plan, views)
        # Forked, workers would share this process's memory with Ray's threads in the middle of something.
        self._loader = DataLoader(
            held,
            batch_size=None,
            sampler=self._steps,
            num_workers=CORES,
            persistent_workers=True,
            multiprocessing_context="spawn",
        )

    def stream(self, side: str, steps: int) -> Iterator[dict[str, torch.Tensor]]:
        """Batches of the steps 0 to `steps`."""
        if side == "loader":
            self._steps[:] = range(steps)
            yield from self._loader  # to its end: what its workers have begun they finish
            return
        made = batches(
            self.collection,
            self.plan,
            self.views,
            seed=0,
            rank=0,
            world=1,
            start_step=0,
            steps=10**6,  # it stops when closed
            max_bad=0.0,
            on_bad=print,
            decode_in="cluster" if side == "cluster" else "worker",
            threads=CORES,
        )
        with closing(made):
            yield from (batch.crops for batch in itertools.islice(made, steps))

    def require_equal(self) -> None:
        """Leave with an error unless all sides make the same batches."""
        for step, crops in enumerate(zip(*(self.stream(side, 3) for side in SIDES), strict=True)):
            for name, crop in crops[0].items():
                if not all(torch.equal(crop, other[name]) for other in crops):
                    sys.exit(f"step {step}, {name}: the sides cut different pixels")


def cpu_of(side: str) -> Callable[[], float]:
    """A clock of the processor seconds of a side: this process and Ray's, or this process and the DataLoader's."""
    me = psutil.Process()
    # Ray's daemons, and by them all its workers, are children too; the DataLoader's are Python's own.
    own = [child for child in me.children() if ("spawn_main" in " ".join(child.cmdline())) == (side == "loader")]

    def clock() -> float:
        total = 0.0
        for process in [me, *own, *(grand for child in own for grand in child.children(recursive=True))]:
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system
        return total

    return clock


def one_pass(sides: Sides, side: str) -> Pass:
    clock, began = cpu_of(side), time.perf_counter()
    marks: list[tuple[float, float]] = []
    for number, _ in enumerate(sides.stream(side, AHEAD + BATCHES + AHEAD)):
        if number in (0, AHEAD - 1, AHEAD + BATCHES - 1):
            marks.append((time.perf_counter(), clock()))
    (first, _), (start, cpu_start), (end, cpu_end) = marks
    images = BATCH * BATCHES
    return Pass(first - began, images / (end - start), 1000 * (cpu_end - cpu_start) / images)


def stall(crops: Iterable[Any], seconds: float) -> float:
    """Share of the time that a consumer waits whose step takes `seconds`, from its second batch on."""
    source = iter(crops)
    next(source)
    waited, began = 0.0, time.perf_counter()
    for _ in range(BATCHES):
        time.sleep(seconds)
        asked = time.perf_counter()
        next(source)
        waited += time.perf_counter() - asked
    share = waited / (time.perf_counter() - began)
    for _ in source:  # the DataLoader's workers finish
        pass
    return share


def repeated(images: Path, folder: Path) -> None:
    """The photographs COPIES times, in shards with ids as curate.py writes them."""
    collection = open_collection(str(images))
    rows = pa.concat_tables([collection.read(group) for group in range(len(collection.row_groups))]).to_pylist()
    folder.mkdir()
    for copy in range(COPIES):
        ids = [hashlib.sha256(row["id"] + bytes([copy])).digest()[:16] for row in rows]
        image = [{"bytes": row["bytes"], "path": row["path"]} for row in rows]
        table = pa.table({"id": pa.array(ids, pa.binary(16)), "image": image})
        pq.write_table(table, folder / f"train-{copy:05d}-of-{COPIES:05d}.parquet", row_group_size=GROUP)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--crops", choices=("exact", "fast"), default="exact")
    options.add_argument("--rounds", type=int, default=5)
    given = options.parse_args()
    data = Path(os.environ.get("RAYDINO_DATA") or ROOT.parent / "shared" / "data") / "imagenet-sample"
    views = Views(
        crops={
            "global": Crops(count=2, size=224, scale=(0.32, 1.0)),
            "local": Crops(count=8, size=96, scale=(0.05, 0.32)),
        },
        fast_crops=given.crops == "fast",
    )
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch, start_ray(ClusterConfig()):
        repeated(data, Path(scratch) / "images")
        sides = Sides(Path(scratch) / "images", views)
        sides.require_equal()
        found: dict[str, list[Pass]] = {side: [] for side in SIDES}
        for number in range(given.rounds):
            for side in SIDES if number % 2 else SIDES[::-1]:
                found[side].append(one_pass(sides, side))
                print(side, found[side][-1], flush=True)
        seconds = STEP * BATCH / statistics.median(one.rate for one in found["loader"])
        stalls = {side: stall(sides.stream(side, 1 + BATCHES), seconds) for side in SIDES}
    report(given.crops, found, stalls, seconds)


def report(crops: str, found: dict[str, list[Pass]], stalls: dict[str, float], seconds: float) -> None:
    """Print and save the sides, and ours over the peer's."""
    figures = {
        side: {
            "images_per_s": round(statistics.median(one.rate for one in passes), 1),
            "cpu_ms_per_image": round(statistics.median(one.cpu for one in passes), 2),
            "first_batch_s": round(statistics.median(one.first for one in passes), 2),
            "stall_share": round(stalls[side], 4),
        }
        for side, passes in found.items()
    }
    ratios = {}
    for side in SIDES[1:]:
        each = [one.rate / peer.rate for one, peer in zip(found[side], found["loader"], strict=True)]
        ratios[side] = [round(value, 3) for value in (statistics.median(each), min(each), max(each))]
    best = max(ratios, key=lambda side: ratios[side][0])
    result = {
        "name": f"stream_{crops}",
        "device": f"CPU, {CORES} cores, shared with other programs",
        "ratio": ratios[best][0],
        "spread": ratios[best][1:],
        "ratio_is": f"images per second, {best} over the DataLoader with {CORES} workers; least and most of the rounds",
        "goal": f">= {GOALS['steady']}; first batch <= {GOALS['first_batch']} s; stall <= {GOALS['stall']:.0%}",
        "limit_share": round(figures["loader"]["cpu_ms_per_image"] / figures[best]["cpu_ms_per_image"], 3),
        "limit_share_is": "processor time an image, the DataLoader's (no reading) over ours",
        "command": f"python benchmarks/stream.py --crops {crops}",
        "ratios": ratios,
        "fixed_step_s": round(seconds, 3),
        "sides": figures,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"stream_{crops}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    ours = figures[best]
    met = ratios[best][0] >= GOALS["steady"] and ours["first_batch_s"] <= GOALS["first_batch"]
    print("goals met" if met and ours["stall_share"] <= GOALS["stall"] else "goals MISSED")


if __name__ == "__main__":
    main()
