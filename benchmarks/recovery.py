"""Seconds from a loss to the next finished step, and what it does to the samples: raydino beside plain Ray Train.

    python benchmarks/recovery.py                # a quarter of an hour of two cores
    python benchmarks/recovery.py --repeats 3

Lost are a worker (SIGKILL), a machine (its raylet; a spare one stands by) and the whole driver with all it started (the command
is given again at once). 240 images in batches of 16 on two workers, saved every third step, each step made to last 0.3 s so
that the loss falls into the same one. Plain (plain_ray/train.py) is what Ray's guide shows: a dataset shard per worker,
torch.save in a folder that is given to ray.train.report, the saved epoch begun again after a restart. Its network and imports
are smaller than ours, so its start is not made slow; its decoding is done in Ray Data, ours in the worker.

Samples are counted over the epoch of the loss: those lost are in no update that the final weights hold, those repeated in two.
The count needs no clock; seconds need a quiet machine, so the load average stands beside them.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from plain_ray import train as plain  # beside this file
from raydino.curation.synthetic import write_builtin
from raydino.launch.cluster import QUIET, ClusterConfig
from raydino.launch.job import Job
from raydino.launch.workers import audit
from raydino.recipe import Recipe
from raydino.shards.reader import open_collection

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "recovery.json"
STRIKE = 10  # the step after which something is lost; an epoch has 15
GOALS = {"worker": 30.0, "driver": 45.0, "machine": 60.0}
LIMIT = 300.0
SIDES = ("raydino", "plain")
FIGURES = ("seconds", "steps_again", "samples_lost", "samples_repeated")


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--repeats", type=int, default=1)
    given = flags.parse_args()
    os.environ.update(QUIET)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        images = Path(scratch, "images")
        write_builtin(str(images), train=240, test=60)
        for number, what, side in product(range(given.repeats), GOALS, SIDES):
            folder = Path(scratch, f"{side}-{what}-{number}")
            folder.mkdir()
            load = round(os.getloadavg()[0], 1)  # of others; two cores are busy with the run alone
            rows.append({"side": side, "lost": what, **measure(side, what, folder, images), "load": load})
            print(json.dumps(rows[-1]), flush=True)
    save(rows)


def measure(side: str, what: str, folder: Path, images: Path) -> dict[str, Any]:
    """Lose a worker, a machine or the driver of one run, and wait for its end."""
    (folder / "faults.json").write_text(
        json.dumps([{"site": "step", "action": "sleep", "seconds": plain.PAUSE, "times": 1000, "rank": 0}])
    )
    environment = {"RAYDINO_FAULTS": str(folder / "faults.json"), "RAYDINO_AUDIT": str(folder / "audit")}
    if what == "driver":
        lost_at = lose_driver(side, folder, images, environment)
    else:
        lost_at = lose_part(side, what, folder, images, environment)
    return judged([audit.read(folder / "audit", rank) for rank in (0, 1)], *lost_at)


def lose_part(side: str, what: str, folder: Path, images: Path, environment: dict[str, str]) -> tuple[float, float]:
    """Train on a head and two more machines with room for a worker each; lose what rank 1 is."""
    import psutil
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 3, "object_store_memory": 300 * 2**20, "include_dashboard": False},
    )
    others = [cluster.add_node(num_cpus=2, object_store_memory=100 * 2**20) for _ in range(2)]
    variables = {**QUIET, **environment, "PYTHONPATH": str(ROOT / "platform"), "OMP_NUM_THREADS": "1"}
    ray.init(address=cluster.address, runtime_env={"env_vars": variables}, log_to_driver=False, logging_level="error")
    train = (lambda: train_ours(folder, images)) if side == "raydino" else (lambda: plain.train(folder, images))
    thread = threading.Thread(target=train, daemon=True)
    thread.start()
    victim = pid_at(folder, rank=1, step=STRIKE)
    raylets = {node.all_processes["raylet"][0].process.pid: node for node in others}
    home = next((raylets[parent.pid] for parent in psutil.Process(victim).parents() if parent.pid in raylets), None)
    lost_at = time.monotonic()
    if what == "worker":
        os.kill(victim, signal.SIGKILL)
    elif home is None:
        raise RuntimeError("rank 1 is on the head; its loss would end the driver")
    else:
        os.kill(home.all_processes["raylet"][0].process.pid, signal.SIGKILL)  # its workers end with it
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
    back_at = next_step(folder)
    thread.join(LIMIT)
    ray.shutdown()
    cluster.shutdown()
    return lost_at, back_at


def lose_driver(side: str, folder: Path, images: Path, environment: dict[str, str]) -> tuple[float, float]:
    """Start the run as a command, kill all of it, give the command again."""
    import psutil

    if side == "raydino":
        (folder / "small.yaml").write_text(small(images).to_yaml())
        command = [sys.executable, str(ROOT / "recipes" / "dinov2.py"), "--config", str(folder / "small.yaml")]
        command += ["--cluster.storage", str(folder), "--cluster.workers", "2", "--cluster.cpus-per-worker", "0.5"]
        command += ["--cluster.threads", "1", "--resume", "auto"]
    else:
        (folder / "images").symlink_to(images)
        command = [sys.executable, str(Path(plain.__file__)), str(folder)]
    variables = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "PYTHONPATH")}

    def start() -> subprocess.Popen[bytes]:
        log = (folder / "log").open("ab")
        options: dict[str, Any] = {"stdout": log, "stderr": log, "start_new_session": True}
        return subprocess.Popen(command, env={**variables, **environment}, **options)

    process = start()
    pid_at(folder, rank=1, step=STRIKE)
    everything = psutil.Process(process.pid).children(recursive=True)
    lost_at = time.monotonic()
    os.killpg(process.pid, signal.SIGKILL)
    for child in everything:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    process.wait()
    process = start()
    back_at = next_step(folder)
    if process.wait(LIMIT) != 0:
        raise RuntimeError((folder / "log").read_text()[-2000:])
    return lost_at, back_at


def pid_at(folder: Path, *, rank: int, step: int) -> int:
    """The process of a rank, once it has finished a step."""
    return next(line["pid"] for line in poll(folder, rank) if line.get("step") == step)


def next_step(folder: Path) -> float:
    """When rank 0 has finished a step after it began again."""
    began = 0
    for line in poll(folder, 0):
        began += "begin" in line
        if began > 1 and "step" in line:
            break
    return time.monotonic()


def poll(folder: Path, rank: int) -> Iterator[dict[str, Any]]:
    """A rank's lines as they are written."""
    path, known, deadline = folder / "audit" / f"rank-{rank}.jsonl", 0, time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        lines = path.read_text().splitlines() if path.exists() else []
        yield from (json.loads(line) for line in lines[known:])
        known = len(lines)
        time.sleep(0.02)
    raise TimeoutError(f"{path}: nothing more in {LIMIT:.0f} s")


