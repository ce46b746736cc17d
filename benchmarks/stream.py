"""Our stream against torch's DataLoader: the same crops of the same photographs for a consumer that does nothing.

    python benchmarks/stream.py [--crops fast] [--rounds 4]        # a quarter of an hour on two cores

Ours reads shards by Ray Data and cuts in threads of this process (`threads`, as in the first seconds of a run), in processes
beside it (`worker`, as later; started at once here), or in Ray's tasks (`cluster`). The peer is written as well as we know how:
each worker reads row groups of its own from the same shards, by the same reader, and cuts them in place into whole batches, which
it hands over in shared memory; as many workers as cores, kept between passes. Pixels of all sides are compared first with crops
cut one by one. Sides take turns; each pass starts anew, on a Ray that runs and workers that live. Timed are the first batch, then
a whole pass over the images once as many batches as may lie ready have been taken, so that ours reads as much as it uses.
Processor time is that of all processes of a side.

With a consumer that takes a fixed time for a step, longer than a batch takes to make, the share of the time it waits is told.
Real images are looked for in RAYDINO_DATA, else in ../shared/data.
"""

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from raydino.allocator import keep_freed_memory
from raydino.data import cutters
from raydino.data.batches import batches
from raydino.data.crops import Cropper
from raydino.data.decode import decode
from raydino.data.plan import Plan
from raydino.keyed import generator
from raydino.launch.cluster import ClusterConfig
from raydino.launch.engine.connect import start_ray
from raydino.shards.reader import Collection, open_collection
from raydino.views import Crops, Views

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
GOALS = {"steady": 0.95, "first_batch": 3.0, "stall": 0.01}
COPIES, GROUP, WINDOW = 10, 64, 256  # of 430 photographs, under ids of their own; rows of a row group, window
BATCH, BATCHES, AHEAD = 64, 67, 24  # images of a batch; batches timed; taken before: processes start, some lie ready
TOTAL = AHEAD + BATCHES + AHEAD  # of a pass of the DataLoader: until the last timed batch, no worker runs dry
STEP = 1.5  # a fixed step takes so many times as long as the peer needs to make a batch
CORES = len(os.sched_getaffinity(0))
SIDES = ("loader", "worker", "threads", "cluster")
HOURS = 1e6  # s: no processes


Cut = tuple[dict[str, torch.Tensor], list[tuple[int, bytes]]]


@dataclass(frozen=True)
class Pass:
    """What one pass of a side took."""

    first: float
    """Seconds to the first batch."""
    rate: float
    """Images per second after that."""
    parts: dict[str, float]
    """Milliseconds of processor time an image, by `processor`'s kinds."""

    @property
    def cpu(self) -> float:
        """Milliseconds of processor time an image, over all processes of the side."""
        return self.parts["here"] + self.parts["workers"] + self.parts["daemons"]


