"""A clock that jumps back by an hour at every look, and another time zone: order comes from steps and lines, never from time."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from raydino.launch.lock import LOCK, refuse_if_held, run_lock
from raydino.recipe import Recipe
from raydino.tracking.meters import Rate
from raydino.tracking.spool import METRICS_FILE, Spool, read_metrics
from raydino.train import checkpoint as cp


@pytest.fixture
def falling_clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    hours = iter(range(10**6))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 3600.0 * next(hours))
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_fault_24__checkpoints_record_and_rate(falling_clock: None, tmp_path: Path):
    spool, rate = Spool(tmp_path, clock=time.time), Rate()
    for step in (3, 6, 9, 12):
        path = cp.save(tmp_path / "checkpoints", cp.Checkpoint(step, {"w": torch.full((2,), step)}, {}, {}), keep=2)
        for file in (*path.iterdir(), path):
            os.utime(file, (10**9 - step, 10**9 - step))  # the newest looks oldest
        spool.log({"loss/total": float(step)}, 1)
        rate.step(images=8, waited=0.0)
    assert [path.name for path in cp.committed(tmp_path / "checkpoints")] == ["step-00000012", "step-00000009"]
    newest = cp.load_newest(tmp_path / "checkpoints")
    assert newest is not None and newest.step == 12 and newest.model["w"].tolist() == [12, 12]
    assert read_metrics(tmp_path / METRICS_FILE)[1] == {"loss/total": 12.0}  # the line that was written last
    assert all(value >= 0 for value in rate.take().values())


def test_fault_24__the_lock_of_a_living_run_is_kept(falling_clock: None, tmp_path: Path):
    with run_lock(tmp_path):
        os.utime(tmp_path / LOCK, (1, 1))
        with pytest.raises(Exception, match="in use by pid"):
            refuse_if_held(tmp_path)


def test_fault_24__training_is_the_same(
    small: Recipe, images: Path, train_here: Callable[..., Iterator[Any]], falling_clock: None, undisturbed: Any
):
    losses = {report.step: float(report.metrics["loss/total"]).hex() for report in train_here(small, images)}
    assert losses == {step: line["loss"] for step, line in undisturbed.steps().items()}
