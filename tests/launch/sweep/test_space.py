"""Search spaces: what is read, what is refused before a trial runs, and where draws fall."""

from pathlib import Path

import hypothesis
import presets
import pytest
from hypothesis import strategies

from raydino.config import ConfigError
from raydino.launch.sweep.config import default_space
from raydino.launch.sweep.population import check_population
from raydino.launch.sweep.space import (
    apply,
    check_space,
    choice,
    integer,
    label,
    loguniform,
    read_space,
    uniform,
    written,
)
from raydino.recipe import Recipe

LAPTOP = presets.DINOV2["laptop"]
TEMPERATURE = "method.teacher_temperature.start,method.teacher_temperature.end"
GOOD = f"""
optim.lr: {{loguniform: [1.0e-4, 1.0e-2]}}
method.local_crops.count: {{choice: [0, 2, 4]}}
method.head.prototypes: {{int: [64, 1024]}}
data.keep: {{choice: ["", all]}}
{TEMPERATURE}: {{uniform: [0.03, 0.07]}}
"""


def _space(tmp_path: Path, text: str):
    path = tmp_path / "space.yaml"
    path.write_text(text)
    return read_space(path)


def test_read__equals_the_same_in_python_and_as_written(tmp_path: Path):
    space = _space(tmp_path, GOOD)
    assert space == {
        "optim.lr": loguniform(1e-4, 1e-2),
        "method.local_crops.count": choice(0, 2, 4),
        "method.head.prototypes": integer(64, 1024),
        "data.keep": choice("", "all"),
        TEMPERATURE: uniform(0.03, 0.07),
    }
    check_space(space, LAPTOP)
    assert written(space)["optim.lr"] == {"loguniform": [1e-4, 1e-2]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optim.lr: 3", "optim.lr = 3: give one of"),
        ("optim.lr: {between: [1, 2]}", "give one of"),
        ("optim.lr: {uniform: [2, 1]}", "the lower first"),
        ("optim.lr: {uniform: [1]}", "two numbers"),
        ("optim.lr: {loguniform: [0, 1]}", "above 0"),
        ("optim.lr: {int: [1.5, 2]}", "whole numbers"),
        ("optim.lr: {choice: []}", "a list of values"),
        ("optim.lr: {uniform: [true, 2]}", "two numbers"),
        ("", "it is empty"),
    ],
)
def test_read__names_file_key_and_remedy(text: str, words: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=words) as error:
        _space(tmp_path, text)
    assert "space.yaml" in str(error.value)


@pytest.mark.parametrize(
    ("key", "distribution", "words"),
    [
        ("method.head.prototypse", integer(64, 128), "did you mean 'prototypes'"),
        ("method.head.prototypes", uniform(64, 128), "use int"),
        ("optim.lr", choice(1e-3, -1.0), r"optim.lr = -1.0 cannot be.*greater than 0"),
        ("optim.lr", choice("fast"), "optim.lr = 'fast'"),
        ("method.centering", choice("softmax", "centre"), "method.centering = 'centre'"),
        ("method.teacher_temperature.start", uniform(0.03, 0.07), "a constant schedule has start == end"),
        ("global_batch", choice(64, 60), "not a multiple of lanes"),
        ("method.center_momentum", choice(0.9, 1.0), "less than 1"),
        ("optim.warmup", uniform(0.1, 1.0), "lasts the whole run"),
    ],
)
def test_check__refuses_what_the_recipe_cannot_take(key: str, distribution, words: str):
    with pytest.raises(ConfigError, match=words) as error:
        check_space({key: distribution}, LAPTOP)
    assert key in str(error.value)


def test_check__names_all_faults_at_once_and_fields_that_stand_twice():
    with pytest.raises(ConfigError) as error:
        check_space({"seeed": choice(1), "optim.lr": choice(-1.0), "optim.lr,seed": choice(1)}, LAPTOP)
    assert len(str(error.value).splitlines()) == 3
    assert "optim.lr stands in two keys" in str(error.value)


@hypothesis.given(strategies.floats(0, 1, exclude_max=True))
def test_draws__stay_inside_and_find_their_place(unit: float):
    for each in (uniform(-1, 2), loguniform(1e-5, 1e-1), integer(3, 9)):
        value = each.at(unit)
        assert each.low <= value <= each.high
        place = each.place(value)
        assert place is not None and (abs(place - unit) < 1e-9 or each.whole)
    values = choice("a", "b", "c")
    assert values.values[int(unit * 3)] == values.at(unit)


def test_integers__are_drawn_evenly():
    counts = [integer(3, 6).at((index + 0.5) / 4000) for index in range(4000)]
    assert [counts.count(value) for value in (3, 4, 5, 6)] == [1000] * 4


def test_place__none_for_what_is_not_in_it():
    assert uniform(0, 1).place(2) is None
    assert uniform(0, 1).place(True) is None
    assert choice(1, 2).place(3) is None
    assert integer(1, 3).place("x") is None


def test_near__moves_by_a_fifth_and_never_leaves():
    assert uniform(0, 1).near(0.5, up=True) == pytest.approx(0.6)
    assert uniform(0, 1).near(0.9, up=True) == 1
    assert integer(1, 8).near(2, up=False) == 1
    assert integer(1, 8).near(8, up=True) == 8
    assert choice(0, 2, 4).near(2, up=True) == 4
    assert choice(0, 2, 4).near(4, up=True) == 4


def test_apply__another_batch_sees_as_many_images_and_is_judged_at_as_many():
    recipe = LAPTOP.override({"cadence": {"evaluate": 35, "checkpoint": 35}})
    changed = apply(recipe, {"global_batch": 128})
    assert changed.steps * changed.global_batch == recipe.steps * recipe.global_batch
    assert changed.cadence.evaluate == changed.cadence.checkpoint == 18  # 35 of 64 images are 17.5 of 128
    assert apply(recipe, {"global_batch": 128, "steps": 50}).steps == 50
    both = apply(recipe, {TEMPERATURE: 0.05}).method.teacher_temperature
    assert (both.start, both.end) == (0.05, 0.05)


def test_label__joined_fields_by_what_they_share():
    assert label(TEMPERATURE) == "teacher_temperature"
    assert label("optim.lr") == "optim.lr"


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(recipe, id=f"{name}:{key}")
        for name, group in (("dinov2", presets.DINOV2), ("dino", presets.DINO))
        for key, recipe in group.items()
    ],
)
def test_default_space__suits_every_preset(recipe: Recipe):
    space = default_space(recipe)
    check_space(space, recipe)
    assert len(space) == 3
    assert space["method.teacher_momentum.start"].place(recipe.method.teacher_momentum.start) is not None


@pytest.mark.parametrize("key", ["global_batch", "seed", "data.window", "method.head.prototypes", "backbone.depth"])
def test_population__refuses_what_cannot_change_in_the_middle(key: str):
    with pytest.raises(ConfigError, match=key):
        check_population({key: integer(64, 128)}, LAPTOP)


def test_population__takes_schedules_and_views():
    check_population(
        {**default_space(LAPTOP), "backbone.drop_path": uniform(0, 0.1), "optim.lr": loguniform(1e-4, 1e-2)}, LAPTOP
    )
