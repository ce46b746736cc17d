"""Workers and machines are lost in the middle of an epoch: the run goes on, and no trace of it is left in what was trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raydino.faults import Fault
from raydino.launch.engine import trainer
from raydino.launch.engine.trainer import Training, fit
from raydino.launch.job import Job

pytestmark = [pytest.mark.fault, pytest.mark.ray, pytest.mark.slow]
LIMIT = 300.0  # seconds
SLOW = Fault("step", "sleep", rank=0, seconds=2.5, times=1000)


def finish(training: Training) -> None:
    assert training.ended(timeout=LIMIT)
    assert training.error() is None


def test_fault_1_and_2__killed_in_a_step_and_right_after_a_save(
    nodes: Any, stage: Any, pair: list[Any], undisturbed: Any, job: Callable[..., Job], tmp_path: Path
):
    """Ray loses a checkpoint that was reported just before a kill; ours is taken up if its COMMIT was written."""
    stage.clear(Fault("step", "kill", rank=1, step=5), Fault("save.prune", "kill", step=9))
    fit(job())
    assert [line["begin"] for line in stage.begins(0)] == [0, 3, 9]
    assert [stage.steps(0), stage.steps(1)] == pair  # losses bit for bit, every sample once, in order
    assert stage.order() == undisturbed.order()
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000012", "step-00000015", "step-00000018"]  # and nothing half written


def test_fault_4_and_27__a_machine_is_lost_and_comes_back(
    nodes: Any, stage: Any, undisturbed: Any, job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
):
    """Two workers, then one, then two: other sums over workers, so other last bits, but the same images in the same slots."""
    monkeypatch.setattr(trainer, "RESIZE_EVERY", 2.0)
    # So slow that the run cannot end before the machine is back, however long Ray takes for it.
    stage.clear(SLOW)
    training = Training(job(min_workers=1))
    stage.wait_for(lambda: 3 in stage.steps(1))
    nodes.lose()
    stage.wait_for(lambda: worlds(stage) == [2, 1] and attempt_steps(stage))
    nodes.second = nodes.add()
    stage.wait_for(lambda: worlds(stage) == [2, 1, 2])
    stage.list.write_text("[]")
    finish(training)
    assert worlds(stage) == [2, 1, 2]
    assert stage.order() == undisturbed.order()


def worlds(stage: Any) -> list[int]:
    """On how many workers the run was each time that it began."""
    return [line["world"] for line in stage.begins(0)]


def attempt_steps(stage: Any) -> list[int]:
    """Steps of rank 0 since it last began."""
    lines = stage.lines(0)
    last = max(number for number, line in enumerate(lines) if "begin" in line)
    return [line["step"] for line in lines[last + 1 :]]


def test_fault_16__a_hang_and_a_frozen_process(
    nodes: Any, stage: Any, pair: list[Any], job: Callable[..., Job], tmp_path: Path
):
    """Ray asks another thread whether a worker lives, so it notices neither; the watchdog of the rank that waits for it does."""
    stage.clear(Fault("step", "hang", rank=1, step=4), Fault("step", "freeze", rank=0, step=10))
    fit(job(hang_timeout=15.0))
    assert [line["begin"] for line in stage.begins(0)] == [0, 3, 9]
    assert [stage.steps(0), stage.steps(1)] == pair
    stacks = [path.read_text() for path in (tmp_path / "stacks").glob("*.of-rank1.txt")]
    assert any("faults.py" in text and "_strike" in text for text in stacks)  # where it hung
    assert list((tmp_path / "stacks").glob("*.of-rank0.txt"))


def test_fault_23__tasks_that_fetch_images_run_out_of_memory(
    nodes: Any, stage: Any, pair: list[Any], job: Callable[..., Job], tmp_path: Path
):
    """The system kills such a process twice, and Ray tries it again; in another Python says MemoryError, and the worker whose
    task that was starts again at its checkpoint."""
    stage.clear(Fault("fetch", "kill", step=1, times=2), Fault("fetch", "exhaust", step=3))
    fit(job())
    assert len(list(stage.folder.glob("faults.json.*"))) == 3
    assert len(stage.begins(0)) == 2
    assert [stage.steps(0), stage.steps(1)] == pair
    (error,) = [line for path in tmp_path.glob("errors-rank*.jsonl") for line in path.read_text().splitlines()]
    assert "MemoryError" in error
