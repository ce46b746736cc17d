"""Thirty faults in two hundred steps, drawn with a seed: in the end the weights are those of the run that was left alone."""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from raydino.faults import Fault
from raydino.launch.workers.keep import FOLDER
from raydino.recipe import Recipe

pytestmark = [pytest.mark.fault, pytest.mark.slow]
STEPS, EVERY = 200, 5
LIVES = Path(__file__).with_name("lives.py")
ROOT = Path(__file__).resolve().parents[2]


def lives(folder: Path, recipe: Recipe, images: Path, faults: list[Fault], damage: dict[int, str]) -> dict[str, Any]:
    folder.mkdir()
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    (folder / "damage.json").write_text(json.dumps(damage))
    (folder / "faults.json").write_text(json.dumps([asdict(fault) for fault in faults]))
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "platform"), "RAYDINO_FAULTS": str(folder / "faults.json")}
    done = subprocess.run(
        [sys.executable, str(LIVES), str(folder), str(images)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def drawn(seed: int) -> tuple[list[Fault], dict[int, str]]:
    """24 strikes on the process and 6 on the disk."""
    draw = random.Random(seed)
    sites = ["step", "step", "save.write", "save.rename", "save.commit", "save.prune"]
    faults = []
    for number in range(24):
        site = sites[number % len(sites)]
        step = draw.randrange(1, STEPS) if site == "step" else EVERY * draw.randrange(1, STEPS // EVERY)
        faults.append(Fault(site, draw.choice(["kill", "kill", "raise", "freeze"]), step=step))
    fatal = sum(fault.action != "raise" for fault in faults)
    return faults, {life: draw.choice(["truncate", "flip"]) for life in draw.sample(range(3, fatal + 1), 6)}


def test_fault_31__soak(small: Recipe, images: Path, tmp_path: Path):
    recipe = small.override({"steps": STEPS, "backbone.depth": 1, "evals": {"knn": {"bank": 50, "queries": 10}}})
    golden = lives(tmp_path / "golden", recipe, images, [], {})
    assert golden["endings"] == ["finished"]
    faults, damage = drawn(seed=7)
    broken = lives(tmp_path / "broken", recipe, images, faults, damage)
    struck = len(list((tmp_path / "broken").glob("faults.json.*")))
    fatal = Counter("killed" if fault.action == "kill" else "frozen" for fault in faults if fault.action != "raise")
    assert struck == len(faults) == 24 and len(damage) == 6
    assert Counter(broken["endings"]) == {**fatal, "finished": 1}
    for run in (golden, broken):
        assert (run["files"], run["threads"], run["shared"]) == (0, 0, [])
    last = f"run/{FOLDER}/step-{STEPS:08d}"
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (tmp_path / "broken" / last / name).read_bytes() == (tmp_path / "golden" / last / name).read_bytes()
    leftover = {path.name for path in (tmp_path / "broken" / "run" / FOLDER).iterdir()}
    assert leftover == {path.name for path in (tmp_path / "golden" / "run" / FOLDER).iterdir()}
