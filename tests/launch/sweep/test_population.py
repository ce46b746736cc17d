"""Segmented population-based training without a cluster: who copies whom, what is copied, and a driver that dies in between."""

import json
from pathlib import Path

import presets
import pytest
import torch

from raydino.launch.sweep.population import STATE, Exploit, Member, adopt, decide, evolve
from raydino.launch.sweep.space import uniform
from raydino.launch.trials.board import TRIALS
from raydino.launch.trials.trial import Evaluation, Trial, TrialResult
from raydino.launch.workers.keep import FOLDER
from raydino.train.checkpoint import Checkpoint, load, newest, save

KEY = "method.teacher_momentum.start"
SPACE = {KEY: uniform(0.5, 0.99)}
RECIPE = presets.DINOV2["laptop"].override({"steps": 40})


def _result(trial: Trial, value: float | None, status="paused") -> TrialResult:
    history = () if value is None else (Evaluation(trial.last_step, 64 * trial.last_step, {"m": value}),)
    return TrialResult(trial, status, history, {}, Path(), 1.0, 64 * trial.last_step)


def _decide(values: dict[str, float | None], *, statuses: dict[str, str] | None = None) -> list[Exploit]:
    members = [Member(name, {KEY: 0.5 + 0.05 * number}) for number, name in enumerate(values)]
    results = [
        _result(Trial(name, RECIPE, name, 10), value, (statuses or {}).get(name, "paused"))
        for name, value in values.items()
    ]
    return decide(results, members, SPACE, RECIPE, "m", segment=0, step=10, vet=lambda recipe: None)


def test_decide__the_worst_quarter_copies_one_of_the_best_and_moves_by_a_fifth():
    found = _decide({"a": 0.1, "b": 0.9, "c": 0.5, "d": 0.8, "e": 0.2, "f": 0.6, "g": 0.3, "h": 0.4})
    assert sorted(each.loser for each in found) == ["a", "e"]
    assert {each.winner for each in found} <= {"b", "d"}
    for each in found:
        winner = {"b": 0.55, "d": 0.65}[each.winner]
        assert each.after[KEY] in (pytest.approx(0.8 * winner), pytest.approx(1.2 * winner), 0.5)
        assert each.worth[0] < each.worth[1]


def test_decide__equal_members_stay_as_they_are():
    assert _decide({"a": 0.5, "b": 0.5, "c": 0.5}) == []


def test_decide__a_failed_member_begins_again_from_a_copy():
    (found,) = _decide({"a": None, "b": 0.5}, statuses={"a": "failed"})[:1]
    assert (found.loser, found.winner) == ("a", "b")


def test_decide__is_the_same_every_time():
    values = {name: number / 10 for number, name in enumerate("abcdefgh")}
    assert _decide(values) == _decide(values)


def _saved(folder: Path, name: str, step: int, value: float) -> None:
    checkpoint = Checkpoint(step, {"weight": torch.full((3,), value)}, {}, {"run": name})
    save(folder / TRIALS / name / FOLDER, checkpoint, keep=3)


def test_adopt__the_copy_is_sound_newest_and_alone_and_a_second_time_changes_nothing(tmp_path: Path):
    _saved(tmp_path, "winner", 10, 1.0)
    for step in (5, 10):
        _saved(tmp_path, "loser", step, 0.0)
    exploit = Exploit(0, 10, "loser", "winner", (0.1, 0.9), {}, {})
    for _ in range(2):
        adopt(tmp_path, exploit)
        path, rejected = newest(tmp_path / TRIALS / "loser" / FOLDER)
        assert path is not None and rejected == []
        found = load(path)
        assert found.model["weight"].tolist() == [1.0] * 3 and found.meta["run"] == "winner"
        assert [each.name for each in (tmp_path / TRIALS / "loser" / FOLDER).iterdir()] == ["step-00000010"]


class _Players:
    """Members that are worth their momentum, and save when their segment ends."""

    def __init__(self, folder: Path, *, dies_after: int | None = None) -> None:
        self.folder, self.dies_after, self.runs = folder, dies_after, list[list[Trial]]()

    def __call__(self, trials) -> list[TrialResult]:
        if self.dies_after is not None and len(self.runs) >= self.dies_after:
            raise KeyboardInterrupt
        self.runs.append(list(trials))
        for trial in trials:
            _saved(self.folder, trial.name, trial.last_step, trial.recipe.method.teacher_momentum.start)
        return [_result(trial, trial.recipe.method.teacher_momentum.start) for trial in trials]


FIRST = {f"{number}": {KEY: 0.5 + 0.05 * number} for number in range(4)}


def _evolve(folder: Path, players: _Players):
    return evolve(
        FIRST,
        recipe=RECIPE,
        space=SPACE,
        segments=4,
        folder=folder,
        objective="m",
        run=players,
        vet=lambda recipe: None,
    )


def test_evolve__segments_end_where_they_should_and_ancestors_are_known(tmp_path: Path):
    players = _Players(tmp_path)
    results, exploits = _evolve(tmp_path, players)
    assert [trials[0].last_step for trials in players.runs] == [10, 20, 30, 40]
    assert len(results) == 4 and exploits
    first = exploits[0]
    assert (first.loser, first.winner, first.step) == ("0", "3", 10)
    later = next(trial for trial in players.runs[1] if trial.name == "0")
    assert later.ancestors == ("3",)
    assert later.recipe.method.teacher_momentum.start == first.after[KEY] != FIRST["0"][KEY]


@pytest.mark.parametrize("dies_after", [1, 2, 3])
def test_evolve__a_driver_that_dies_and_goes_on_decides_the_same(dies_after: int, tmp_path: Path):
    (tmp_path / "whole").mkdir(), (tmp_path / "torn").mkdir()
    _, exploits = _evolve(tmp_path / "whole", _Players(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        _evolve(tmp_path / "torn", _Players(tmp_path / "torn", dies_after=dies_after))
    players = _Players(tmp_path / "torn")
    _, again = _evolve(tmp_path / "torn", players)
    assert again == exploits
    assert len(players.runs) == 4 - dies_after


def test_evolve__a_decision_that_was_not_carried_out_is_carried_out_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from raydino.launch.sweep import population

    def dies(folder: Path, exploit: Exploit) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(population, "adopt", dies)
        _evolve(tmp_path, _Players(tmp_path))
    assert json.loads((tmp_path / STATE).read_text())["pending"]
    players = _Players(tmp_path)
    _, exploits = _evolve(tmp_path, players)
    assert [trials[0].last_step for trials in players.runs] == [20, 30, 40]
    later = next(trial for trial in players.runs[0] if trial.name == exploits[0].loser)
    assert later.ancestors == (exploits[0].winner,)
