"""Saving behind the training: the moment of the call is saved, failures are counted and forgiven, a full disk is survived."""

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from raydino.tracking.run import CHECKPOINT_FAILURES, CHECKPOINT_SECONDS, CHECKPOINT_STALL
from raydino.train import checkpoint as cp
from raydino.train import saving
from raydino.train.saving import Saver

PLATFORM = Path(__file__).resolve().parents[2] / "platform"


def begin(saver: Saver, step: int, **more: Any) -> dict[str, float]:
    values = torch.full((50,), float(step))
    return saver.save(step, model={"w": values}, optimizer={"0.exp_avg": values}, meta={"seed": step}, **more)


def fail(monkeypatch: pytest.MonkeyPatch, wrong: Callable[[int], OSError | None]) -> None:
    """Let `wrong` of the number of the attempt say what a save ends with."""
    attempts, real = [0], saving.save

    def maybe(*arguments: Any, **named: Any) -> Path:
        attempts[0] += 1
        if error := wrong(attempts[0]):
            raise error
        return real(*arguments, **named)

    monkeypatch.setattr(saving, "save", maybe)


def test_save__returns_before_it_is_written_and_keeps_the_moment_of_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    gate, real = threading.Event(), saving.save
    monkeypatch.setattr(saving, "save", lambda *a, **k: (gate.wait(), real(*a, **k))[1])
    saver = Saver(tmp_path, keep=2, limit=3)
    weight, moment = torch.ones(5, 3).t(), torch.ones(3)
    assert saver.save(1, model={"w": weight}, optimizer={"0.exp_avg": moment}, meta={}) == {}
    assert saver.poll() == {} and not list(tmp_path.iterdir())
    weight.zero_(), moment.zero_()  # training goes on
    gate.set()
    told = saver.finish()
    assert told[CHECKPOINT_FAILURES] == 0 and told[CHECKPOINT_SECONDS] >= 0 and told[CHECKPOINT_STALL] >= 0
    saved = cp.load_newest(tmp_path)
    assert torch.equal(saved.model["w"], torch.ones(3, 5)) and torch.equal(saved.optimizer["0.exp_avg"], torch.ones(3))


def test_save__waits_for_the_one_before_whose_copy_it_overwrites(tmp_path: Path):
    saver = Saver(tmp_path, keep=5, limit=3)
    told = [begin(saver, step) for step in range(1, 6)] + [saver.finish()]
    assert [CHECKPOINT_SECONDS in each for each in told] == [False] + [True] * 5
    for path in cp.committed(tmp_path):
        saved = cp.load(path)
        assert (saved.model["w"] == saved.step).all() and saved.meta == {"seed": saved.step}
    assert len(cp.committed(tmp_path)) == 5


def test_save__what_comes_before_runs_first_and_its_failure_is_one_of_saving(tmp_path: Path):
    saver, seen = Saver(tmp_path, keep=2, limit=3), []
    begin(saver, 1, before=lambda: seen.append(len(cp.committed(tmp_path))))

    def unwell() -> None:
        raise OSError("no claims")

    assert begin(saver, 2, before=unwell)[CHECKPOINT_FAILURES] == 0
    assert begin(saver, 3)[CHECKPOINT_FAILURES] == 1
    saver.finish()
    assert seen == [0] and [p.name[-1] for p in cp.committed(tmp_path)] == ["3", "1"]


def test_poll__failures_are_told_and_forgiven_by_a_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    fail(monkeypatch, lambda attempt: OSError(errno.EIO, "unwell") if attempt in (2, 3, 5, 6) else None)
    saver = Saver(tmp_path, keep=2, limit=3)
    told = [begin(saver, step).get(CHECKPOINT_FAILURES) for step in range(1, 8)]
    assert told == [None, 0, 1, 2, 0, 1, 2]
    assert saver.finish()[CHECKPOINT_FAILURES] == 0
    assert [path.name[-1] for path in cp.committed(tmp_path)] == ["7", "4"]
    assert caplog.text.count("no checkpoint was saved") == 4


def test_poll__too_many_failures_in_a_row_end_the_run_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fail(monkeypatch, lambda attempt: OSError(errno.EROFS, "read-only") if attempt > 1 else None)
    saver = Saver(tmp_path, keep=2, limit=2)
    for step in (1, 2, 3):
        begin(saver, step)
    with pytest.raises(cp.CheckpointError, match="2 checkpoints in a row .* step 3: .*read-only.*--resume auto"):
        begin(saver, 4)
    assert [path.name[-1] for path in cp.committed(tmp_path)] == ["1"]


def test_finish__tries_the_last_one_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(saving.time, "sleep", lambda _: None)
    fail(monkeypatch, lambda attempt: OSError(errno.EIO, "unwell") if attempt < 3 else None)
    saver = Saver(tmp_path, keep=2, limit=3)
    begin(saver, 1)
    assert saver.finish()[CHECKPOINT_FAILURES] == 0
    assert cp.load_newest(tmp_path).step == 1


def test_save__a_full_disk_costs_the_oldest_checkpoints_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fail(monkeypatch, lambda attempt: OSError(errno.ENOSPC, "full") if attempt == 5 else None)
    saver = Saver(tmp_path, keep=4, limit=1)
    for step in range(1, 6):
        begin(saver, step)
    saver.finish()
    assert [path.name[-1] for path in cp.committed(tmp_path)] == ["5", "4", "3"]  # two were left, and room for one more


FULL = """
import json, logging, resource, sys, torch
from pathlib import Path
from raydino.train import checkpoint as cp
from raydino.train.saving import Saver
folder, said = Path(sys.argv[1]), []
logging.basicConfig(stream=sys.stderr)
saver = Saver(folder, keep=2, limit=3)
def begin(step, size):
    values = torch.full((size,), float(step))
    return saver.save(step, model={"w": values}, optimizer={"0.m": values}, meta={})
begin(1, 1000); saver.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
for step in (2, 3):
    begin(step, 100_000)
    said.append(saver.wait())
left = sorted(path.name for path in folder.iterdir())
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
begin(4, 100_000)
said.append(saver.finish())
print(json.dumps([said, left, cp.load_newest(folder).step]))
"""


def test_save__files_that_may_not_grow_are_survived_until_they_may(tmp_path: Path):
    """The kernel's own refusal (RLIMIT_FSIZE) in the middle of a file, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FULL, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(PLATFORM)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    told, left, newest = json.loads(done.stdout)
    assert [each[CHECKPOINT_FAILURES] for each in told] == [1, 2, 0]
    assert left == ["step-00000001"] and newest == 4
    assert done.stderr.count("File too large") == 2
