"""Who is tried: the same list again after a restart, refusals drawn again, a searcher that searches."""

import json
import math
from pathlib import Path

import presets
import pytest

from raydino.config import ConfigError
from raydino.launch.sweep.search import ATTEMPTS, PLAN, TPE, Grid, Plan, Random, Search
from raydino.launch.sweep.space import choice, integer, loguniform, uniform
from raydino.launch.trials.trial import Evaluation, Trial, TrialResult
from raydino.recipe import Recipe

LAPTOP = presets.DINOV2["laptop"]
SPACE = {"optim.lr": loguniform(1e-4, 1e-2), "method.local_crops.count": choice(0, 2, 4)}


def _search(folder: Path, chooser, *, space=SPACE, count: int | None = 5, vet=lambda recipe: None, plan=None) -> Search:
    return Search(plan or Plan(folder, {}), chooser, recipe=LAPTOP, space=space, count=count, objective="m", vet=vet)


def _all(search: Search) -> list[Trial]:
    found = []
    while (trial := search.ask()) is not None:
        found.append(trial)
    return found


def _ended(trial: Trial, value: float, status="finished") -> TrialResult:
    return TrialResult(trial, status, (Evaluation(1, 64, {"m": value}),), {}, Path(), 1.0, 64)


@pytest.mark.parametrize("make", [Random, lambda space, seed: TPE(space, seed=seed, trials=5)])
def test_search__the_recipe_as_it_is_comes_first_and_the_seed_makes_the_rest(make, tmp_path: Path):
    lists = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        lists.append(_all(_search(tmp_path / name, make(SPACE, seed=seed))))
    assert lists[0][0].recipe == LAPTOP
    assert len(lists[0]) == 5
    assert [trial.recipe for trial in lists[0]] == [trial.recipe for trial in lists[1]]
    assert [trial.recipe for trial in lists[0]] != [trial.recipe for trial in lists[2]]
    assert len({trial.recipe.fingerprint() for trial in lists[0]}) == 5


def test_search__a_plan_that_is_there_is_followed_and_then_goes_on(tmp_path: Path):
    before = _all(_search(tmp_path, Random(SPACE, seed=0), count=3))
    plan = Plan.load(tmp_path)
    assert plan is not None
    assert _search(tmp_path, Random(SPACE, seed=0), plan=plan).known() == before
    after = _all(_search(tmp_path, TPE(SPACE, seed=9, trials=5), plan=plan))
    assert after[:3] == before
    assert [each["name"] for each in json.loads((tmp_path / PLAN).read_text())["trials"]] == [
        "000",
        "001",
        "002",
        "003",
        "004",
    ]


def test_search__a_trial_is_on_disk_before_it_is_given(tmp_path: Path):
    search = _search(tmp_path, Random(SPACE, seed=0))
    for number in range(3):
        trial = search.ask()
        assert trial is not None
        assert json.loads((tmp_path / PLAN).read_text())["trials"][number]["name"] == trial.name


def test_search__what_is_refused_is_drawn_again_and_told(tmp_path: Path):
    def vet(recipe: Recipe) -> None:
        if recipe.method.local_crops.count == 2:
            raise ConfigError("two are too many")

    search = _search(tmp_path, Random(SPACE, seed=0), count=12, vet=vet)
    counts = {trial.recipe.method.local_crops.count for trial in _all(search)[1:]}
    assert counts == {0, 4}
    assert search.refused and "two are too many" in search.refused[0]


def test_search__combinations_that_the_recipe_refuses_are_drawn_again(tmp_path: Path):
    """Either weight may be 0, both may not."""
    space = {"method.dino_weight": choice(0.0, 1.0), "method.ibot_weight": choice(0.0, 1.0)}
    trials = _all(_search(tmp_path, Grid(space, seed=0), space=space, count=None))
    assert len(trials) == 3  # (1, 1) is the recipe as it is, and as a point not another
    assert {(t.recipe.method.dino_weight, t.recipe.method.ibot_weight) for t in trials} == {(1, 1), (0, 1), (1, 0)}


def test_search__a_space_without_any_recipe_is_an_error_that_says_why(tmp_path: Path):
    def vet(recipe: Recipe) -> None:
        if recipe != LAPTOP:
            raise ConfigError("no room")

    with pytest.raises(ConfigError, match=f"{ATTEMPTS} draws.*no room"):
        _all(_search(tmp_path, Random(SPACE, seed=0), vet=vet))


def test_search__a_small_space_ends_when_it_is_used_up(tmp_path: Path):
    space = {"method.local_crops.count": choice(0, 2)}
    assert len(_all(_search(tmp_path, Random(space, seed=0), space=space, count=50))) == 2


def test_grid__has_all_combinations_once(tmp_path: Path):
    space = {"optim.lr": uniform(1e-3, 3e-3), "method.local_crops.count": choice(0, 4), "backbone.depth": integer(1, 2)}
    points = {
        (t.recipe.optim.lr, t.recipe.method.local_crops.count, t.recipe.backbone.depth)
        for t in _all(_search(tmp_path, Grid(space, seed=0), space=space, count=None))[1:]
    }
    assert points == {(lr, count, depth) for lr in (1e-3, 2e-3, 3e-3) for count in (0, 4) for depth in (1, 2)}


def test_tpe__finds_the_best_part_of_a_space_sooner_than_chance(tmp_path: Path):
    """The objective is how near a learning rate is to 1e-3 on the log scale; the last ten draws of sixty, over three seeds."""

    def late(folder: Path, chooser) -> float:
        folder.mkdir()
        search, found = _search(folder, chooser, count=60), []
        while (trial := search.ask()) is not None:
            found.append(abs(math.log10(trial.recipe.optim.lr) + 3))
            search.tell(_ended(trial, -found[-1]))
        return sum(found[-10:]) / 10

    tpe = sum(late(tmp_path / f"tpe{seed}", TPE(SPACE, seed=seed, trials=60)) for seed in range(3))
    chance = sum(late(tmp_path / f"random{seed}", Random(SPACE, seed=seed)) for seed in range(3))
    assert tpe < 0.6 * chance


def test_tpe__takes_stopped_and_failed_trials_without_a_word(tmp_path: Path):
    search = _search(tmp_path, TPE(SPACE, seed=0, trials=8), count=8)
    for status in ("finished", "stopped", "failed", "interrupted", "finished", "stopped", "failed", "finished"):
        trial = search.ask()
        assert trial is not None
        search.tell(_ended(trial, 0.5, status))
    assert search.ask() is None


def test_plan__a_damaged_one_is_refused(tmp_path: Path):
    assert Plan.load(tmp_path) is None
    (tmp_path / PLAN).write_text('{"trials": [')
    with pytest.raises(ConfigError, match="another --name"):
        Plan.load(tmp_path)
