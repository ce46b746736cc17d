"""Whole runs from the command line on a local Ray: finish, kill, resume, stop, refuse."""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from raydino.tracking.mlflow_run import client_of
from raydino.tracking.spool import METRICS_FILE, read_metrics

pytestmark = [pytest.mark.ray, pytest.mark.slow]
Start = Callable[..., subprocess.Popen[str]]
Here = Callable[..., tuple[int, str]]
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


def _wait_for(found: Callable[[], Path | None]) -> Path:
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        if path := found():
            return path
        time.sleep(0.05)
    raise TimeoutError(f"not within {LIMIT} s")


def _wait_for_step(storage: Path, name: str, step: int) -> Path:
    return _wait_for(lambda: next((d for d in storage.glob(f"{name}-*") if max(_losses(d), default=0) >= step), None))


@pytest.fixture(scope="module")
def undisturbed(recipe: Start, storage: Path) -> Path:
    """The run that nothing happens to."""
    _finish(recipe("--name", "golden"))
    return _run_dir(storage, "golden")


def test_run__leaves_a_complete_record_and_does_not_repeat_itself(undisturbed: Path, recipe_here: Here):
    left = {"recipe.yaml", "cluster.yaml", "data.json", "run.json", "summary.json", "report.html", METRICS_FILE}
    assert left <= {path.name for path in undisturbed.iterdir()}
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
    page = (undisturbed / "report.html").read_text()
    assert f"{knn['last']:.3f}" in page and "240 images in the split that was trained on" in page
    client = client_of(f"sqlite:///{undisturbed.parent}/mlflow.db")
    kept = {file.path for file in client.list_artifacts(summary["mlflow_run_id"])}
    assert {"report.html", "summary.json", "data.json", "recipe.yaml"} <= kept
    assert client.get_run(summary["mlflow_run_id"]).info.status == "FINISHED"
    status, said = recipe_here("--name", "golden")
    assert status == 0
    assert "is finished" in said


def test_run__killed_whole_then_robbed_of_its_worker_repeats_the_undisturbed_losses_bit_for_bit(
    recipe: Start, recipe_here: Here, undisturbed: Path, storage: Path
):
    """Two deaths of one run: all its processes at once, which the user mends, and a worker alone, which Ray replaces."""
    import psutil

    process = recipe("--name", "killed")
    run_dir = _wait_for_step(storage, "killed", 4)
    everything = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGKILL)
    for child in everything:  # Ray's workers are in groups of their own and would train on for seconds
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    process.communicate(timeout=30)
    psutil.wait_procs(everything, timeout=30)
    assert not (run_dir / "summary.json").exists()

    status, said = recipe_here("--name", "killed")
    assert status == 2
    assert "--resume auto" in said

    spool = run_dir / METRICS_FILE
    recorded = spool.stat().st_size
    process = recipe("--name", "killed", "--resume", "auto")
    _wait_for(
        lambda: spool if spool.read_bytes().count(b"loss/total", recorded) else None
    )  # its first step is behind it
    workers = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # Ray's idle processes come and go, and may be zombies just now
            if "RayTrainWorker" in " ".join(child.cmdline()):
                workers.append(child)
    assert workers
    for worker in workers:
        worker.kill()
    _finish(process)

    assert _losses(run_dir) == _losses(undisturbed)
    first, second = (json.loads((folder / "summary.json").read_text()) for folder in (undisturbed, run_dir))
    assert first["metrics"]["knn/top1"]["last"] == second["metrics"]["knn/top1"]["last"]
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


@pytest.mark.fault
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


@pytest.mark.fault  # by its length
def test_run__sigterm_leaves_a_checkpoint_of_the_last_step_and_status_143(recipe: Start, storage: Path):
    process = recipe("--name", "stopped", "--cadence.checkpoint", "0")
    run_dir = _wait_for_step(storage, "stopped", 3)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 143, output
    (checkpoint,) = (run_dir / "checkpoints").iterdir()
    assert int(checkpoint.name.removeprefix("step-")) == max(_losses(run_dir))
    assert json.loads((run_dir / "summary.json").read_text())["status"] == "unfinished"


def test_run__dry_run_prints_the_plan_and_makes_nothing(recipe_here: Here, storage: Path):
    status, said = recipe_here("--name", "plan", "--dry-run")
    assert status == 0
    for matter in ("images", "epoch", "warm-up", "memory", "time"):
        assert matter in said
    assert not list(storage.glob("plan-*"))


@pytest.mark.fault  # by its length: `make faults` has it
def test_run__sharded_over_two_workers_is_judged_drawn_and_taken_up_by_one(recipe: Start, storage: Path):
    """Evaluations of all ranks, pictures of one, checkpoints of whole tensors; then another kind and number of workers."""
    sharded = ("--cluster.workers", "2", "--cluster.parallel", "fsdp", "--cluster.checkpoint-activations", "True")
    words = ("--name", "sharded", "--cadence.pictures", "True")
    process = recipe(*words, *sharded)
    run_dir = _wait_for_step(storage, "sharded", 4)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "of 12; the same command with --resume auto goes on" in output
    assert {path.name.partition("-step")[0] for path in (run_dir / "pictures").iterdir()} >= {"crops", "patch_pca"}
    saved = max(run_dir.glob("checkpoints/step-*/meta.json"))
    assert json.loads(saved.read_text())["world"] == 2
    _finish(recipe(*words, "--resume", "auto"))
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("finished", 12)
    rows = read_metrics(run_dir / METRICS_FILE)
    assert sorted(_losses(run_dir)) == list(range(1, 13))
    assert sorted(step for step, row in rows.items() if "knn/top1" in row) == [0, 6, 12]
