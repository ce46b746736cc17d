"""Variants against the recipes they are made for: what they change, what they leave alone, which way they are expected to go."""

from typing import Any

import pytest
from presets import DINO, DINOV2, SUPERVISED

from raydino.config import ConfigError
from raydino.launch.ablation.variants import FULL, LeftOut, Variant, applied, chosen, variants
from raydino.launch.resume import flat
from raydino.recipe import NOT_IN_FINGERPRINT, Recipe
from raydino.schedule import constant
from raydino.train.optim import learning_rate

PRESETS = {**DINOV2, **{f"dino-{name}": recipe for name, recipe in DINO.items()}}
ASKED_FOR = {  # by the mission; a recipe has the one or the other of a pair
    *(
        "copied_teacher",
        "fast_teacher",
        "no_centering",
        "slow_centre",
        "no_sharpening",
        "no_multi_crop",
        "teacher_sees_all",
    ),
    *("curriculum", "low_resolution", "no_koleo", "no_ibot", "no_l2_bottleneck", "constant_learning_rate"),
    *("constant_weight_decay", "constant_momentum", "no_temperature_warmup"),
}
PAIRS = [
    ("sinkhorn_knopp", "softmax_centering"),
    ("untied_heads", "tied_heads"),
    ("frozen_last_layer", "free_last_layer"),
    ("registers", "no_registers"),
]


def _by_name(recipe: Recipe) -> dict[str, Variant]:
    return {variant.name: variant for variant in variants(recipe)[0]}


@pytest.mark.parametrize("preset", PRESETS)
def test_variants__of_every_preset_are_recipes_that_change_what_they_name_and_nothing_else(preset: str):
    recipe = PRESETS[preset]
    there, left_out = variants(recipe)
    names = [variant.name for variant in there] + [part.name for part in left_out]
    assert len(set(names)) == len(names) and FULL not in names
    fingerprints = set()
    for variant in there:
        other = applied(recipe, variant, seed=recipe.seed)
        was, now = flat(recipe.dump()), flat(other.dump())
        changed = {name for name in {**was, **now} if was.get(name) != now.get(name)} - {"name"}
        assert changed and all(any(f"{name}.".startswith(f"{key}.") for key in variant.changes) for name in changed)
        fingerprints.add(other.fingerprint(exclude=NOT_IN_FINGERPRINT))
    assert len(fingerprints | {recipe.fingerprint(exclude=NOT_IN_FINGERPRINT)}) == len(there) + 1


@pytest.mark.parametrize("preset", PRESETS)
def test_variants__every_component_asked_for_is_there_or_left_out_with_a_reason(preset: str):
    there, left_out = variants(PRESETS[preset])
    names = {variant.name for variant in there} | {part.name for part in left_out}
    assert names >= ASKED_FOR
    for pair in PAIRS:
        assert names & set(pair), pair
    assert all(part.reason for part in left_out)


def test_variants__a_recipe_that_lacks_a_component_gets_it_and_the_expectation_turns_round():
    small = DINOV2["laptop"]
    large = small.override(
        {
            "method.centering": "sinkhorn_knopp",
            "method.ibot_head": small.method.head.dump(),  # pyright: ignore[reportAttributeAccessIssue]
            "method.freeze_last_layer": 0.05,
            "backbone.registers": 2,
            "method.curriculum": {"length": 0.5, "global_size": 12, "local_size": 8},
        }
    )
    without, with_all = _by_name(small), _by_name(large)
    assert without["untied_heads"].expected == "better" and with_all["tied_heads"].expected == "worse"
    assert without["copied_teacher"].expected == "collapse" and with_all["copied_teacher"].expected == "worse"
    assert without["no_sharpening"].expected == "collapse" and with_all["no_sharpening"].expected is None
    assert {"curriculum", "registers", "frozen_last_layer", "sinkhorn_knopp"} <= without.keys()
    assert {"no_curriculum", "no_registers", "free_last_layer", "softmax_centering"} <= with_all.keys()
    back = large
    for name in ("tied_heads", "free_last_layer", "no_registers", "no_curriculum", "softmax_centering"):
        back = back.override(with_all[name].changes)
    assert back == small.override({"method.freeze_last_layer": 0})


