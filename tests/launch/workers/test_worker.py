"""What a worker tells Ray of a run, and the driver when it gives up."""

import json
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import ray.train.torch
import torch
from ray.train import RunConfig, UserCallback
from ray.train.torch import TorchTrainer

from raydino.config import read_yaml_file
from raydino.data.fetch import local_windows
from raydino.launch.cluster import ClusterConfig
from raydino.launch.engine import lean
from raydino.launch.engine.lean import LeanTorchTrainer
from raydino.launch.engine.trainer import fit
from raydino.launch.inputs import open_inputs
from raydino.launch.job import Job
from raydino.launch.workers import worker
from raydino.launch.workers.keep import Keeper
from raydino.recipe import Recipe
from raydino.shards.reader import open_collection
from raydino.tracking.run import LOSS_TOTAL
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


def a_tiny_job(tiny: Path, small_images: Path, folder: Path) -> Job:
    return Job(
        recipe=Recipe().override(read_yaml_file(tiny)),
        cluster=ClusterConfig(workers=2, cpus_per_worker=0.5, threads=1, fixed_shapes=True, storage=str(folder)),
        run_dir=folder,
        data_path=str(small_images),
        data_digest=open_collection(str(small_images), split="train").manifest.digest,
        tracking_uri="",
        mlflow_run_id=None,
    )


def test_train_worker__reports_every_evaluation_to_ray_train_from_every_rank(
    ray_cluster: None, tiny: Path, small_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    told = tmp_path / "told.jsonl"

    def with_listener(*arguments: Any, run_config: RunConfig, **options: Any) -> TorchTrainer:
        return LeanTorchTrainer(*arguments, run_config=replace(run_config, callbacks=[Listener(told)]), **options)

    monkeypatch.setattr(lean, "LeanTorchTrainer", with_listener)
    fit(a_tiny_job(tiny, small_images, tmp_path))
    reports = [json.loads(line) for line in told.read_text().splitlines()]
    rows = read_metrics(tmp_path / METRICS_FILE)
    assert [report["ranks"][0]["step"] for report in reports] == [0, 6, 12]
    for report in reports:
        first, second = report["ranks"]
        assert first["step"] == second["step"] and not report["checkpoint"]
        assert first["knn/top1"] == rows[first["step"]]["knn/top1"]
        assert first["health/rankme"] == rows[first["step"]]["health/rankme"]


def test_train_worker__too_many_undecodable_images_stop_the_run_with_the_counts(
    ray_cluster: None, recipe_here: Callable[..., tuple[int, str]], small_images: Path, storage: Path, tmp_path: Path
):
    folder = tmp_path / "bad" / "data"
    folder.mkdir(parents=True)
    rows = pq.read_table(next((small_images / "data").glob("train-*")), columns=["image"]).to_pylist()
    for number in range(0, len(rows), 3):
        rows[number]["image"]["bytes"] = b"not an image"
    pq.write_table(pa.Table.from_pylist(rows), folder / "train-00000-of-00001.parquet", row_group_size=32)
    # no restarts: Ray would go on with them in this process after the driver has left
    status, said = recipe_here("--name", "bad", "--data", str(tmp_path / "bad"), "--cluster.max-failures", "0")
    for thread in threading.enumerate():
        if thread.name == "ray-train":
            thread.join(60)
    assert status == 1
    assert "max_bad" in said
    assert "Traceback" not in said
    (run_dir,) = storage.glob("bad-*")
    assert json.loads((run_dir / "failure.json").read_text())["error"] == "TooManyBadImages"
    table = (run_dir / "quarantine.jsonl").read_text().splitlines()
    assert table and all(json.loads(line)["reason"] for line in table)


class Begun:
    """A stream that has begun and gives nothing."""

    closed = False

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("where", ["build_loop", "Keeper"])
def test_train_worker__the_stream_begins_before_the_model_is_built_and_ends_if_that_fails(
    tiny: Path, small_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
):
    """In this process, without Ray: what would ask it is answered here."""
    begun: list[tuple[int, Begun]] = []

    def begin(*_: Any, start_step: int, **__: Any) -> Begun:
        begun.append((start_step, Begun()))
        return begun[-1][1]

    def fail(*_: Any, **__: Any) -> None:
        assert len(begun) == 1 and not begun[0][1].closed
        raise MemoryError("no room for the model")

    job = a_tiny_job(tiny, small_images, tmp_path)
    loop = worker.build_loop(job.recipe, job.cluster, torch.device("cpu"))
    Keeper(job, loop, None).save(3, wait=True)
    monkeypatch.setattr(worker, "get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(worker, "_decode_in", lambda job: "worker")
    monkeypatch.setattr(worker, "batches", begin)
    monkeypatch.setattr(worker, where, fail)
    with pytest.raises(MemoryError, match="no room for the model"):
        worker.train_worker(job)
    assert [(step, stream.closed) for step, stream in begun] == [(3, True)]


@pytest.mark.parametrize("fixed", [True, False])
def test_stream__with_fixed_shapes_says_how_many_patches_can_be_masked(
    tiny: Path, small_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fixed: bool
):
    """Without Ray. Of a curriculum each size has its own number."""
    monkeypatch.setattr(worker, "_decode_in", lambda job: "worker")
    monkeypatch.setattr(worker, "batches", partial(worker.batches, read=local_windows))
    job = a_tiny_job(tiny, small_images, tmp_path)
    recipe = job.recipe.override({"method.curriculum": {"length": 0.5, "global_size": 16, "local_size": 8}})
    job = replace(job, recipe=recipe, cluster=ClusterConfig(fixed_shapes=fixed))
    with closing(worker._stream(job, open_inputs(recipe, job.data_path), None, start=0)) as stream:
        found = {batch.masks.shape[2]: batch.most_masked for batch in stream}
    (few, at_first), (many, in_the_end) = sorted(found.items())
    assert few < many
    if fixed:
        assert 0 < at_first < in_the_end < 0.5 * 0.5 * many * 2 * recipe.global_batch
    else:
        assert at_first is in_the_end is None


@pytest.mark.fault  # by its length
def test_train_worker__a_curriculum_has_the_same_losses_cut_in_the_cluster_and_without_ray(
    ray_cluster: None, train_here: Callable[..., Any], tiny: Path, small_images: Path, tmp_path: Path
):
    """Windows that hold images of both sizes are cut twice in the cluster; who cuts must not show."""
    recipe = Recipe().override(read_yaml_file(tiny)).override({"cadence": {"evaluate": 0, "checkpoint": 0}})
    grown = recipe.override({"method.curriculum": {"length": 0.5, "global_size": 16, "local_size": 8}})
    job = Job(
        recipe=grown,
        cluster=ClusterConfig(
            cpus_per_worker=0.5,
            threads=1,
            decode_in="cluster",
            storage=str(tmp_path),
            precision="fp32",  # as `train_here`
            attention="fused",
        ),
        run_dir=tmp_path,
        data_path=str(small_images),
        data_digest=open_collection(str(small_images), split="train").manifest.digest,
        tracking_uri="",
        mlflow_run_id=None,
    )
    fit(job)
    rows = read_metrics(job.run_dir / METRICS_FILE)
    losses = [row[LOSS_TOTAL] for row in rows.values() if LOSS_TOTAL in row]
    expected = [float(report.metrics[LOSS_TOTAL]) for report in train_here(grown, small_images)]
    assert losses == pytest.approx(expected, rel=1e-6) and len(losses) == 12
    assert losses != pytest.approx([float(r.metrics[LOSS_TOTAL]) for r in train_here(recipe, small_images)], rel=1e-2)
