"""From a command to its first step: seconds of this checkout, and beside it of another one.

    python benchmarks/startup.py [--against CHECKOUT] [--pairs 3]        # a minute or two a pair on two cores

A run of 12 steps of a tiny network on 300 built-in images: what is timed is the start, not the training. The clock starts with
the command; the first step is over when its line is in the run's record, and the run when its process has ended. Both sides take
turns. That they train the same is compared first: the losses of all steps, bit for bit.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from raydino.curation.synthetic import write_builtin
from raydino.tracking.run import LOSS_TOTAL
from raydino.tracking.spool import METRICS_FILE, entries

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "startup.json"
TINY = """
steps: 12
global_batch: 16
lanes: 4
data: {window: 32}
backbone: {patch_size: 8, width: 32, depth: 2, heads: 2, drop_path: 0.1}
method:
  global_crops: {size: 32}
  local_crops: {size: 16, count: 2}
  head: {prototypes: 64, hidden: 32, bottleneck: 16}
evals: {knn: {k: 5, bank: 100, queries: 40}}
cadence: {log: 1, evaluate: 0, checkpoint: 0, pictures: false}
"""


def run(checkout: Path, folder: Path) -> tuple[dict[str, float], list[float]]:
    """Seconds from the command to the untrained evaluation, to the first step and to the end; the losses."""
    storage = Path(tempfile.mkdtemp(dir=folder))
    command = [
        *(sys.executable, checkout / "recipes" / "dinov2.py", "--config", folder / "tiny.yaml"),
        *("--data", folder / "images", "--cluster.storage", storage, "--cluster.threads", "1"),
    ]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    began = time.time()
    done = subprocess.run(command, cwd=storage, env=environment, capture_output=True, text=True, check=False)
    ended = time.time()
    if done.returncode:
        sys.exit(f"{checkout}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    (record,) = storage.glob(f"*/{METRICS_FILE}")
    lines = list(entries(record))
    trained = [line for line in lines if LOSS_TOTAL in line.metrics]
    seconds = {"to_evaluation": lines[0].time, "to_first_step": trained[0].time, "to_exit": ended}
    return {name: moment - began for name, moment in seconds.items()}, [line.metrics[LOSS_TOTAL] for line in trained]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--against", type=Path, help="another checkout of this project")
    options.add_argument("--pairs", type=int, default=3, help="runs of each side")
    given = options.parse_args()
    sides = {"here": ROOT} | ({"against": given.against.resolve()} if given.against else {})
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    losses: list[list[float]] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch)
        (folder / "tiny.yaml").write_text(TINY)
        write_builtin(str(folder / "images"), train=240, test=60)
        for number in range(given.pairs):
            for side in list(sides) if number % 2 else list(sides)[::-1]:
                seconds, trained = run(sides[side], folder)
                found[side].append(seconds)
                losses.append(trained)
                print(side, {name: round(value, 1) for name, value in seconds.items()}, flush=True)
    if any(one != losses[0] for one in losses):
        sys.exit("the sides do not train alike: their losses differ")
    report(found)


def report(found: dict[str, list[dict[str, float]]]) -> None:
    """Print and save the medians, and the ratio of the sides' seconds to the first step."""
    medians = {
        side: {name: round(statistics.median(run[name] for run in runs), 2) for name in runs[0]}
        for side, runs in found.items()
    }
    result: dict[str, object] = {
        "name": "startup",
        "device": f"CPU, {os.cpu_count()} cores, shared with other programs",
        "goal": "none",
        "command": "python benchmarks/startup.py --against CHECKOUT",
        "runs": len(found["here"]),
        "seconds": medians,
    }
    if "against" in found:
        ratios = [
            here["to_first_step"] / other["to_first_step"]
            for here, other in zip(found["here"], found["against"], strict=True)
        ]
        result |= {
            "ratio": round(statistics.median(ratios), 3),
            "spread": [round(min(ratios), 3), round(max(ratios), 3)],
            "ratio_is": "seconds to the first step, here over there; least and most of the pairs",
        }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
