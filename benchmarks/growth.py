"""How the cost of a start grows with the collection: shard files up to 100,000, samples up to a billion.

    python benchmarks/growth.py        # about two minutes

Files: seconds and memory to list a curated folder, read its manifest and plan an epoch (what a driver and every worker do before
anything else), what a task is sent of it to read a window, and what a process does with it at its first and at its next window.
The shards are empty files of the right size: nothing of this may open one. A folder is on the local disk; object storage lists
1,000 names a request instead.

Samples: seconds and memory of a plan of 64-row groups, its first window and the next epoch's. Memory is resident, each case in a
process of its own, least of three.
"""

import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RESULT = Path(__file__).resolve().parent / "results" / "growth.json"
FILES, SAMPLES = (10, 1_000, 100_000), (10**6, 10**8, 10**9)
GROUPS, ROWS = 40, 64  # row groups of a shard, rows of a group: 256 MB of photographs
GOAL = 300  # bytes a row group that a plan may take at most: it holds no row


def made(folder: Path, files: int) -> None:
    """A folder with a manifest of `files` shards, and empty files in their place."""
    from raydino.shards.manifest import Manifest, ShardFile
    from raydino.shards.schema import Folder

    (folder / "data").mkdir()
    names = [f"data/train-{number:06d}-of-{files:06d}.parquet" for number in range(files)]
    for name in names:
        (folder / name).touch()
    shards = (
        ShardFile(path=name, split="train", rows=GROUPS * ROWS, row_groups=(ROWS,) * GROUPS, bytes=0, digest="0" * 64)
        for name in names
    )
    Manifest(files=tuple(shards)).save(Folder(folder))


def opening(folder: Path) -> dict[str, float]:
    """What a start does with the folder, in this process."""
    import ray

    from raydino.data.fetch import Fetch
    from raydino.data.plan import Plan
    from raydino.data.stream import Lent
    from raydino.shards.reader import open_collection

    before, began = resident(), time.perf_counter()
    collection = open_collection(str(folder), split="train")
    opened = time.perf_counter()
    plan = Plan(collection.row_groups, seed=0, global_batch=1024, lanes=8, window=1024)
    next(plan.windows(rank=0, world=1, start_step=0, steps=10))
    planned = time.perf_counter()
    found = {"open_s": opened - began, "plan_s": planned - opened, "memory_mb": (resident() - before) / 2**20}
    began = time.perf_counter()
    collection.manifest.digest  # noqa: B018 the run's identity
    found["digest_s"] = time.perf_counter() - began
    whole = pickle.dumps(collection)
    began = time.perf_counter()
    pickle.loads(whole)._place(0)  # noqa: S301 what a process does once
    found |= {"first_window_s": time.perf_counter() - began, "manifest_mb": len(whole) / 2**20}
    ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level="error", log_to_driver=False)
    lent = ray.cloudpickle.dumps(Fetch(Lent(collection), None))
    began = time.perf_counter()
    ray.cloudpickle.loads(lent)
    found |= {"next_window_s": time.perf_counter() - began, "task_bytes": float(len(lent))}
    ray.shutdown()
    return found


def planning(samples: int) -> dict[str, float]:
    """A plan over so many samples, in this process."""
    import numpy as np

    from raydino.data.plan import Plan

    groups = np.full(samples // ROWS, ROWS)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is forgotten: that of the imports, and of who started this
    before, began = resident(), time.perf_counter()
    plan = Plan(groups, seed=0, global_batch=1024, lanes=8, window=1024)
    step = plan.steps_per_epoch
    plan.rank_slots(0, rank=0, world=8)
    first = time.perf_counter()
    plan.rank_slots(step, rank=0, world=8)
    second, after = time.perf_counter(), resident()
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    peak = int(line.split()[1]) * 2**10
    return {
        "first_step_s": first - began,
        "next_epoch_s": second - first,
        "memory_mb": (after - before) / 2**20,
        "peak_mb": (peak - before) / 2**20,
        "bytes_per_row_group": (peak - before) / len(groups),
    }


def resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def alone(kind: str, argument: object) -> dict[str, float]:
    """A case in a process of its own; the least of three."""
    runs = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", __file__, kind, str(argument)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(done.stdout + done.stderr)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    return {name: round(min(run[name] for run in runs), 4) for name in runs[0]}


def main() -> None:
    by_files, by_samples = {}, {}
    for files in FILES:
        with tempfile.TemporaryDirectory() as scratch:
            made(Path(scratch), files)
            by_files[files] = alone("files", scratch)
        print(f"{files:>13,} files   {by_files[files]}", flush=True)
    for samples in SAMPLES:
        by_samples[samples] = alone("samples", samples)
        print(f"{samples:>13,} samples {by_samples[samples]}", flush=True)
    report(by_files, by_samples)


def report(by_files: dict[int, dict[str, float]], by_samples: dict[int, dict[str, float]]) -> None:
    """Save the figures; leave with 1 if a plan holds more than its row groups, or what a task is sent grows."""
    most = max(row["bytes_per_row_group"] for samples, row in by_samples.items() if samples > min(SAMPLES))
    sent = by_files[FILES[-1]]["task_bytes"] / by_files[FILES[0]]["task_bytes"]
    result: dict[str, Any] = {
        "name": "growth",
        "device": "CPU, one core used, local disk",
        "ratio": round(sent, 3),
        "ratio_is": f"bytes that a reading task is sent with {FILES[-1]:,} shards over {FILES[0]}",
        "goal": f"1.0; and at most {GOAL} bytes a row group for a plan at its peak",
        "bytes_per_row_group": most,
        "command": "python benchmarks/growth.py",
        "by_files": by_files,
        "by_samples": by_samples,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    sys.exit(bool(sent > 1.01 or most > GOAL))


if __name__ == "__main__":
    if len(sys.argv) == 3:
        kind, argument = sys.argv[1:]
        print(json.dumps(opening(Path(argument)) if kind == "files" else planning(int(argument))))
    else:
        main()
