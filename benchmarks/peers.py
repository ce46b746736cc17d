"""Training beside what else a user could run: DINO in plain torch, and lightly's; end to end, and the step alone.

    pip install --no-deps --target PEERS lightly lightning-utilities
    python benchmarks/peers.py --peers PEERS                      # ten minutes of two cores
    python benchmarks/peers.py --peers PEERS --only short-step

All sides train the same network on the same photographs (imagenet-sample; RAYDINO_DATA, else ../shared/data) with two crops of
224 and eight of 96 pixels, the same batch, head and optimiser, in fp32, with torch's threads on all cores; "own precision" is
raydino with the precision that it chooses for the processor. Peers cut crops in two DataLoader workers (--workers), raydino in
processes beside its threads (started at once, as blocks are of a long run), read by Ray Data.
Every side is a process that rests while another trains its block: steps that use up what lay
ready, then those that are timed. Torch's threads leave their core while they wait (OMP_WAIT_POLICY=PASSIVE) on all sides. Beside
the rate stands the rate per core second of all of a side's processes, which other work on the machine disturbs less. The step
alone: the same crops, ready in memory, one process, sides taking turns.

Voided unless the loss of all sides on the same crops and weights is the same to 1e-5, and every side's loss stays finite.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch

from alternatives import ours, plain
from alternatives.setting import MEAN, SETTINGS, STD, Setting
from raydino.shards.reader import open_collection
from raydino.train.steps import train_step
from raydino.views import Batch, Normalisation

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "peers.json"
DATA = Path(os.environ.get("RAYDINO_DATA") or ROOT.parent / "shared" / "data") / "imagenet-sample"
SIDE = ROOT / "benchmarks" / "alternatives" / "side.py"
GOAL = 3.0  # raydino over a peer, end to end
PEERS = ("plain torch", "lightly")
OWN = "raydino, own precision"
"""What a user gets without a word about precision; the peers compute in fp32 unless they are told otherwise."""
FAST = f"{OWN}, fast crops"


def write_photographs(folder: Path) -> int:
    """The JPEGs of imagenet-sample as files."""
    collection, count = open_collection(str(DATA), split="train"), 0
    for group in range(len(collection.row_groups)):
        for data in collection.read(group)["bytes"].to_pylist():
            if data[:2] == b"\xff\xd8":
                (folder / f"{count:05d}.jpg").write_bytes(data)
                count += 1
    return count


class Process:
    """A side that trains when asked."""

    def __init__(self, side: str, setting: str, folder: Path, arguments: argparse.Namespace) -> None:
        paths = [str(ROOT / "platform"), *([arguments.peers] if arguments.peers else [])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONWARNINGS": "ignore"}
        environment |= {"OMP_WAIT_POLICY": "PASSIVE"}  # raydino's workers have it; it helps the peers as well
        words = [sys.executable, str(SIDE), side, setting, str(folder), str(DATA), str(arguments.workers)]
        self._process = subprocess.Popen(
            words, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.read()

    def read(self) -> dict[str, float]:
        """What it tells of a block."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a side has ended: {self._process.args}")
        told = json.loads(line)
        assert math.isfinite(told["loss"]), told
        return told

    def block(self) -> tuple[float, float]:
        """Images per second of a block, and per second of a core: all that its processes computed, settling included."""
        begun = self._core_seconds()
        self._say("go")
        told = self.read()
        return told["images_per_second"], told["images"] / (self._core_seconds() - begun)

    def _core_seconds(self) -> float:
        own = psutil.Process(self._process.pid)
        each = [process.cpu_times() for process in (own, *own.children(recursive=True))]
        return sum(times.user + times.system for times in each)

    def end(self) -> None:
        """Let it leave."""
        self._say("end")
        self._process.wait(60)

    def _say(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()


def end_to_end(name: str, folder: Path, arguments: argparse.Namespace) -> dict[str, list[tuple[float, float]]]:
    """Images per second, and per core second, of every side's blocks, taking turns."""
    names = ("raydino", OWN, *([FAST] if SETTINGS[name].fast else []), *PEERS)
    sides = {side: Process(side, name, folder, arguments) for side in names}
    rates: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    for _ in range(arguments.rounds):
        for side, process in sides.items():
            rates[side].append(process.block())
            print(
                f"{name}: {side:35s} {rates[side][-1][0]:6.2f} images/s {rates[side][-1][1]:6.2f} per core second",
                flush=True,
            )
    for process in sides.values():
        process.end()
    return rates


def step_sides(setting: Setting) -> dict[str, Callable[[], float]]:
    """A step of each side on the same crops, from the same weights."""
    from alternatives import lightly_dino

    loop = ours.loop_of(ours.recipe_of(setting, str(DATA)))
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    generator = torch.Generator().manual_seed(0)
    shapes = {"global": (2, setting.large), "local": (setting.local, setting.small)}
    crops = {
        key: torch.randint(0, 256, (count, setting.images, 3, side, side), generator=generator, dtype=torch.uint8)
        for key, (count, side) in shapes.items()
    }
    batch = Batch(crops, None, (b"",) * setting.images, step=0)
    normalise = Normalisation(mean=MEAN, std=STD)
    views = [view for group in crops.values() for view in normalise(group).unbind()]
    theirs, lightly = plain.Training(setting), lightly_dino.Training(setting)
    for backbones, heads in (
        ([theirs.student.backbone, theirs.teacher.backbone], [theirs.student.head, theirs.teacher.head]),
        (
            [lightly.model.student_backbone, lightly.model.teacher_backbone],
            [lightly.model.student_head, lightly.model.teacher_head],
        ),
    ):
        for backbone, head in zip(backbones, heads, strict=True):
            _same_weights(loop, backbone, head)
    return {
        "raydino": lambda: float(train_step(loop, batch).metrics["loss/total"]),
        "plain torch": lambda: theirs.step(views),
        "lightly": lambda: lightly.step(views),
    }


def _same_weights(loop: Any, backbone: torch.nn.Module, head: torch.nn.Module) -> None:
    own = loop.method.student
    backbone.load_state_dict(own.backbone.vit.state_dict())
    layers = [layer for layer in head.modules() if isinstance(layer, torch.nn.Linear)]
    with torch.no_grad():
        for mine, other in zip(
            [part for part in own.head.mlp if isinstance(part, torch.nn.Linear)], layers, strict=False
        ):
            other.weight.copy_(mine.weight)
            other.bias.copy_(mine.bias)
        head.last_layer.weight_v.copy_(own.head.prototypes.direction)  # type: ignore[union-attr]


def step_alone(setting: Setting, arguments: argparse.Namespace) -> dict[str, list[tuple[float, float]]]:
    """Images per second, and per core second, of the step by itself; first its loss, which must be the same on all sides."""
    sides = step_sides(setting)
    losses = {side: step() for side, step in sides.items()}  # each side's first step, from the same weights
    assert all(abs(loss / losses["raydino"] - 1) < 1e-5 for loss in losses.values()), losses
    print("the same loss on the same crops and weights:", losses)
    rates: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    images = max(2, setting.timed // 2) * setting.images
    for _ in range(arguments.rounds):
        for side, step in sides.items():
            step()
            begun, computed = time.perf_counter(), time.process_time()
            for _ in range(max(2, setting.timed // 2)):
                assert math.isfinite(step())
            took = time.perf_counter() - begun, time.process_time() - computed
            rates[side].append((images / took[0], images / took[1]))
            print(
                f"step alone: {side:20s} {images / took[0]:6.2f} images/s {images / took[1]:6.2f} per core second",
                flush=True,
            )
    return rates


def ratios(rates: dict[str, list[tuple[float, float]]], at: int) -> dict[str, list[float]]:
    """Every raydino side over every peer: median, least, largest of the rounds."""
    found = {}
    for mine in (side for side in rates if side.startswith("raydino")):
        for peer in PEERS:
            each = sorted(a[at] / b[at] for a, b in zip(rates[mine], rates[peer], strict=True))
            found[f"{mine} over {peer}"] = [round(x, 2) for x in (median(each), each[0], each[-1])]
    return found


def report(results: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """What results/peers.json holds."""
    main = results.get("short-step", {}).get("ratios", {}).get("raydino over plain torch", [0.0, 0.0, 0.0])
    return {
        "name": "peers",
        "device": f"{len(os.sched_getaffinity(0))} CPU cores",
        "ratio": main[0],
        "spread": main[1:],
        "goal": GOAL,
        "missed": [
            f"{setting}: {pair}"
            for setting, result in results.items()
            for pair, values in result["ratios"].items()
            if not setting.endswith("step alone") and values[0] < GOAL
        ],
        "limit_share": {name: _limit_share(results, name) for name in SETTINGS},
        "command": "python benchmarks/peers.py --peers PEERS",
        "data_loader_workers": arguments.workers,
        "settings": results,
    }


def _limit_share(results: dict[str, Any], name: str) -> float | None:
    """raydino end to end over its step alone: the limit if crops cost nothing."""
    rates = [
        results.get(title, {}).get("images_per_second", {}).get("raydino") for title in (name, f"{name}, step alone")
    ]
    return round(rates[0] / rates[1], 3) if all(rates) else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", help="folder that lightly was installed to; none where it can be imported")
    parser.add_argument("--only", choices=[*SETTINGS, *(f"{name}, step alone" for name in SETTINGS)])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2, help="DataLoader workers of the peers")
    arguments = parser.parse_args()
    if arguments.peers:
        sys.path.insert(0, arguments.peers)
    known = json.loads(RESULT.read_text())["settings"] if arguments.only and RESULT.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        count = write_photographs(Path(folder))
        for name, setting in SETTINGS.items():
            for title, measure in (
                (name, lambda name=name: end_to_end(name, Path(folder), arguments)),
                (f"{name}, step alone", lambda setting=setting: step_alone(setting, arguments)),
            ):
                if arguments.only in (None, title):
                    rates = measure()
                    each = {side: [[round(x, 2) for x in pair] for pair in pairs] for side, pairs in rates.items()}
                    known[title] = {
                        "images_per_second": {side: median(pair[0] for pair in pairs) for side, pairs in each.items()},
                        "images_per_core_second": {
                            side: median(pair[1] for pair in pairs) for side, pairs in each.items()
                        },
                        "ratios": ratios(rates, 0),
                        "ratios_per_core_second": ratios(rates, 1),
                        "rounds": each,
                    }
                    print(
                        json.dumps(
                            {name: known[title][name] for name in ("ratios", "ratios_per_core_second")}, indent=1
                        )
                    )
                    RESULT.write_text(json.dumps(report(known, arguments), indent=1) + "\n")
    print(f"{count} photographs")


if __name__ == "__main__":
    main()
