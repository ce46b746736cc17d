"""Going on from known weights: what is loaded, what is refused, what makes another run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from raydino.config import ConfigError, read_yaml_file
from raydino.export import to_safetensors
from raydino.export.model import Model
from raydino.launch.cluster import ClusterConfig
from raydino.launch.init import FOLDER, keep, settled
from raydino.launch.model import open_model
from raydino.launch.workers.worker import build_loop
from raydino.recipe import Recipe
from raydino.train.checkpoint import load_newest
from tests.export.conftest import a_model

CPU = torch.device("cpu")


@pytest.fixture
def weights(tmp_path: Path) -> Model:
    """A model of 40 pixels as safetensors in tmp_path/weights."""
    (tmp_path / "weights").mkdir()
    model = a_model("registers")
    to_safetensors.write(model, tmp_path / "weights")
    return model


def a_recipe(tmp_path: Path, **changes: Any) -> Recipe:
    fields = {"patch_size": 8, "width": 32, "depth": 2, "heads": 2, "registers": 3, "layer_scale": 1e-5}
    head = {"prototypes": 32, "hidden": 16, "bottleneck": 8}
    sizes = {"method.global_crops.size": 32, "method.local_crops.size": 16, "method.head": head}
    sizes |= {"data.normalisation": {"mean": (0.4,), "std": (0.2,)}}
    backbone = {f"backbone.{name}": value for name, value in fields.items()}
    return Recipe().override({**backbone, **sizes, "init.weights": f"{tmp_path}/weights", **changes})


def test_begin_from__features_at_the_runs_size_are_those_of_the_weights(tmp_path: Path, weights: Model):
    recipe = settled(a_recipe(tmp_path))
    assert recipe.init.digest == weights.digest
    keep(recipe, tmp_path)
    (tmp_path / "weights").rename(tmp_path / "gone")  # the run has its own copy
    cluster = ClusterConfig(precision="fp32", threads=1)
    method = build_loop(recipe, cluster, CPU, tmp_path).method.eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = weights.backbone(images)
        for network in (method.student, method.teacher):
            found = network.backbone(images)
            torch.testing.assert_close(found.cls, expected.cls, atol=1e-6, rtol=0)
            torch.testing.assert_close(found.patches, expected.patches, atol=1e-5, rtol=0)
    fresh = build_loop(recipe, cluster, CPU).method
    assert all(
        torch.equal(value, fresh.state_dict()[name]) for name, value in method.state_dict().items() if "head" in name
    )
    assert (
        method.student.backbone.state_dict()["vit.pos_embed"].requires_grad is False
    )  # of the copy that a state_dict is
    assert all(p.requires_grad for n, p in method.student.backbone.named_parameters())
    assert not any(p.requires_grad for p in method.teacher.parameters())


def test_settled__other_weights_make_another_run(tmp_path: Path, weights: Model):
    plain, first = a_recipe(tmp_path, **{"init.weights": ""}), settled(a_recipe(tmp_path))
    assert settled(plain) is plain
    with torch.no_grad():
        weights.backbone.get_parameter("vit.norm.bias").add_(1.0)
    to_safetensors.write(Model(**{**vars(weights), "digest": _digest(weights)}), tmp_path / "weights")
    second = settled(a_recipe(tmp_path))
    assert len({plain.id, first.id, second.id}) == 3
    with pytest.raises(ConfigError, match=rf"init\.digest = {first.init.digest}: .* has {second.init.digest}"):
        keep(first, tmp_path)
    assert not (tmp_path / FOLDER).exists()


def _digest(model: Model) -> str:
    from raydino.nn.weights import weights_digest

    return weights_digest(model.backbone)


def test_settled__refuses_another_network_and_says_which_flags_fit(tmp_path: Path, weights: Model):
    with pytest.raises(ConfigError) as error:
        settled(a_recipe(tmp_path, **{"backbone.heads": 4, "backbone.position_resampling": "offset"}))
    assert "backbone.heads = 4, backbone.position_resampling = offset: init.weights" in str(error.value)
    assert "give --backbone.heads 2 --backbone.position-resampling antialias" in str(error.value)
    with pytest.raises(ConfigError, match=r"trained with another; give --data\.normalisation\.mean 0\.4 --data"):
        settled(a_recipe(tmp_path, **{"data.normalisation": {"mean": (0.5,)}}))
    with pytest.raises(ConfigError, match="there is no such file or folder"):
        settled(a_recipe(tmp_path, **{"init.weights": "nowhere"}))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"init.weights": "", "init.frozen_steps": 3}, "frozen_steps are about weights"),
        ({"init.frozen_steps": 1.0}, r"init\.frozen_steps = 1\.0 lasts the whole run"),
        ({"init.digest": "abc"}, "init.digest"),
    ],
)
def test_recipe__refuses_what_means_nothing(tmp_path: Path, changes: dict[str, Any], text: str):
    with pytest.raises(ConfigError, match=text):
        a_recipe(tmp_path, **changes)


@pytest.mark.ray
def test_run__begins_from_a_run_and_holds_its_backbone(
    ray_cluster: None, recipe_here: Callable[..., tuple[int, str]], storage: Path, tmp_path: Path, weights: Model
):
    """Frozen over the first checkpoint: what was saved there is what was loaded."""
    fields = (
        *("--backbone.name", "vit_small_patch16_224", "--backbone.registers", "3", "--backbone.layer-scale", "1e-5"),
        *("--init.weights", str(tmp_path / "weights")),
        *("--data.normalisation.mean", "0.4", "--data.normalisation.std", "0.2"),
    )
    asked = (*fields, "--init.frozen-steps", "3", "--name", "goes-on", "--steps", "6", "--cadence.checkpoint", "3")
    status, said = recipe_here(*asked)
    assert status == 0, said
    (run,) = storage.glob("goes-on-*")
    assert read_yaml_file(run / "recipe.yaml")["init"]["digest"] == weights.digest
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        held, trained = (open_model(f"{run}@{step}").backbone(images).cls for step in (3, 6))
        torch.testing.assert_close(held, weights.backbone(images).cls, atol=1e-5, rtol=0)
        assert (trained - held).abs().max() > 1e-5
        assert load_newest(run / "checkpoints") is not None
