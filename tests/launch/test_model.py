"""Opening a network by its name, against the method that saved it and against timm's own forward pass."""

import shutil
from pathlib import Path

import pytest
import timm
import torch

from raydino.config import ConfigError
from raydino.keyed import key64
from raydino.launch.model import open_model
from raydino.methods.config import DINOConfig, SupervisedConfig
from raydino.recipe import Recipe
from raydino.train.checkpoint import Checkpoint, path_of, save

SMALL = {
    **{"method.global_crops.size": 32, "method.local_crops.size": 16, "backbone.patch_size": 8, "backbone.width": 16},
    **{"backbone.depth": 1, "backbone.heads": 2, "data.normalisation.mean": [0.5], "backbone.registers": 2},
}
METHODS = {"dinov2": Recipe(), "dino": Recipe(method=DINOConfig()), "supervised": Recipe(method=SupervisedConfig())}


def a_run(
    folder: Path, name: str = "dinov2", steps: tuple[int, ...] = (3, 12)
) -> tuple[Recipe, dict[int, torch.nn.Module]]:
    """A run's folder with a checkpoint at each of `steps`, and the teachers in them."""
    heads = {} if name == "supervised" else {"method.head.prototypes": 32}
    recipe = METHODS[name].override({**SMALL, **heads, "seed": 5})
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    teachers = {}
    for step in steps:
        torch.manual_seed(step)
        method = recipe.method.build(recipe.backbone, steps=recipe.steps)
        for parameter in method.student.parameters():  # the student must not be taken for the teacher
            parameter.data.add_(1.0)
        save(folder / "checkpoints", Checkpoint(step, method.state_dict(), {}, {}), keep=5)
        teachers[step] = method.encoder().eval()
    return recipe, teachers


def test_open_model__newest_and_named_steps_of_a_run(tmp_path: Path):
    recipe, teachers = a_run(tmp_path / "tiny-0123")
    images = torch.randn(2, 3, 32, 32)
    for spec, step in ((f"{tmp_path}/tiny-0123", 12), (f"{tmp_path}/tiny-0123@3", 3), (f"{tmp_path}/tiny-0123@12", 12)):
        model = open_model(spec)
        assert (model.name, model.step, model.size) == (f"tiny-0123@{step}", step, 32)
        assert model.config == recipe.backbone
        assert model.normalisation == recipe.data.normalisation
        assert not model.backbone.training
        assert not any(weight.requires_grad for weight in model.backbone.parameters())
        with torch.no_grad():
            assert torch.equal(model.backbone(images).cls, teachers[step](images).cls)
    assert open_model(f"{tmp_path}/tiny-0123@3").digest != open_model(f"{tmp_path}/tiny-0123").digest


def test_open_model__goes_back_where_the_newest_is_damaged(tmp_path: Path):
    a_run(tmp_path)
    weights = path_of(tmp_path / "checkpoints", 12) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert open_model(str(tmp_path)).step == 3
    with pytest.raises(ConfigError, match=r"@12': damaged \(model\.safetensors has .*give another step of \[3, 12\]"):
        open_model(f"{tmp_path}@12")
    shutil.rmtree(path_of(tmp_path / "checkpoints", 3))
    with pytest.raises(ConfigError, match="no usable checkpoint"):
        open_model(str(tmp_path))


@pytest.mark.parametrize("name", METHODS)
def test_open_model__random_is_what_the_seed_initialised(tmp_path: Path, name: str):
    recipe, _ = a_run(tmp_path, name)
    before = torch.random.get_rng_state()
    model = open_model(f"random:{tmp_path}")
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(key64(recipe.seed, "weights"))  # as launch/workers/worker.py does
    expected = recipe.method.build(recipe.backbone, steps=recipe.steps).student.backbone.state_dict()
    assert expected.keys() == model.backbone.state_dict().keys()
    assert all(torch.equal(value, expected[key]) for key, value in model.backbone.state_dict().items())
    assert model.digest != open_model(str(tmp_path)).digest


@pytest.mark.parametrize(
    "name",
    ["vit_tiny_patch16_224.augreg_in21k", "vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2", "resnet18"],
)
def test_open_model__timm_computes_what_timm_computes(monkeypatch: pytest.MonkeyPatch, name: str):
    made = []
    create = timm.create_model

    def remembered(*args, **options):
        model = create(*args, **options)
        for parameter in model.parameters():  # else tokens and LayerScale are too small to be seen
            parameter.data.add_(0.02 * torch.randn_like(parameter))
        made.append(model)
        return model

    monkeypatch.setattr(timm, "create_model", remembered)
    model = open_model(f"timm:{name}", pretrained=False)
    theirs = made[0].eval()
    settings = theirs.pretrained_cfg
    assert model.name == f"timm:{name}"
    assert model.size == settings["input_size"][1]
    assert (model.normalisation.mean, model.normalisation.std) == (settings["mean"], settings["std"])
    patch, vit = model.config.patch_size, hasattr(theirs, "blocks")
    if vit:
        theirs.patch_embed.strict_img_size, theirs.patch_embed.flatten = False, False
        theirs.patch_embed.output_fmt, theirs.dynamic_img_size = timm.layers.Format.NHWC, True
    for rows, columns in ((14, 14), (5, 9), (37, 37)) if vit else ((4, 4), (2, 3)):
        images = torch.randn(1, 3, rows * patch, columns * patch)
        with torch.no_grad():
            ours, expected = model.backbone(images), theirs.forward_features(images)
            if not vit:
                torch.testing.assert_close(ours.cls, theirs.forward_head(expected), atol=1e-5, rtol=0)
                expected = expected.flatten(2).transpose(1, 2)
                torch.testing.assert_close(ours.patches, expected, atol=1e-5, rtol=0)
                continue
        found = torch.cat([ours.cls[:, None], ours.registers, ours.patches], dim=1)
        assert found.std() > 0.1
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_open_model__says_what_is_wrong(tmp_path: Path):
    with pytest.raises(ConfigError, match="there is no such file or folder; give the folder of a run"):
        open_model(f"{tmp_path}/nowhere")
    with pytest.raises(ConfigError, match=r"no recipe\.yaml in it; give the folder of a run"):
        open_model(str(tmp_path))
    with pytest.raises(ConfigError, match="no such file or folder; give the folder of a run"):
        open_model("random:/nowhere")
    recipe, _ = a_run(tmp_path, steps=())
    with pytest.raises(ConfigError, match="no checkpoint has been committed yet"):
        open_model(str(tmp_path))
    a_run(tmp_path)
    with pytest.raises(ConfigError, match=r"no checkpoint of that step is kept; give one of 3, 12"):
        open_model(f"{tmp_path}@7")
    (tmp_path / "recipe.yaml").write_text(recipe.override({"backbone.width": 32}).to_yaml())
    with pytest.raises(ConfigError, match=r"vit\.cls_token is \[1, 1, 16\], not \[1, 1, 32\].* more; name the network"):
        open_model(str(tmp_path))
    (tmp_path / "recipe.yaml").write_text("name: none\n")
    with pytest.raises(ConfigError, match="its recipe.yaml is of no run"):
        open_model(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "text"), [("swin_tiny_patch4_window7_224", "swin_transformer family"), ("vit_x", "no such")]
)
def test_open_model__refuses_other_published_networks(name: str, text: str):
    with pytest.raises(ConfigError, match=text):
        open_model(f"timm:{name}", pretrained=False)
