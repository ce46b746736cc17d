"""Whole sweeps from the command line that are broken on purpose."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from raydino.launch.trials.outcome import ATTEMPTS
from raydino.tracking.run import LOSS_TOTAL
from raydino.tracking.spool import METRICS_FILE, entries

pytestmark = [pytest.mark.fault, pytest.mark.ray, pytest.mark.slow]
SWEEP = Path(__file__).resolve().parents[3] / "recipes" / "sweep.py"
LIMIT = 280  # seconds
SPACE = """
optim.lr: {loguniform: [1.0e-4, 1.0e-2]}
method.local_crops.count: {choice: [0, 2]}
"""


@pytest.fixture
def sweep(tiny: Path, small_images: Path, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start recipes/sweep.py on the tiny run as a user would."""
    space = tmp_path / "space.yaml"
    space.write_text(SPACE)

    def start(*flags: str) -> subprocess.Popen[str]:
        kept = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "PYTHONPATH")}
        words = ["--config", str(tiny), "--data", str(small_images), "--space", str(space), "--name", "torn"]
        where = ["--cluster.storage", str(tmp_path / "runs"), "--trials", "4", "--scheduler", "none"]
        return subprocess.Popen(
            [sys.executable, str(SWEEP), *words, *where, *flags],
            env=kept,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    return start


def _kill(process: subprocess.Popen[str]) -> None:
    everything = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGKILL)
    for child in everything:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    process.communicate(timeout=30)
    psutil.wait_procs(everything, timeout=30)


def _steps(run_dir: Path) -> list[int]:
    """The steps of a trial in the order in which they were trained."""
    path = run_dir / METRICS_FILE
    return [entry.step for entry in entries(path) if LOSS_TOTAL in entry.metrics] if path.exists() else []


def _begins(run_dir: Path) -> int:
    return sum("begin" in line for line in (run_dir / ATTEMPTS).read_text().splitlines())


def test_kill__the_driver_dies_and_no_finished_trial_is_run_again(
    sweep: Callable[..., subprocess.Popen[str]], tmp_path: Path
):
    folder = tmp_path / "runs" / "sweep-torn"
    first = sweep("--steps", "40", "--cadence.log", "1")
    deadline = time.monotonic() + LIMIT

    def running() -> list[Path]:
        return [d for d in folder.glob("trials/*") if not (d / "ending.json").exists() and len(_steps(d)) >= 11]

    while not (list(folder.glob("trials/*/ending.json")) and running()):
        assert time.monotonic() < deadline and first.poll() is None
        time.sleep(0.02)
    _kill(first)
    ended = {path.parent.name: _steps(path.parent) for path in folder.glob("trials/*/ending.json")}
    torn = {path.name: len(_steps(path)) for path in running()}
    plan = json.loads((folder / "sweep.json").read_text())["trials"]
    assert ended and torn

    refused = sweep("--steps", "40", "--cadence.log", "1")
    output, _ = refused.communicate(timeout=LIMIT)
    assert refused.returncode == 2 and "--resume auto" in output

    second = sweep("--steps", "40", "--cadence.log", "1", "--resume", "auto")
    output, _ = second.communicate(timeout=LIMIT)
    assert second.returncode == 0, output
    for name, steps in ended.items():
        assert _steps(folder / "trials" / name) == steps and _begins(folder / "trials" / name) == 1
    for name, before in torn.items():
        steps = _steps(folder / "trials" / name)
        assert sorted(set(steps)) == list(range(1, 41)) and steps[-1] == 40
        # It went on from its newest save, at most an evaluation's interval before its end, and repeated no more than that.
        assert len(steps) <= 40 + 10 and steps[before : before + 1] != [1], steps  # empty: it died after its last step
    after = json.loads((folder / "sweep.json").read_text())
    assert after["trials"][: len(plan)] == plan and len(after["trials"]) == 4 and after["finished"]
    ranking = json.loads((folder / "ranking.json").read_text())
    assert [row["images"] for row in ranking["rows"]] == [40 * 16] * 4
    for name in ("best.yaml", "report.html", "pictures/parallel_coordinates.png", "pictures/response_curves.png"):
        assert (folder / name).stat().st_size > 100

    third = sweep("--steps", "40", "--cadence.log", "1")
    output, _ = third.communicate(timeout=LIMIT)
    assert third.returncode == 0 and "is finished" in output


def test_kill__mlflow_is_away_and_the_sweep_ends_all_the_same(
    sweep: Callable[..., subprocess.Popen[str]], tmp_path: Path
):
    """Nobody answers from begin to end; on disk everything is complete, and the tree is made when the tracker is back."""
    from mlflow import MlflowClient

    folder = tmp_path / "runs" / "sweep-torn"
    process = sweep("--trials", "2", "--cluster.tracking-uri", "http://127.0.0.1:9")
    output, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, output
    assert [row["status"] for row in json.loads((folder / "ranking.json").read_text())["rows"]] == ["finished"] * 2

    assert "--resume auto sends it again" in output
    output, _ = sweep("--trials", "2", "--resume", "auto").communicate(timeout=LIMIT)  # with a tracker that is there
    assert "is finished" in output and "its record in MLflow is complete now" in output
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    (experiment,) = [each for each in client.search_experiments() if each.name == "raydino"]
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if run.info.run_name == "sweep-torn"]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert sorted(run.info.run_name for run in children) == ["000", "001"]
    assert {run.info.status for run in [parent, *children]} == {"FINISHED"}
    for run in [parent, *children]:
        assert "report.html" in {file.path for file in client.list_artifacts(run.info.run_id)}
    for run in children:
        history = client.get_metric_history(run.info.run_id, LOSS_TOTAL)
        assert sorted(point.step for point in history) == list(range(1, 13))
