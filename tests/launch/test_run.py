"""Whole runs from the command line on a local Ray: finish, kill, resume, stop, refuse."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from raydino.tracking.spool import METRICS_FILE, read_metrics

pytestmark = [pytest.mark.ray, pytest.mark.slow]
Start = Callable[..., subprocess.Popen[str]]
LIMIT = 300  # seconds; a run takes about 25 on a quiet machine


def _finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, output
    return output


def _run_dir(storage: Path, name: str) -> Path:
    (folder,) = storage.glob(f"{name}-*")
    return folder


def _losses(run_dir: Path) -> dict[int, float]:
    return {
        step: row["loss/total"] for step, row in read_metrics(run_dir / METRICS_FILE).items() if "loss/total" in row
    }


def _wait_for_step(storage: Path, name: str, step: int) -> Path:
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        for run_dir in storage.glob(f"{name}-*"):
            if any(found >= step for found in _losses(run_dir)):
                return run_dir
        time.sleep(0.05)
    raise TimeoutError(f"no step {step} of {name} within {LIMIT} s")


@pytest.fixture(scope="module")
def undisturbed(recipe: Start, storage: Path) -> Path:
    """The run that nothing happens to."""
    _finish(recipe("--name", "golden"))
    return _run_dir(storage, "golden")


def test_run__leaves_a_complete_record_and_does_not_repeat_itself(recipe: Start, undisturbed: Path, storage: Path):
    assert {"recipe.yaml", "cluster.yaml", "run.json", "summary.json", METRICS_FILE} <= {
        path.name for path in undisturbed.iterdir()
    }
    summary = json.loads((undisturbed / "summary.json").read_text())
    assert (summary["status"], summary["steps"], summary["images_seen"]) == ("finished", 12, 192)
    knn = summary["metrics"]["knn/top1"]
    rows = read_metrics(undisturbed / METRICS_FILE)
    assert sorted(step for step, row in rows.items() if "knn/top1" in row) == [0, 6, 12]
    assert knn["untrained"] == rows[0]["knn/top1"]
    assert knn["best"] == max(rows[step]["knn/top1"] for step in (0, 6, 12))
    assert sorted(_losses(undisturbed)) == list(range(1, 13))
    assert [p.name for p in sorted((undisturbed / "checkpoints").iterdir())] == [
        "step-00000006",
        "step-00000009",
        "step-00000012",
    ]
    again = _finish(recipe("--name", "golden"))
    assert "is finished" in again


def test_run__killed_whole_and_resumed_repeats_the_undisturbed_losses_bit_for_bit(
    recipe: Start, undisturbed: Path, storage: Path
):
    process = recipe("--name", "killed")
    run_dir = _wait_for_step(storage, "killed", 7)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    assert not (run_dir / "summary.json").exists()
    refused = recipe("--name", "killed")
    output, _ = refused.communicate(timeout=LIMIT)
    assert refused.returncode == 2
    assert "--resume auto" in output
    _finish(recipe("--name", "killed", "--resume", "auto"))
    assert _losses(run_dir) == _losses(undisturbed)
    first, second = (json.loads((folder / "summary.json").read_text()) for folder in (undisturbed, run_dir))
    assert first["metrics"]["knn/top1"]["last"] == second["metrics"]["knn/top1"]["last"]


def test_run__a_killed_worker_is_replaced_and_the_losses_stay_the_same(recipe: Start, undisturbed: Path, storage: Path):
    import psutil

    process = recipe("--name", "worker")
    run_dir = _wait_for_step(storage, "worker", 5)
    workers = [
        p for p in psutil.Process(process.pid).children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline())
    ]
    assert workers
    for worker in workers:
        worker.kill()
    _finish(process)
    assert _losses(run_dir) == _losses(undisturbed)
    assert not [path for path in run_dir.iterdir() if path.name.startswith(("failure", "errors"))]


BUGGY = """
from raydino.launch.driver import main
from raydino.methods.config import DINOv2Config
from raydino.recipe import Recipe


class BuggyConfig(DINOv2Config):
    def build(self, backbone, *, steps):
        from raydino.methods.dinov2 import DINOv2

        class Buggy(DINOv2):
            def forward(self, batch, step):
                if step == 7:
                    raise ZeroDivisionError("the new loss divides by zero")
                return super().forward(batch, step)

        return Buggy(self, backbone, steps=steps)


main(Recipe(method=BuggyConfig()), {}, description="a method with a bug")
"""


def test_run__a_bug_is_tried_twice_and_no_more(recipe: Start, storage: Path, tmp_path: Path):
    script = tmp_path / "buggy.py"
    script.write_text(BUGGY)
    process = recipe("--name", "buggy", "--cluster.max-failures", "5", script=script)
    output, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 1, output
    for words in ("ZeroDivisionError after step 7, and again", "the new loss divides by zero", "errors-rank0.jsonl"):
        assert words in output
    assert "--resume auto" in output and "Traceback" not in output
    run_dir = _run_dir(storage, "buggy")
    errors = [json.loads(line) for line in (run_dir / "errors-rank0.jsonl").read_text().splitlines()]
    assert [error["step"] for error in errors] == [7, 7]
    assert all("in forward" in error["traceback"] for error in errors)


def test_run__sigterm_leaves_a_checkpoint_of_the_last_step_and_status_143(recipe: Start, storage: Path):
    process = recipe("--name", "stopped", "--cadence.checkpoint", "0")
    run_dir = _wait_for_step(storage, "stopped", 3)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 143, output
    (checkpoint,) = (run_dir / "checkpoints").iterdir()
    assert int(checkpoint.name.removeprefix("step-")) == max(_losses(run_dir))
    assert json.loads((run_dir / "summary.json").read_text())["status"] == "unfinished"


def test_run__too_many_undecodable_images_stop_with_the_counts(
    recipe: Start, small_images: Path, storage: Path, tmp_path: Path
):
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path / "bad" / "data"
    folder.mkdir(parents=True)
    rows = pq.read_table(next((small_images / "data").glob("train-*")), columns=["image"]).to_pylist()
    for number in range(0, len(rows), 3):
        rows[number]["image"]["bytes"] = b"not an image"
    pq.write_table(pa.Table.from_pylist(rows), folder / "train-00000-of-00001.parquet", row_group_size=32)
    process = recipe("--name", "bad", "--data", str(tmp_path / "bad"))
    output, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 1
    assert "data.max_bad" in output or "max_bad" in output
    assert "Traceback" not in output
    table = (_run_dir(storage, "bad") / "quarantine.jsonl").read_text().splitlines()
    assert all(json.loads(line)["reason"] for line in table)


def test_run__dry_run_prints_the_plan_and_makes_nothing(recipe: Start, storage: Path):
    output = _finish(recipe("--name", "plan", "--dry-run"))
    for matter in ("images", "epoch", "warm-up", "memory", "time"):
        assert matter in output
    assert not list(storage.glob("plan-*"))
