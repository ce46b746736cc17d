"""Over every preset of every recipe: it is valid, equals its YAML, has an identity of its own, leaves its warm-up in time."""

from pathlib import Path

import phases
import presets
import pytest

from raydino.config import in_steps
from raydino.launch.cluster import ClusterConfig
from raydino.launch.lineage import recipe_of
from raydino.launch.terminal.command import parse
from raydino.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]
GROUPS = {"dinov2": presets.DINOV2, "dino": presets.DINO, "supervised": presets.SUPERVISED}
GROUPS |= {
    name: {key: kind.recipe(None) for key, kind in kinds.items()}
    for name, kinds in (("highres", phases.HIGHRES), ("distill", phases.DISTILL))
}
PRESETS = [pytest.param(recipe, id=f"{name}:{key}") for name, group in GROUPS.items() for key, recipe in group.items()]


@pytest.mark.parametrize("recipe", PRESETS)
def test_preset__equals_its_yaml(recipe: Recipe):
    assert recipe.from_yaml(recipe.to_yaml()) == recipe


@pytest.mark.parametrize("recipe", PRESETS)
def test_preset__is_found_again_in_the_folder_of_its_run(recipe: Recipe, tmp_path: Path):
    """recipe.yaml names no class, and another run that begins with this one needs its method's."""
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    found = recipe_of(tmp_path)
    assert found == recipe and type(found.method) is type(recipe.method)
    assert [type(each) for each in found.evals.values()] == [type(each) for each in recipe.evals.values()]


@pytest.mark.parametrize("recipe", PRESETS)
def test_preset__leaves_its_warm_up_long_before_the_end(recipe: Recipe):
    lengths = [recipe.optim.warmup, *recipe.method.lengths().values()]
    assert max(in_steps(length, recipe.steps) for length in lengths) <= 0.35 * recipe.steps


@pytest.mark.parametrize("recipe", PRESETS)
def test_preset__fingerprint_ignores_name_and_cadence_only(recipe: Recipe):
    same = recipe.override({"cadence.log": 7})
    assert same.id == recipe.id
    changed = [{"seed": 1}, {"method.teacher_momentum.start": 0.9}, {"backbone.depth": 2}, {"optim.lr": 0.123}]
    assert len({recipe.id, *(recipe.override(change).id for change in changed)}) == 1 + len(changed)


@pytest.mark.parametrize("name", GROUPS)
def test_recipe__every_preset_is_reached_from_the_command_line(name: str):
    group = GROUPS[name]
    for key, recipe in group.items():
        command = parse(group["laptop"], group, description="", argv=["--preset", key, "--seed", "3"])
        assert command.recipe == recipe.override({"seed": 3})


@pytest.mark.parametrize("path", sorted((ROOT / "clusters").glob("*.yaml")), ids=lambda p: p.name)
def test_cluster_file__is_valid(path: Path):
    cluster = ClusterConfig().from_yaml(path.read_text())
    assert ClusterConfig().from_yaml(cluster.to_yaml()) == cluster
