"""Which failures end a run: the same exception at the same step, seen by the same rank twice in a row."""

import json
from pathlib import Path

import pytest

from raydino.launch.workers.failure import ERRORS, FAILURE, came_again, explanation, give_up


def raised(error: Exception) -> Exception:
    """The error with a traceback, as an except clause gets it."""
    try:
        raise error
    except Exception as caught:
        return caught


def again(run_dir: Path, error: Exception, *, rank: int = 0, step: int = 7) -> bool:
    return came_again(run_dir, raised(error), rank=rank, step=step)


def test_came_again__type_message_and_step_of_the_last_one(tmp_path: Path):
    assert not again(tmp_path, KeyError("a"))
    assert again(tmp_path, KeyError("a"))
    assert not again(tmp_path, KeyError("b"))
    assert not again(tmp_path, ValueError("b"))
    assert not again(tmp_path, ValueError("b"), step=8)
    assert not again(tmp_path, ValueError("b"), step=7)  # as once before, but not last time
    assert again(tmp_path, ValueError("b"), step=7)


def test_came_again__ranks_do_not_count_for_each_other(tmp_path: Path):
    assert not again(tmp_path, KeyError("a"), rank=0)
    assert not again(tmp_path, KeyError("a"), rank=1)
    assert again(tmp_path, KeyError("a"), rank=1)


def test_came_again__what_ray_writes_around_a_task_error_does_not_count(tmp_path: Path):
    assert not again(tmp_path, RuntimeError("ray::map() (pid=11, ip=10.0.0.1)\n  File x\nOSError: page 3 is damaged\n"))
    assert again(tmp_path, RuntimeError("ray::map() (pid=94, ip=10.0.0.2)\n  File x\nOSError: page 3 is damaged\n"))


def test_came_again__keeps_the_traceback_without_secrets(tmp_path: Path):
    again(tmp_path, OSError("cannot reach https://anna:hunter2@host/bucket"))
    [line] = (tmp_path / ERRORS.format(0)).read_text().splitlines()
    assert "in raised" in json.loads(line)["traceback"]
    assert "hunter2" not in line


@pytest.mark.parametrize("error", [KeyError(), ValueError("first\n\nlast line\n")])
def test_give_up__leaves_what_the_driver_shows(tmp_path: Path, error: Exception):
    give_up(tmp_path, error, explanation(error, rank=3, step=5))
    failure = json.loads((tmp_path / FAILURE).read_text())
    assert failure["error"] == type(error).__name__
    assert "after step 5" in failure["message"] and "errors-rank3.jsonl" in failure["message"]
    assert ("last line" in failure["message"]) == bool(error.args)