def judged(ranks: list[list[dict[str, Any]]], lost_at: float, back_at: float) -> dict[str, Any]:
    """Seconds, steps done again, and what became of the samples of epoch 0."""
    attempts: list[list[dict[str, Any]]] = []
    for line in ranks[0]:
        if "begin" in line:
            attempts.append([])
        else:
            attempts[-1].append(line)
    done, begun = attempts[0][-1]["step"] + 1, [line["begin"] for line in ranks[0] if "begin" in line][1]
    seen: Counter[str] = Counter()
    for lines in ranks:  # a restart undoes the steps from its beginning on
        seen.update(sample for line in audit.effective(lines).values() if line["epoch"] == 0 for sample in line["ids"])
    return {
        "seconds": round(back_at - lost_at, 1),
        "steps_again": done - begun,
        "samples_lost": 240 - len(seen),
        "samples_repeated": sum(count - 1 for count in seen.values()),
    }


def small(images: Path) -> Recipe:
    """The run of raydino."""
    return Recipe().override(
        {
            "name": "small",
            "steps": plain.STEPS,
            "global_batch": 16,
            "lanes": 4,
            "data": {"path": str(images), "window": 32},
            "backbone": {"patch_size": 8, "width": 32, "depth": 2, "heads": 2, "drop_path": 0.1},
            "method": {
                "global_crops": {"size": 32},
                "local_crops": {"size": 16, "count": 2},
                "head": {"prototypes": 64, "hidden": 32, "bottleneck": 16},
            },
            "evals": {"knn": {"k": 5, "bank": 100, "queries": 40}},
            "cadence": {"log": 1, "evaluate": 0, "checkpoint": plain.EVERY, "pictures": False},
        }
    )


def train_ours(folder: Path, images: Path) -> None:
    """Two workers of raydino on the Ray that is running."""
    from raydino.launch.engine.trainer import fit

    digest = open_collection(str(images), split="train").manifest.digest
    cluster = ClusterConfig(workers=2, cpus_per_worker=2, threads=1, storage=str(folder))
    fit(Job(small(images), cluster, folder, str(images), digest, "", None))


def save(rows: list[dict[str, Any]]) -> None:
    """Write the figures and print them as a table."""

    def of(side: str, what: str, name: str) -> list[float]:
        return [row[name] for row in rows if (row["side"], row["lost"]) == (side, what)]

    print("lost     seconds: raydino  plain   steps again   samples lost, repeated: raydino   plain")
    for what in GOALS:
        middle = {(side, name): median(of(side, what, name)) for side in SIDES for name in FIGURES}
        counts = [f"{middle[side, 'samples_lost']:g}, {middle[side, 'samples_repeated']:g}" for side in SIDES]
        again = " and ".join(f"{middle[side, 'steps_again']:g}" for side in SIDES)
        print(
            f"{what:<8} {middle['raydino', 'seconds']:>16.1f} {middle['plain', 'seconds']:>6.1f}   {again:>11}   "
            f"{counts[0]:>31}   {counts[1]}"
        )
    ratios = [median(of("raydino", what, "seconds")) / median(of("plain", what, "seconds")) for what in GOALS]
    shares = [median(of("raydino", what, "seconds")) / goal for what, goal in GOALS.items()]
    result = {
        "name": "recovery",
        "device": f"{os.cpu_count()} CPU cores",
        "ratio": round(median(ratios), 3),
        "spread": [round(min(ratios), 3), round(max(ratios), 3)],
        "goal": ", ".join(f"{what} <= {goal:g} s" for what, goal in GOALS.items()) + "; no sample lost or repeated",
        "limit_share": round(max(shares), 3),
        "command": "python benchmarks/recovery.py",
        "runs": rows,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
