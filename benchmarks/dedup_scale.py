"""How the search for perceptual duplicates grows: 10 thousand, 100 thousand and a million rows on two cores; and what a
fingerprint of a JPEG costs.

    python benchmarks/dedup_scale.py            # half an hour of two cores and 3 GB in TMPDIR
    python benchmarks/dedup_scale.py --most 2   # two pieces of each search's queries, evenly chosen, stand for all: ten minutes

The rows are synthetic (`synthetic_rows.py` says how), since nobody keeps a million photographs beside a benchmark. The same
search over cifar10's real rows stands beside them, always whole. Real images are in RAYDINO_DATA, else in ../shared/data.

Each search runs in a process of its own, which reports its CPU time, wall time and peak memory. `halved_cpu_seconds` is the CPU
time of both threads by two, so about the wall time of two cores without other work. With `--most`, pairs are those of the pieces
done; recall is always of all planted copies.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydino.curation import duplicates
from raydino.curation.features import features, measured
from raydino.curation.fingerprint import PICTURE, fingerprint
from raydino.curation.spread import here
from raydino.curation.table import Table
from raydino.data.decode import decode
from raydino.shards.reader import open_collection
from synthetic_rows import REJECTED, Pictures, made  # beside this file

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "dedup_scale.json"
DATA = Path(os.environ.get("RAYDINO_DATA") or ROOT.parent / "shared" / "data")
SIZES = (10_000, 100_000, 1_000_000)
THREADS = 2
GOALS = {"seconds": 600, "bytes": 4 << 30, "images_a_second": 600, "recall": 0.99}


def table_in(folder: Path) -> Table:
    return Table(**{field.name: np.load(folder / f"{field.name}.npy") for field in fields(Table)})


def searched(folder: Path, most: int, *, cells: bool) -> dict[str, Any]:
    """One search in this process: stages in seconds of CPU, memory, and what was found; `most` pieces of the queries are done,
    evenly chosen, and their time is scaled to all of them.
    """
    if cells:
        duplicates.EXACT = 0
    table, out = table_in(folder), {}
    loaded = peak()

    def spread(piece: Any, count: int):
        out["cells_cpu_seconds"] = time.process_time() - clock
        start = time.process_time()
        list(piece(count))  # an empty piece: it builds the index
        out["index_cpu_seconds"] = time.process_time() - start
        chosen = np.linspace(0, count - 1, min(most, count)).round().astype(int).tolist()
        start, wall = time.process_time(), time.perf_counter()
        yield from here(THREADS)(lambda number: piece(chosen[number]), len(chosen))
        out["compare_cpu_seconds"] = (time.process_time() - start) * count / len(chosen)
        out["compare_wall_seconds_measured"] = time.perf_counter() - wall
        out.update(pieces=count, pieces_measured=len(chosen), hashes=len(piece.targets), queries=len(piece.queries))
        out["cells"] = 0 if piece.cells is None else len(piece.cells)
        out["peak_bytes"] = peak()
        if (folder / "source.npy").exists():
            out["copies"] = recall(piece, table, np.load(folder / "source.npy"))

    clock = time.process_time()
    pairs = duplicates.search(table, None, radius=duplicates.RADIUS, spread=spread)
    stages = ("cells_cpu_seconds", "index_cpu_seconds", "compare_cpu_seconds")
    seconds = sum(float(out[name]) for name in stages)
    return {
        "rows": len(table),
        "cpu_seconds": seconds,
        "halved_cpu_seconds": seconds / THREADS,
        "loaded_bytes": loaded,
        "pairs": len(pairs),
        "joined": len(pairs.joined(duplicates.RADIUS)),
        **out,
    }


def recall(piece: duplicates._Search, table: Table, source: NDArray[np.int64]) -> dict[str, Any]:
    """Of the copies that lie within the radius, by distances computed here, how many the index meets, asked from both sides."""
    copies = np.arange(len(table) - len(source), len(table))
    ways, met = [], np.zeros(len(source), bool)
    for asked, sought in ((source, copies), (copies, source)):
        apart = np.bitwise_count(table.hashes[asked][:, [0, PICTURE], None] ^ table.hashes[sought][:, None]).sum(3, int)
        apart[table.bordered[asked] < 0, 1] = apart[table.bordered[sought] < 0, :, PICTURE] = 256
        ways.append(apart.min((1, 2)))
        for key in (0, PICTURE):
            rows = np.flatnonzero((key == 0) | (table.bordered[asked] >= 0))
            queries = np.ascontiguousarray(table.hashes[asked[rows], key])
            limits, _, found = piece._found.range_search(queries, piece.radius + 1)  # pyright: ignore
            rows = np.repeat(rows, np.diff(limits.astype(np.int64)))
            met[rows[piece.targets[found] == sought[rows]]] = True
    least = np.minimum(*ways)
    edges = (0, 9, 17, 25, 33, 41, piece.radius + 1)
    bins = {
        f"{low} to {high - 1} bits": [int(inside.sum()), float(met[inside].mean())]
        for low, high in zip(edges, edges[1:], strict=False)
        if (inside := (least >= low) & (least < high)).any()
    }
    near = least <= piece.radius
    return {"within_radius": int(near.sum()), "recall": float(met[near].mean()), "count_and_recall": bins}


def peak() -> int:
    """Bytes of memory this process has held at most; getrusage would count what its parent held when it was started."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def rate() -> dict[str, float]:
    """Images a second of one thread, by its CPU time, over the photographs of 500 × 375 or 375 × 500."""
    collection = open_collection(str(DATA / "imagenet-sample"))
    data: list[Any] = [
        one for group in range(len(collection.row_groups)) for one in collection.read(group)["bytes"].to_pylist()
    ]
    data = [one for one in data if sorted(decode(one).shape[:2]) == [375, 500]]
    pixels = [decode(one) for one in data]
    passes = {"both": [], "decode": [], "fingerprint": []}
    for _ in range(7):
        passes["both"].append(seconds(measured, data))
        passes["decode"].append(seconds(decode, data))
        passes["fingerprint"].append(seconds(fingerprint, pixels))
    return {
        "images": len(data),
        "images_a_second_best": 1 / min(passes["both"]),
        "images_a_second_median": 1 / median(passes["both"]),
        "decode_share": median(passes["decode"]) / median(passes["both"]),
        "decode_ms": 1000 * median(passes["decode"]),
        "fingerprint_ms": 1000 * median(passes["fingerprint"]),
    }


