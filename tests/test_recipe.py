import pytest

from raydino.config import ConfigError
from raydino.methods.config import DINOConfig, DINOv2Config
from raydino.recipe import Recipe


def test_id__name_and_cadence_do_not_make_another_experiment():
    recipe = Recipe()
    same = recipe.override({"name": "other", "cadence.log": 1, "cadence.keep": 9})
    assert same.id.rpartition("-")[2] == recipe.id.rpartition("-")[2]
    assert same.id.startswith("other-")


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"steps": 999},
        {"lanes": 4},
        {"global_batch": 128},
        {"method.koleo_weight": 0.2},
        {"method.global_crops.flip": 0.4},
        {"evals.knn.k": 10},
        {"data.path": "elsewhere"},
        {"optim.betas": (0.9, 0.95)},
        {"backbone.registers": 4},
        {"method.curriculum": {"length": 0.5}},
        {"method.teacher_sees": "all"},
    ],
)
def test_id__everything_else_does(change):
    assert Recipe().override(change).id != Recipe().id


def test_learning_rate__published_scalings():
    at_1024 = {"global_batch": 1024, "optim.lr": 0.004}
    assert Recipe().override(at_1024).learning_rate == pytest.approx(0.004)  # DINOv2: lr at a batch of 1024
    assert Recipe(method=DINOv2Config()).override({**at_1024, "global_batch": 4096}).learning_rate == pytest.approx(
        0.008
    )
    assert Recipe(method=DINOConfig()).override(at_1024).learning_rate == pytest.approx(0.016)  # DINO: lr at 256


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"global_batch": 60}, ["global_batch = 60", "lanes = 8", "64"]),
        ({"method.local_crops.size": 100}, ["method.local_crops.size = 100", "patch_size = 16", "96"]),
        ({"method.global_crops.size": 8}, ["method.global_crops.size = 8", "use 16"]),
        ({"optim.warmup": 1000}, ["optim.warmup = 1000", "1000 steps"]),
        ({"method.freeze_last_layer": 1.0}, ["freeze_last_layer = 1.0"]),
        ({"name": "../x"}, ["name", "../x"]),
        ({"name": "x" * 300}, ["name"]),
        ({"steps": 0}, ["steps"]),
        ({"optim.lr": -1e-3}, ["optim.lr", "-0.001"]),
        ({"optim.lr": float("inf")}, ["optim.lr"]),
        ({"method.student_temperature": 0}, ["student_temperature"]),
        ({"method.dino_weight": 0, "method.ibot_weight": 0}, ["dino_weight"]),
        ({"cadence.keep": 1}, ["cadence.keep"]),
        (
            {"method.curriculum": {"global_size": 120}},
            ["method.curriculum.global_size = 120", "patch_size = 16", "use 128"],
        ),
        ({"method.curriculum": {"global_size": 16}}, ["curriculum.global_size = 16", "1 x 1 patches", "masked"]),
        ({"method.curriculum": {"length": 1001}}, ["curriculum.length = 1001", "steps = 1000"]),
        ({"method.curriculum": {"global_size": 240}}, ["curriculum.global_size = 240", "starts small"]),
    ],
)
def test_recipe__refuses_and_says_why(change, words):
    with pytest.raises(ConfigError) as error:
        Recipe().override(change)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_recipe__no_local_crops_need_no_fitting_size():
    assert Recipe().override({"method.local_crops": {"count": 0, "size": 100}}).method.local_crops.count == 0


def test_recipe__one_step_run_is_allowed():
    assert Recipe(steps=1).steps == 1


@pytest.mark.parametrize("method", ["teacher_momentum", "teacher_temperature"])
def test_recipe__schedules_beyond_their_meaning_are_refused(method):
    bad = {"teacher_momentum": {"start": 1.5, "end": 1.5}, "teacher_temperature": {"start": 0.0, "end": 0.0}}[method]
    with pytest.raises(ConfigError, match=method):
        Recipe().override({f"method.{method}": bad})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method.global_crops.size": (0, 32)}, "give a side, or height and width"),
        ({"method.global_crops.size": (32, 32, 32)}, "give a side, or height and width"),
        ({"method.global_crops.size": (224, 200)}, "is not a multiple of backbone.patch_size = 16; use 224 192"),
        ({"method.global_crops.size": (16, 224)}, "1 x 14 patches, on which no block can be masked"),
        ({"backbone.channels": 4}, "data.normalisation.mean has 3 and data.normalisation.std has 3 entries"),
        ({"backbone.channels": 1, "data.normalisation.mean": (0.5,)}, "data.normalisation.std has 3 entries"),
    ],
)
def test_recipe__sizes_and_channels_that_do_not_fit_name_the_remedy(changes: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        Recipe().override(changes)


def test_recipe__views_follow_the_network():
    recipe = Recipe().override(
        {
            "method.global_crops.size": (64, 96),
            "backbone.channels": 2,
            "data.normalisation": {"mean": (0.5,), "std": (0.25, 0.5)},
        }
    )
    assert recipe.views.shapes(5)["global"] == (2, 5, 2, 64, 96) and recipe.views.grid == (4, 6)
    assert Recipe().from_yaml(recipe.to_yaml()) == recipe


@pytest.mark.parametrize("length", [0, 0.5, 333, 1.0])
def test_phases__a_step_has_the_small_views_before_the_curriculum_ends_and_the_full_ones_after(length: int | float):
    recipe = Recipe(steps=999).override({"method.curriculum": {"length": length, "global_size": 112, "local_size": 48}})
    switch = {0: 0, 0.5: 500, 333: 333, 1.0: 999}[length]
    for start in (0, 1, 332, 333, 334, 499, 500, 501, 998, 999):
        seen = {step: views for steps, views in recipe.phases(start) for step in steps}
        assert list(seen) == list(range(start, 999))
        for step, views in seen.items():
            full = step >= switch
            sizes = {name: group.size for name, group in views.crops.items()}
            assert sizes == ({"global": 224, "local": 96} if full else {"global": 112, "local": 48})
            assert views.grid == ((14, 14) if full else (7, 7))
        for end in (0, 333, 500, 700):
            cut = {step: views for steps, views in recipe.phases(start, end) for step in steps}
            assert cut == {step: views for step, views in seen.items() if step < end}
    full = Recipe(steps=999)
    assert list(full.phases(7)) == [(range(7, 999), full.views)]


def test_phases__apart_from_their_size_views_are_the_same():
    recipe = Recipe(steps=8).override({"data.fast_crops": True, "method.curriculum": {"length": 0.5}})
    (_, small), (_, full) = recipe.phases()
    assert small != full == recipe.views
    assert small.override({"crops.global.size": 224, "crops.local.size": 96}) == full
