"""The board without a cluster: trials are played by writing what a run leaves in its folder."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import presets
import pytest

from raydino.config import ConfigError
from raydino.launch.job import Job
from raydino.launch.resume import RECIPE_FILE
from raydino.launch.trials.board import TRIALS, Board, Listed, remember
from raydino.launch.trials.halving import Halving, Judge
from raydino.launch.trials.outcome import ATTEMPTS, Ending, attempt, end, ending, held, over
from raydino.launch.trials.trial import Trial
from raydino.launch.workers.wishes import STOP, tell
from raydino.tracking.run import KNN_TOP1, RANKME
from raydino.tracking.spool import METRICS_FILE, Spool
from raydino.train.verify import COMMIT

RECIPE = presets.DINOV2["laptop"].override({"steps": 10, "global_batch": 64})


def _trials(count: int) -> list[Trial]:
    return [Trial(f"{number}", RECIPE.override({"seed": number}), f"{number}") for number in range(count)]


def _prepare(trial: Trial, run_dir: Path) -> Job:
    (run_dir / RECIPE_FILE).write_text(trial.recipe.to_yaml())
    (run_dir / STOP).unlink(missing_ok=True)
    return trial.name  # type: ignore[return-value] what the board hands on it does not look at


@pytest.fixture
def board(tmp_path: Path) -> Callable[..., Board]:
    def make(trials: list[Trial], judge: Judge | None = None) -> Board:
        return Board(Listed(trials), tmp_path, _prepare, lambda result: None, judge)

    return make


def _trained(folder: Path, name: str, step: int, *, value: float | None = None) -> None:
    """Leave what a run leaves that has come to `step`, saved and perhaps evaluated there."""
    run_dir = folder / TRIALS / name
    saved = run_dir / "checkpoints" / f"step-{step:08}"
    saved.mkdir(parents=True, exist_ok=True)
    (saved / COMMIT).touch()
    if value is not None:
        spool = Spool(run_dir)
        spool.log({RANKME: 2.0, KNN_TOP1: value}, step)
        spool.close("FINISHED")


def test_board__ends_are_told_apart(board: Callable[..., Board], tmp_path: Path):
    trials = [*_trials(4), Trial("4", RECIPE, "4", until=5)]
    board_ = board(trials)
    keys = [f"key {trial.name}" for trial in trials]
    assert [board_.next(key) for key in keys] == ["0", "1", "2", "3", "4"]
    assert board_.next("key") is None
    for name, step in (("0", 10), ("1", 4), ("2", 4), ("3", 4), ("4", 5)):
        _trained(tmp_path, name, step, value=0.5)
    (tmp_path / TRIALS / "1" / STOP).write_text("stopped by ASHA at rung 1")
    for key, failure in zip(keys, (None, None, "ZeroDivisionError", None, None), strict=True):
        board_.over(key, failure)
    found = [board_.results[name] for name in "01234"]
    assert [result.status for result in found] == ["finished", "stopped", "failed", "failed", "paused"]
    assert [result.reason for result in found][:3] == ["", "stopped by ASHA at rung 1", "ZeroDivisionError"]
    assert "without a word" in found[3].reason
    assert [result.images_seen for result in found] == [640, 256, 256, 256, 320]
    assert found[0].value(KNN_TOP1) == 0.5


def test_board__what_is_over_is_not_run_again_and_what_failed_or_was_interrupted_is(
    board: Callable[..., Board], tmp_path: Path
):
    trials = _trials(5)
    for trial, status in zip(trials, ("finished", "stopped", "failed", "interrupted"), strict=False):
        run_dir = tmp_path / TRIALS / trial.name
        run_dir.mkdir(parents=True)
        (run_dir / RECIPE_FILE).write_text(trial.recipe.to_yaml())
        end(run_dir, Ending(status, "because", 10))
    board_ = board(trials)
    asked = [board_.next("a"), board_.next("b"), board_.next("c"), board_.next("d")]
    assert asked == ["2", "3", "4", None]
    assert {name: result.status for name, result in board_.results.items()} == {"0": "finished", "1": "stopped"}


def test_board__a_verdict_that_the_driver_did_not_live_to_see_obeyed_holds(board: Callable[..., Board], tmp_path: Path):
    _trained(tmp_path, "0", 4, value=0.1)
    (tmp_path / TRIALS / "0" / STOP).write_text("stopped by ASHA at rung 1")
    board_ = board(_trials(1))
    assert board_.next("a") is None
    assert board_.results["0"].status == "stopped" and ending(tmp_path / TRIALS / "0") is not None


def test_board__a_folder_of_another_recipe_fails_its_trial_alone(board: Callable[..., Board], tmp_path: Path):
    trials = _trials(2)
    (tmp_path / TRIALS / "0").mkdir(parents=True)
    (tmp_path / TRIALS / "0" / RECIPE_FILE).write_text(RECIPE.override({"optim.lr": 0.123}).to_yaml())
    board_ = board(trials)
    assert board_.next("a") == "1"
    assert board_.results["0"].status == "failed" and "optim.lr: 0.123" in board_.results["0"].reason


def test_board__the_judge_speaks_through_a_file(board: Callable[..., Board], tmp_path: Path):
    board_ = board(_trials(2), Judge(Halving(320, 640), objective=KNN_TOP1))
    board_.next("a"), board_.next("b")
    board_.evaluated("a", 320, 0.5)
    board_.evaluated("b", 320, 0.4)
    assert not (tmp_path / TRIALS / "0" / STOP).exists()
    assert "rung 1" in (tmp_path / TRIALS / "1" / STOP).read_text()


def test_board__a_spared_trial_is_compared_with_and_never_stopped(board: Callable[..., Board], tmp_path: Path):
    trials = [Trial("0", RECIPE, "0", spared=True), *_trials(3)[1:]]
    board_ = board(trials, Judge(Halving(320, 640), objective=KNN_TOP1))
    for key in ("a", "b", "c"):
        board_.next(key)
    board_.evaluated("b", 320, 0.5)
    board_.evaluated("a", 320, 0.4)
    board_.evaluated("c", 320, 0.3)
    stopped = [name for name in "012" if (tmp_path / TRIALS / name / STOP).exists()]
    assert stopped == ["2"]


def test_board__stopped_from_outside_it_begins_nothing_and_asks_all_to_leave(
    board: Callable[..., Board], tmp_path: Path
):
    board_ = board(_trials(3))
    board_.next("a")
    board_.stop()
    assert board_.next("b") is None
    _trained(tmp_path, "0", 3)
    board_.over("a", None)
    assert board_.results["0"].status == "interrupted"


def test_board__names_stand_once():
    with pytest.raises(ConfigError, match="trials 0"):
        Listed([*_trials(2), _trials(1)[0]])


def test_remember__only_evaluations_that_were_judged(tmp_path: Path):
    """Trial 1 was evaluated at the rung, and the driver died before its verdict: it comes there again and is judged then."""
    for name, value in (("0", 0.5), ("1", 0.1)):
        _trained(tmp_path, name, 5, value=value)
    tell(tmp_path / TRIALS / "0", 5)
    judge = Judge(Halving(320, 640), objective=KNN_TOP1)
    remember(judge, _trials(2), tmp_path, objective=KNN_TOP1)
    assert judge.see("1", 320, 0.1) is not None
    assert judge.see("0", 320, 0.0) is None


def test_known__is_what_is_left_of_a_list_in_its_order():
    trials = _trials(3)
    assert Listed(trials).known() == trials


def test_held__is_the_time_between_begin_and_end_and_a_killed_attempt_ends_with_its_record(tmp_path: Path):
    spool = Spool(tmp_path, clock=lambda: 130.0)
    spool.log({RANKME: 1.0}, 0)
    lines = [{"begin": 100.0}, {"begin": 200.0}, {"end": 250.5}, {"begin": 300.0}]
    (tmp_path / ATTEMPTS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert held(tmp_path) == pytest.approx(30.0 + 50.5 + 0.0)
    spool.close("FINISHED")


def test_attempt__is_written_as_it_happens(tmp_path: Path):
    attempt(tmp_path, begins=True)
    time.sleep(0.05)
    attempt(tmp_path, begins=False)
    assert 0.04 < held(tmp_path) < 5
    assert not (tmp_path / METRICS_FILE).exists()


def test_over__a_segment_is_over_at_its_end_and_not_at_the_next(tmp_path: Path):
    end(tmp_path, Ending("paused", "", 5))
    assert over(Trial("a", RECIPE, "a", until=5), tmp_path)
    assert not over(Trial("a", RECIPE, "a", until=10), tmp_path)
