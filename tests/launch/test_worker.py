"""What Ray itself is told of a run."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.train.torch
from ray.train import RunConfig, UserCallback
from ray.train.torch import TorchTrainer

from raydino.config import read_yaml_file
from raydino.launch.cluster import ClusterConfig
from raydino.launch.driver import fit
from raydino.launch.job import Job
from raydino.recipe import Recipe
from raydino.shards.reader import open_collection
from raydino.tracking.spool import METRICS_FILE, read_metrics

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's processes cannot import a test module


class Listener(UserCallback):
    """Writes down what every rank reported; runs in Ray Train's controller."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def after_report(self, run_context, metrics, checkpoint):
        with self.path.open("a") as table:
            table.write(json.dumps({"ranks": metrics, "checkpoint": checkpoint is not None}) + "\n")


def test_train_worker__reports_every_evaluation_to_ray_train_from_every_rank(
    ray_cluster: None, tiny: Path, small_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    told = tmp_path / "told.jsonl"

    def with_listener(*arguments: Any, run_config: RunConfig, **options: Any) -> TorchTrainer:
        return TorchTrainer(*arguments, run_config=replace(run_config, callbacks=[Listener(told)]), **options)

    monkeypatch.setattr(ray.train.torch, "TorchTrainer", with_listener)
    job = Job(
        recipe=Recipe().override(read_yaml_file(tiny)),
        cluster=ClusterConfig(workers=2, cpus_per_worker=0.5, threads=1, storage=str(tmp_path)),
        run_dir=tmp_path,
        data_path=str(small_images),
        data_digest=open_collection(str(small_images), split="train").manifest.digest,
        tracking_uri="",
        mlflow_run_id=None,
    )
    fit(job)
    reports = [json.loads(line) for line in told.read_text().splitlines()]
    rows = read_metrics(tmp_path / METRICS_FILE)
    assert [report["ranks"][0]["step"] for report in reports] == [0, 6, 12]
    for report in reports:
        first, second = report["ranks"]
        assert first["step"] == second["step"] and not report["checkpoint"]
        assert first["knn/top1"] == rows[first["step"]]["knn/top1"]
        assert first["health/rankme"] == rows[first["step"]]["health/rankme"]
