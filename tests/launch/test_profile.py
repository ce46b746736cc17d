"""`--profile`: a run leaves a trace and a summary in its folder and in MLflow, and loses nothing by it."""

import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from presets import DINOV2

from raydino.config import read_yaml_file
from raydino.launch.job import PROFILE_NEEDS
from raydino.tracking.spool import METRICS_FILE, read_metrics
from raydino.train.profiling.parts import GAPS, STUDENT
from raydino.train.profiling.trace import breakdown, read_trace

Here = Callable[..., tuple[int, str]]
Train = Callable[..., Iterator[Any]]
STEPS = 16


@pytest.mark.ray
@pytest.mark.slow
def test_profile__leaves_trace_and_summary_and_the_losses_as_they_are(
    ray_cluster: None, recipe_here: Here, train_here: Train, tiny: Path, small_images: Path, storage: Path
):
    exact = ("--cluster.precision", "fp32", "--cluster.attention", "fused")  # as `train_here`
    status, said = recipe_here("--name", "profiled", "--steps", str(STEPS), "--profile", *exact)
    assert status == 0, said
    (run_dir,) = storage.glob("profiled-*")
    recipe = DINOV2["laptop"].override(read_yaml_file(tiny)).override({"steps": STEPS, "data.path": str(small_images)})
    assert run_dir.name == f"profiled-{recipe.id.rpartition('-')[2]}"  # another run it is not
    rows = read_metrics(run_dir / METRICS_FILE)
    undisturbed = [float(report.metrics["loss/total"]) for report in train_here(recipe, small_images)]
    assert [rows[step]["loss/total"] for step in range(1, STEPS + 1)] == undisturbed
    folder = run_dir / "profile"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["bottleneck"] in said and str(folder / "summary.md") in said
    assert summary["bottleneck"] in (folder / "summary.md").read_text()
    assert summary["profiled_steps"] == 5
    assert sum(part["share"] for part in summary["parts"].values()) == pytest.approx(1)
    assert 0 < summary["work"]["effective_share"] <= summary["work"]["nominal_share"] < 1
    assert summary["measured"]["crop_seconds"] > 0
    found = breakdown(read_trace(folder / "trace.json.gz"))
    for name in (STUDENT, GAPS):
        assert found.parts[name] / found.seconds == pytest.approx(summary["parts"][name]["share"])
    run_id = json.loads((run_dir / "run.json").read_text())["mlflow_run_id"]
    with sqlite3.connect(storage / "mlflow.db") as database:
        (where,) = database.execute("select artifact_uri from runs where run_uuid = ?", (run_id,)).fetchone()
    logged = {path.name for path in Path(where.removeprefix("file://")).iterdir()}
    assert {"summary.md", "summary.json", "trace.json.gz"} <= logged
    status, said = recipe_here("--name", "profiled", "--steps", str(STEPS), "--profile")
    assert status == 2 and "is finished" in said and "--name" in said


def test_profile__is_refused_where_it_could_not_be_taken(recipe_here: Here, storage: Path):
    status, said = recipe_here("--name", "short", "--profile")
    assert status == 2 and f"takes {PROFILE_NEEDS} steps, and the run has 12 to go" in said
    status, said = recipe_here("--name", "short", "--steps", "30", "--profile", "--dry-run")
    assert status == 2 and "--dry-run" in said
    assert not list(storage.glob("short-*"))