@pytest.mark.parametrize(
    ("changes", "name", "reason"),
    [
        ({"method.koleo_weight": 0.0}, "no_koleo", "no KoLeo"),
        ({"method.ibot_weight": 0.0}, "no_ibot", "not both"),
        ({"method.ibot_weight": 0.0}, "untied_heads", "one loss"),
        ({"method.local_crops.count": 0}, "no_multi_crop", "no local crops"),
        ({"method.local_crops.count": 0}, "teacher_sees_all", "no local crops"),
        ({"method.teacher_momentum": constant(0.0)}, "copied_teacher", "already"),
        ({"method.teacher_momentum": constant(0.0)}, "fast_teacher", "already"),
        ({"method.centering": "none"}, "no_centering", "has none"),
        ({"method.centering": "sinkhorn_knopp"}, "slow_centre", "no centre"),
        ({"method.head.normalise": False}, "no_l2_bottleneck", "not normalised"),
        ({"method.global_crops.size": 8}, "curriculum", "cannot be halved"),
    ],
)
def test_variants__what_a_recipe_has_not_is_left_out(changes: dict[str, Any], name: str, reason: str):
    there, left_out = variants(DINOV2["laptop"].override(changes))
    assert name not in {variant.name for variant in there}
    assert reason in {part.name: part.reason for part in left_out}[name]


def test_constant_learning_rate__holds_the_peak_from_the_warm_up_to_the_end():
    recipe = DINOV2["laptop"]
    other = applied(recipe, _by_name(recipe)["constant_learning_rate"], seed=0)
    rates = [learning_rate(other.optim, other.learning_rate, step, steps=other.steps) for step in range(other.steps)]
    assert rates[:21] == [
        learning_rate(recipe.optim, recipe.learning_rate, step, steps=recipe.steps) for step in range(21)
    ]
    assert rates[21:] == [pytest.approx(recipe.learning_rate)] * (recipe.steps - 21)


def test_fast_teacher__remembers_a_tenth_as_long():
    recipe = DINOV2["vitl16-short"]
    momentum = applied(recipe, _by_name(recipe)["fast_teacher"], seed=0).method.teacher_momentum
    assert 1 / (1 - momentum.start) == pytest.approx(1 / (1 - recipe.method.teacher_momentum.start) / 10)
    assert momentum.end == recipe.method.teacher_momentum.end == 1.0


def test_curriculum__halves_the_sides_in_whole_patches():
    for preset, sizes in {"laptop": (12, 8), "cifar": (16, 8), "vits16": (112, 48), "vitl14": (112, 56)}.items():
        small = _by_name(DINOV2[preset])["curriculum"].changes["method.curriculum"]
        assert (small["global_size"], small["local_size"]) == sizes, preset


def test_chosen__names_the_nearest_variant_or_why_there_is_none():
    recipe = DINOV2["laptop"]
    there, left_out = chosen(recipe, ["no_koleo", "curriculum"])
    assert [variant.name for variant in there] == ["curriculum", "no_koleo"] and left_out == []
    assert chosen(recipe, []) == variants(recipe)
    with pytest.raises(ConfigError, match="--only no_kolo.*did you mean no_koleo"):
        chosen(recipe, ["no_kolo"])
    with pytest.raises(ConfigError, match="--only constant_weight_decay: the recipe's optim.weight_decay is constant"):
        chosen(recipe, ["constant_weight_decay"])


def test_variants__need_a_teacher_that_teaches():
    with pytest.raises(ConfigError, match="SupervisedConfig does not learn from a teacher"):
        variants(SUPERVISED["laptop"])


def test_variants__dino_has_no_terms_of_dinov2():
    left_out = {part.name: part for part in variants(DINO["laptop"])[1]}
    assert isinstance(left_out["no_koleo"], LeftOut) and {"no_ibot", "untied_heads"} <= left_out.keys()
