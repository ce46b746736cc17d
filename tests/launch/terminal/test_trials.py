"""What is said of a sweep where there is no terminal, and the rows of the table where there is one."""

import io
from pathlib import Path

import presets
import pytest
from rich.console import Console

from raydino.launch.terminal.trials import TrialsTable
from raydino.launch.trials.board import TRIALS, Board, Listed
from raydino.launch.trials.outcome import Ending, end
from raydino.launch.trials.trial import Trial
from raydino.tracking.run import KNN_TOP1, RANKME
from raydino.tracking.spool import Spool

RECIPE = presets.DINOV2["laptop"].override({"steps": 10})


def _board(folder: Path, names: str) -> Board:
    trials = [Trial(name, RECIPE, name) for name in names]
    return Board(Listed(trials), folder, lambda trial, run_dir: None, lambda result: None)  # type: ignore[arg-type, return-value]


def _log(folder: Path, name: str, step: int, value: float | None) -> None:
    spool = Spool(folder / TRIALS / name)
    spool.log({"loss/total": 1.0} if value is None else {RANKME: 2.0, KNN_TOP1: value}, step)
    spool.close("FINISHED")


def test_lines__an_evaluation_and_an_end_are_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    board = _board(tmp_path, "ab")
    for key in ("1", "2"):
        board.next(key)
    with TrialsTable({"a": "optim.lr 0.1"}, KNN_TOP1, console=Console(file=io.StringIO())) as table:
        _log(tmp_path, "a", 5, 0.25)
        _log(tmp_path, "b", 3, None)
        for _ in range(2):
            table.update(board)
        (tmp_path / TRIALS / "a" / "STOP").write_text("stopped by ASHA at rung 1")
        board.over("1", None)
        for _ in range(2):
            table.update(board)
    assert capsys.readouterr().out.splitlines() == [
        "a  step 5/10  knn/top1 0.2500",
        "a  optim.lr 0.1  0.2500  stopped by ASHA at rung 1",
    ]


def test_lines__what_was_over_before_has_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    _log(tmp_path, "a", 5, 0.25)
    _log(tmp_path, "a", 10, 0.5)
    end(tmp_path / TRIALS / "a", Ending("finished", "", 10))
    board = _board(tmp_path, "a")
    assert board.next("1") is None
    with TrialsTable({}, KNN_TOP1, console=Console(file=io.StringIO())) as table:
        table.update(board)
    assert capsys.readouterr().out.splitlines() == ["a    0.5000  finished"]


def test_table__has_a_row_for_each_trial(tmp_path: Path):
    board = _board(tmp_path, "ab")
    for key in ("1", "2"):
        board.next(key)
    _log(tmp_path, "a", 5, 0.25)
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    with TrialsTable({"a": "optim.lr 0.1"}, KNN_TOP1, console=console) as table:
        table.update(board)
    shown = screen.getvalue()
    for words in ("knn/top1", "optim.lr 0.1", "5/10", "0.2500", "training", "starting"):
        assert words in shown
