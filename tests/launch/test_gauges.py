"""What is shown of a living run, without a cluster; tests/dashboards/ asks a real Prometheus."""

import json
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray.util.metrics

from raydino.launch import gauges
from raydino.launch.cluster import ClusterConfig
from raydino.launch.gauges import Folder, Gauges
from raydino.launch.job import Job
from raydino.recipe import Recipe
from raydino.tracking import run as names
from raydino.tracking.outbox import SENT_FILE
from raydino.tracking.spool import Spool


class Shown:
    """Stands for Ray's gauges: every value that any of them was set to."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, float, dict[str, str]]] = []

    def __call__(self, name: str, description: str, *, tag_keys: tuple[str, ...]) -> Any:
        assert re.fullmatch(r"raydino_[a-z0-9_]+", name) and tag_keys == ("run", "trial")
        shown = self

        class Gauge:
            def set(self, value: float, *, tags: dict[str, str]) -> None:
                shown.calls.append((name, value, tags))

        return Gauge()


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    found = Shown()
    monkeypatch.setattr(ray.util.metrics, "Gauge", found)
    monkeypatch.setattr(gauges, "EVERY", 0.01)
    monkeypatch.setattr(gauges, "LOOK", 0.01)
    return found


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Job]:
    def make(folder: str, run_id: str | None = "id") -> Job:
        path = tmp_path / folder
        path.mkdir(parents=True, exist_ok=True)
        return Job(Recipe(), ClusterConfig(), path, "", "", tracking_uri="", mlflow_run_id=run_id)

    return make


def _until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_gauges__repeat_what_they_were_told_and_fall_silent_at_the_end(shown: Shown):
    with Gauges("a", "7") as shown_run:
        shown_run.set({"loss/total": 2.0})
        _until(lambda: shown.calls.count(("raydino_loss_total", 2.0, {"run": "a", "trial": "7"})) >= 3)
        shown_run.set({"loss/total": 1.0})
        _until(lambda: shown.calls[-1][1] == 1.0)
    _until(lambda: not [each for each in threading.enumerate() if each.name == "gauges"])
    before = len(shown.calls)
    shown_run.set({"loss/total": 0.0})
    time.sleep(0.05)
    assert len(shown.calls) == before


def test_gauges__off_show_nothing(shown: Shown):
    with Gauges("a", on=False) as silent:
        silent.set({"loss/total": 2.0})
        time.sleep(0.05)
    assert shown.calls == []


def test_gauges__storage_that_fails_or_hangs_stops_nothing(shown: Shown, caplog: pytest.LogCaptureFixture):
    hangs, looks = threading.Event(), []

    def look() -> dict[str, float]:
        looks.append(1)
        if len(looks) < 4:
            raise OSError("stale file handle")
        hangs.wait()
        return {}

    with Gauges("a", look=look) as shown_run:
        shown_run.set({"loss/total": 2.0})
        _until(lambda: len(looks) == 4)
        before = len(shown.calls)
        _until(lambda: len(shown.calls) > before + 3)
    hangs.set()
    assert sum("stale file handle" in record.message for record in caplog.records) == 1  # said once


def test_of_run__tells_a_trial_from_a_run(job: Callable[..., Job], shown: Shown):
    for folder, tags in {
        "runs/dinov2-abc": {"run": "dinov2-abc", "trial": ""},
        "runs/sweep-x/trials/4-seed1": {"run": "sweep-x", "trial": "4-seed1"},
    }.items():
        with Gauges.of_run(job(folder), on=True) as each:
            each.set({"run/step": 1})
            _until(lambda tags=tags: ("raydino_run_step", 1.0, tags) in shown.calls)


def test_folder__counts_bad_images_once_and_knows_what_the_tracker_lacks(job: Callable[..., Job]):
    a_job = job("run")
    spool, look = Spool(a_job.run_dir, clock=lambda: time.time() - 100), Folder(a_job)
    table = a_job.run_dir / "quarantine.jsonl"
    found = look()
    assert found["data/quarantined"] == 0 and found["tracker/backlog_bytes"] == found["tracker/behind_seconds"] == 0
    assert 0 < found["run/disk_free_bytes"] < found["run/disk_size_bytes"]
    table.write_text("{}\n{}\n")
    assert look()["data/quarantined"] == look()["data/quarantined"] == 2
    table.write_text("{}\n{}\n{}\n")
    spool.log({"loss/total": 1.0}, 1)
    first = spool.path.stat().st_size
    spool.log({"loss/total": 1.0}, 2)
    found = look()
    assert found["data/quarantined"] == 3
    assert found["tracker/backlog_bytes"] == spool.path.stat().st_size
    assert 99.9 < found["tracker/behind_seconds"] < 110  # the record rounds its clock to milliseconds
    (a_job.run_dir / SENT_FILE).write_text(json.dumps({"run_id": "id", "bytes": first}))
    assert look()["tracker/backlog_bytes"] == spool.path.stat().st_size - first
    (a_job.run_dir / SENT_FILE).write_text(json.dumps({"run_id": "id", "bytes": spool.path.stat().st_size}))
    assert look()["tracker/behind_seconds"] == 0


def test_folder__of_a_run_that_nobody_tracks_says_nothing_of_a_tracker(job: Callable[..., Job]):
    assert "tracker/behind_seconds" not in Folder(job("run", run_id=None))()


def test_prometheus_name__keeps_all_names_apart():
    known = [value for value in vars(names).values() if isinstance(value, str) and re.fullmatch(r"[a-z]+/\w+", value)]
    assert len(known) > 60
    assert len({names.prometheus_name(name) for name in known}) == len(known)
    assert all(re.fullmatch(r"ray_raydino_[a-z0-9_]+", names.prometheus_name(name)) for name in known)
    assert names.prometheus_name("robustness/top1-shuffled.x") == "ray_raydino_robustness_top1_shuffled_x"