class Groups(IterableDataset[Cut]):
    """Whole batches, from the row groups that fall to a worker."""

    def __init__(self, collection: Collection, views: Views) -> None:
        self._collection, self._cropper = collection, Cropper(views, seed=0)

    def __iter__(self) -> Iterator[Cut]:
        worker, workers = get_worker_info().id, get_worker_info().num_workers  # type: ignore[union-attr]
        images = self._images(worker, workers)
        for _ in range(-(-TOTAL // workers)):
            crops = {name: np.empty(shape, np.uint8) for name, shape in self._cropper.views.shapes(BATCH).items()}
            seen = []
            for column, (epoch, sample, data) in enumerate(itertools.islice(images, BATCH)):
                out = {name: array[:, column] for name, array in crops.items()}
                self._cropper.cut(
                    decode(data, channels=3, least=self._cropper.least), epoch=epoch, sample=sample, out=out
                )
                seen.append((epoch, sample))
            yield {name: torch.from_numpy(array) for name, array in crops.items()}, seen

    def _images(self, worker: int, workers: int) -> Iterator[tuple[int, bytes, bytes]]:
        """Epoch, id and bytes: row groups in an order drawn anew for each epoch, and the rows of each."""
        mine = np.arange(worker, len(self._collection.row_groups), workers)
        for epoch in itertools.count():
            for group in generator(0, "loader", epoch).permutation(mine):
                rows = self._collection.read(int(group))
                for row in generator(0, "loader", epoch, int(group)).permutation(rows.num_rows).tolist():
                    yield epoch, rows["id"][row].as_py(), rows["bytes"][row].as_py()


class Sides:
    """Passes of each side."""

    def __init__(self, folder: Path, views: Views) -> None:
        self.collection, self.views = open_collection(str(folder)), views
        # Cut, larger windows would not fit into the store of a Ray started here, and preflight would refuse the run.
        rows = {"worker": WINDOW, "threads": WINDOW, "cluster": GROUP}
        self.plans = {
            side: Plan(self.collection.row_groups, seed=0, global_batch=BATCH, lanes=4, window=window)
            for side, window in rows.items()
        }
        self._loader = DataLoader(
            Groups(self.collection, views),
            batch_size=None,
            num_workers=CORES,
            persistent_workers=True,
            # Forked, workers would share this process's memory with Ray's threads in the middle of something.
            multiprocessing_context="spawn",
        )

    def stream(self, side: str) -> Generator[Cut, None, None]:
        """A pass: crops by group, and epoch and id of each image."""
        if side == "loader":
            yield from self._loader
            return
        plan = self.plans[side]
        cutters.PATIENCE = HOURS if side == "threads" else 0.0
        made = batches(
            self.collection,
            plan,
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
            for batch in itertools.islice(made, AHEAD + BATCHES):
                yield batch.crops, [(batch.step // plan.steps_per_epoch, sample) for sample in batch.ids]

    def require_equal(self) -> None:
        """Leave with an error unless all sides cut the pixels that stand for an image and an epoch."""
        tables = [self.collection.read(group) for group in range(len(self.collection.row_groups))]
        rows = pa.concat_tables(tables).select(["id", "bytes"]).to_pydict()
        encoded, cropper = dict(zip(rows["id"], rows["bytes"], strict=True)), Cropper(self.views, seed=0)
        for side in SIDES:
            whole = side == "loader"  # its workers live on
            with closing(self.stream(side)) as made:
                for number, (crops, seen) in enumerate(made if whole else itertools.islice(made, 3)):
                    for column in range(0, BATCH, 7) if number < 3 else ():
                        epoch, sample = seen[column]
                        image = decode(encoded[sample], channels=3, least=cropper.least)
                        for name, crop in cropper(image, epoch=epoch, sample=sample).items():
                            if not np.array_equal(crop, crops[name][:, column].numpy()):
                                sys.exit(f"{side}, batch {number}, image {column}, {name}: other pixels")


def processor(side: str) -> dict[str, float]:
    """Processor seconds so far of all processes of a side: this one (of it, Ray Data's scheduler), workers, Ray's daemons."""
    me = psutil.Process()
    used = {"here": 0.0, "scheduler": 0.0, "workers": 0.0, "daemons": 0.0}
    times = me.cpu_times()
    used["here"] = times.user + times.system
    schedulers = {t.native_id for t in threading.enumerate() if t.name.startswith("StreamingExecutor")}
    used["scheduler"] = sum(t.user_time + t.system_time for t in me.threads() if t.id in schedulers)
    for child in me.children():
        of_loader = "spawn_main" in " ".join(
            child.cmdline()
        )  # Ray's daemons, and by them all its workers, are children too
        if of_loader != (side == "loader"):
            continue
        for process in (child, *child.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                times, words = process.cpu_times(), " ".join(process.cmdline())
                cuts_or_reads = of_loader or words.startswith("ray::") or cutters.MODULE in words
                kind = "workers" if cuts_or_reads else "daemons"
                used[kind] += times.user + times.system
    return used


def one_pass(sides: Sides, side: str) -> Pass:
    began = time.perf_counter()
    marks: list[tuple[float, dict[str, float]]] = []
    for number, _ in enumerate(sides.stream(side)):
        if number in (0, AHEAD - 1, AHEAD + BATCHES - 1):
            marks.append((time.perf_counter(), processor(side)))
    (first, _), (start, before), (end, after) = marks
    images = BATCH * BATCHES
    return Pass(
        first - began, images / (end - start), {kind: 1000 * (after[kind] - before[kind]) / images for kind in after}
    )


def stall(crops: Iterable[Any], seconds: float) -> float:
    """Share of the time that a consumer waits whose step takes `seconds`, once AHEAD batches were taken."""
    source = iter(crops)
    for _ in range(AHEAD):
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
    options.add_argument("--rounds", type=int, default=4)
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
    keep_freed_memory()  # as a worker on CPUs does
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
        stalls = {side: stall(sides.stream(side), seconds) for side in SIDES}
    report(given.crops, found, stalls, seconds)


def report(crops: str, found: dict[str, list[Pass]], stalls: dict[str, float], seconds: float) -> None:
    """Print and save the sides, and ours over the peer's."""
    figures = {
        side: {
            "images_per_s": round(statistics.median(one.rate for one in passes), 1),
            "cpu_ms_per_image": round(statistics.median(one.cpu for one in passes), 2),
            "cpu_parts": {
                kind: round(statistics.median(one.parts[kind] for one in passes), 2) for kind in passes[0].parts
            },
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
        "limit_share_is": "processor time an image, the DataLoader's over ours",
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
