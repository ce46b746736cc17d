"""Runs below a parent in the real MLflow, brought up to date from their folders after whatever kept them from it."""

from pathlib import Path

import pytest

from raydino.tracking.opening import Opening, TrackerUnavailable
from raydino.tracking.spool import Spool
from raydino.tracking.tree import PARENT_TAG, make_ready, settle

DEAD = "http://anna:hunter2@127.0.0.1:9"  # the discard port: refused at once


def _folder(path: Path, name: str, **tags: str) -> Path:
    path.mkdir()
    opening = {"params": {"seed": 0}, "dataset": None, "recipe_yaml": "seed: 0\n", "run_dir": path}
    Opening.of(experiment="raydino", run_name=name, tags=tags, **opening)  # type: ignore[arg-type]
    return path


def test_settle__sends_the_whole_record_once_and_says_how_it_ended(tmp_path: Path):
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    make_ready(uri, "raydino")
    parent = settle(_folder(tmp_path / "sweep", "sweep"), tracking_uri=uri, status="FINISHED", tags={})
    child = _folder(tmp_path / "a", "a", group="a")
    spool = Spool(child)
    for step in (1, 2, 3):
        spool.log({"loss/total": 1.0 / step}, step)
    spool.close("KILLED")
    (child / "notes.txt").write_text("stopped")
    tags = {PARENT_TAG: parent, "ending_reason": "stopped by ASHA at rung 1; token=hf_abcdefghijklmnopqrstuvwxyz"}
    ids = {settle(child, tracking_uri=uri, status="KILLED", tags=tags, files=[child / "notes.txt"]) for _ in range(2)}
    assert len(ids) == 1
    client = MlflowClient(uri)
    run = client.get_run(ids.pop())
    assert (run.info.status, run.data.tags[PARENT_TAG], run.data.params["seed"]) == ("KILLED", parent, "0")
    assert "rung 1" in run.data.tags["ending_reason"] and "hf_" not in run.data.tags["ending_reason"]
    history = client.get_metric_history(run.info.run_id, "loss/total")
    assert sorted((point.step, point.value) for point in history) == [(1, 1.0), (2, 0.5), (3, 1.0 / 3)]
    assert "notes.txt" in [each.path for each in client.list_artifacts(run.info.run_id)]
    assert len(client.search_runs([run.info.experiment_id])) == 2


def test_settle__without_a_tracker_says_so_without_the_password(tmp_path: Path):
    folder = _folder(tmp_path / "a", "a")
    for call in (
        lambda: settle(folder, tracking_uri=DEAD, status="FINISHED", tags={}),
        lambda: make_ready(DEAD, "raydino"),
    ):
        with pytest.raises(TrackerUnavailable) as error:
            call()
        assert "hunter2" not in str(error.value) and "127.0.0.1:9" in str(error.value)
