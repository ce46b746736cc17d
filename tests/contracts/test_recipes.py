"""Over every preset of every recipe: it is valid, equals its YAML, has an identity of its own, leaves its warm-up in time."""

import importlib.util
import sys
from pathlib import Path

import pytest

from raydino.config import in_steps
from raydino.launch.cluster import ClusterConfig
from raydino.launch.command import parse
from raydino.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ("dinov2", "dino")


def _load(name: str):
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", ROOT / "recipes" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


PRESETS = [pytest.param(recipe, id=f"{name}:{key}") for name in RECIPES for key, recipe in _load(name).PRESETS.items()]


@pytest.mark.parametrize("recipe", PRESETS)
def test_preset__equals_its_yaml(recipe: Recipe):
    assert recipe.from_yaml(recipe.to_yaml()) == recipe


@pytest.mark.parametrize("recipe", PRESETS)
def test_preset__leaves_its_warm_up_long_before_the_end(recipe: Recipe):
    warmup = max(
        in_steps(recipe.optim.warmup, recipe.steps), in_steps(recipe.method.teacher_temperature.warmup, recipe.steps)
    )
    assert warmup <= 0.35 * recipe.steps


@pytest.mark.parametrize("recipe", PRESETS)
def test_preset__fingerprint_ignores_name_and_cadence_only(recipe: Recipe):
    same = recipe.override({"cadence.log": 7})
    assert same.id == recipe.id
    changed = [{"seed": 1}, {"method.student_temperature": 0.2}, {"method.head.prototypes": 17}, {"optim.lr": 0.123}]
    assert len({recipe.id, *(recipe.override(change).id for change in changed)}) == 1 + len(changed)


@pytest.mark.parametrize("name", RECIPES)
def test_recipe__every_preset_is_reached_from_the_command_line(name: str):
    module = _load(name)
    for key, recipe in module.PRESETS.items():
        command = parse(module.LAPTOP, module.PRESETS, description="", argv=["--preset", key, "--seed", "3"])
        assert command.recipe == recipe.override({"seed": 3})


@pytest.mark.parametrize("path", sorted((ROOT / "clusters").glob("*.yaml")), ids=lambda p: p.name)
def test_cluster_file__is_valid(path: Path):
    cluster = ClusterConfig().from_yaml(path.read_text())
    assert ClusterConfig().from_yaml(cluster.to_yaml()) == cluster