def seconds(work: Callable[[Any], object], given: list[Any]) -> float:
    """CPU time of this thread for each."""
    start = time.thread_time()
    for one in given:
        work(one)
    return (time.thread_time() - start) / len(given)


def in_a_process(folder: Path, most: int, *, cells: bool = False) -> dict[str, Any]:
    """`searched` in a process of its own, whose threads sleep while they wait: other work may want the cores."""
    command = [sys.executable, __file__, "--folder", str(folder), "--most", str(most), *["--cells"] * cells]
    env = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    done = json.loads(subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout)
    print(json.dumps({"folder": folder.name, **done}), flush=True)
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--most", type=int, default=1 << 30, help="pieces of 16,384 queries done of each search")
    parser.add_argument("--work", type=Path, help="where the rows lie or are made; default a temporary folder")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cells", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.folder:
        print(json.dumps(searched(given.folder, given.most, cells=given.cells)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        save(measure(given.work or Path(temporary), given.most), given.most)


def measure(work: Path, most: int) -> dict[str, Any]:
    """All figures; tables that lie in `work` from an earlier run are taken as they are."""
    out: dict[str, Any] = {"load_before": os.getloadavg()[0], "fingerprints": rate()}
    print(json.dumps(out), flush=True)
    real, thumbs = {}, []
    for name, split in (("cifar10", "train"), ("cifar10", "test"), ("caltech101", "train"), ("imagenet-sample", None)):
        folder = work / f"{name}-{split}"
        if not folder.exists():
            collection = open_collection(str(DATA / name), split=split)
            table = features(collection, name, keep_in=None, threads=THREADS, progress=lambda *_: None).table
            folder.mkdir()
            for field in fields(Table):
                np.save(folder / f"{field.name}.npy", getattr(table, field.name))
        real[folder.name] = folder
        if folder.name != "cifar10-train":
            thumbs.append(np.load(folder / "thumbs.npy"))
    out["real"] = {name: in_a_process(real[name], 1 << 30) for name in ("cifar10-test", "cifar10-train")}
    exact = out["real"]["cifar10-train"]
    out["rejected_a_pair"] = {"cifar10": 2 * (exact["pairs"] - exact["joined"]) / exact["rows"] ** 2, "made": REJECTED}
    out["synthetic"] = []
    for rows in SIZES:
        if not (folder := work / f"rows{rows}").exists():
            folder.mkdir()
            made(folder, Pictures(np.concatenate(thumbs)), rows)
        out["synthetic"].append(in_a_process(folder, most))
        if rows == 100_000:  # by cells too, as if it were larger
            out["by_cells_100000"] = in_a_process(folder, most, cells=True)
    return out


def save(figures: dict, most: int) -> None:
    """The figures as JSON; `ratio` is the goal over the time of a million rows."""
    small, middle, large = figures["synthetic"]
    growth = {
        "exponent_of_time": {
            "10k to 100k, all compared": exponent(small, middle, "cpu_seconds"),
            "100k to 1M, by cells": exponent(figures["by_cells_100000"], large, "cpu_seconds"),
        },
        "bytes_a_row": (large["peak_bytes"] - small["peak_bytes"]) / (large["rows"] - small["rows"]),
    }
    reached = {
        "seconds": large["halved_cpu_seconds"] <= GOALS["seconds"],
        "bytes": large["peak_bytes"] <= GOALS["bytes"],
        "images_a_second": figures["fingerprints"]["images_a_second_median"] >= GOALS["images_a_second"],
        "recall": large["copies"]["recall"] >= GOALS["recall"],
    }
    ratio = GOALS["seconds"] / large["halved_cpu_seconds"]
    result = {
        "name": "dedup_scale",
        "device": f"{THREADS} cores, shared with other work",
        "ratio": round(ratio, 3),
        "spread": None,
        "goal": "10⁶ rows in 600 s and 4 GiB on two cores, 99 % of planted copies met; 600 images of 500 × 375 a second and core",
        "missed": [name for name, done in reached.items() if not done],
        "limit_share": round(large["copies"]["recall"], 4),
        "command": "python benchmarks/dedup_scale.py" + (f" --most {most}" if most < 1 << 30 else ""),
        "growth": growth,
        **figures,
    }
    RESULT.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    print(f"{RESULT.relative_to(ROOT)}; goals missed: {', '.join(result['missed']) or 'none'}; {growth}")


def exponent(one: dict, other: dict, name: str) -> float:
    """Of the growth between two sizes."""
    return float(np.log(other[name] / one[name]) / np.log(other["rows"] / one["rows"]))


if __name__ == "__main__":
    main()
