"""The page and the pictures of a sweep: what is in them, that strangers' text does no harm, and that they are files that open."""

from pathlib import Path

import pytest
from PIL import Image

from raydino.config import ConfigError
from raydino.launch.sweep.importance import Importance
from raydino.launch.sweep.page import Told, page
from raydino.launch.sweep.pictures import parallel_coordinates, response_curves
from raydino.launch.sweep.population import Exploit
from raydino.launch.sweep.ranking import rank
from raydino.launch.sweep.search import Plan
from raydino.launch.sweep.space import choice, loguniform, uniform
from raydino.launch.sweep.told import as_json, told_in
from raydino.launch.trials.trial import Evaluation, Status, Trial, TrialResult
from raydino.recipe import Recipe

SPACE = {
    "optim.lr": loguniform(1e-4, 1e-1),
    "data.keep": choice("", "<b>all</b>"),
    "backbone.drop_path": uniform(0.0, 0.3),
}
OWN = {"optim.lr": 1e-3, "data.keep": "", "backbone.drop_path": 0.5}
PARAMS = {
    "0": {},
    "1": {"optim.lr": 1e-2, "data.keep": "<b>all</b>", "backbone.drop_path": 0.1},
    "2": {"optim.lr": 1e-4, "data.keep": "", "backbone.drop_path": 0.2},
}


def _results() -> list[TrialResult]:
    def one(group: str, status: Status, reason: str, *values: float) -> TrialResult:
        history = tuple(Evaluation(i, 64 * i, {"knn/top1": value}) for i, value in enumerate(values))
        return TrialResult(Trial(group, Recipe(), group), status, history, {}, Path(), 90.0, 64 * len(values), reason)

    return [
        one("0", "finished", "", 0.1, 0.2, 0.3),
        one("1", "finished", "", 0.1, 0.3, 0.4),
        one("2", "failed", "<script>alert(1)</script>", 0.1, 0.1),
    ]


@pytest.fixture
def told(tmp_path: Path) -> Told:
    results = _results()
    rows = rank(results, PARAMS, "knn/top1")
    filled = {group: {**OWN, **params} for group, params in PARAMS.items()}
    pictures = {
        "lines": parallel_coordinates(rows, SPACE, OWN, "knn/top1", tmp_path / "lines.png"),
        "curves": response_curves(results, filled, SPACE, "knn/top1", tmp_path / "curves.png", images=64),
    }
    return Told(
        title="Sweep dinov2",
        created="2026-01-01",
        command="python recipes/sweep.py",
        objective="knn/top1",
        rows=rows,
        own=OWN,
        mattered=[Importance("optim.lr", 0.8, 0.1)],
        compared=(3, 64),
        pictures=pictures,
        device_hours=0.075,
        device="core",
        minutes=2.5,
        refused=["{'optim.lr': 1}: <i>no</i>"],
        exploits=[Exploit(0, 6, "low", "high", (0.1, 0.9), {"optim.lr": 1.0}, {"optim.lr": 2.0})],
        settings={"trials": 3, "base": {"steps": 1}},
        best="# best\nsteps: 12\n",
    )


def test_page__says_ranking_cost_what_mattered_and_what_failed(told: Told):
    text = page(told)
    best, own, failed = (text.index(f'<th scope="row">{group}</th>') for group in ("1", "0", "2"))
    assert best < own < failed
    for words in (
        "0.4000",
        "0.075 core-hours",
        "80%",
        "± 10%",
        "below about 20",
        "low",
        "steps: 12",
        "python recipes/sweep.py",
    ):
        assert words in text
    assert text.count("data:image/png;base64,") == 2


def test_page__text_of_others_stays_text(told: Told):
    text = page(told)
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)" in text
    assert "<b>all</b>" not in text and "<i>no</i>" not in text
    assert "script-src" not in text and "default-src 'none'" in text


def test_told__what_is_written_down_makes_the_same_page(told: Told, tmp_path: Path):
    folder = tmp_path / "sweep-x"
    (folder / "pictures").mkdir(parents=True)
    for path in told.pictures.values():
        (folder / "pictures" / path.name).write_bytes(path.read_bytes())
    plan = Plan(folder, told.settings)
    assert told_in(folder, plan) is None
    (folder / "ranking.json").write_text(as_json(told))
    (folder / "best.yaml").write_text(told.best)
    plan.save()
    read = Plan.load(folder)
    assert read is not None
    again = told_in(folder, read)
    assert again is not None and page(again) == page(told)
    (folder / "ranking.json").write_text("{}")
    with pytest.raises(ConfigError, match="ranking.json: cannot be read"):
        told_in(folder, plan)


def test_page__of_a_sweep_in_which_nothing_ran(told: Told):
    from dataclasses import replace

    text = page(replace(told, rows=[], mattered=[], pictures={}, exploits=[], best=""))
    assert "No trial was run" in text and "Nothing can be said" in text


def test_pictures__are_pictures_with_a_dot_for_every_trial(told: Told):
    for path in told.pictures.values():
        with Image.open(path) as image:
            assert image.width > 500 and image.height > 300
            assert len(set(image.convert("RGB").getdata())) > 20
