"""Published .pth files, written here in the official layouts from timm models of random weights, against timm's forward pass."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from raydino.config import ConfigError
from raydino.export import from_pth
from raydino.export.from_pth import import_pth

SMALL = {"depth": 2, "embed_dim": 48, "num_heads": 2}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """timm's models with two narrow blocks, for the import as for the test: the names and layouts stay."""
    create = timm.create_model

    def made(name: str, **options: Any) -> Any:
        return create(name, **({**options, **SMALL} if name.startswith("vit") else options))

    monkeypatch.setattr(timm, "create_model", made)
    return made


def perturbed(model: Any) -> Any:
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def official(model: Any, *, registers: bool = False, swiglu: bool = False) -> dict[str, Tensor]:
    """DINOv2's names: dinov2/models/vision_transformer.py and dinov2/layers/swiglu_ffn.py."""
    named = {}
    for name, value in model.state_dict().items():
        if swiglu:
            name = name.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3")
        named[{"reg_token": "register_tokens"}.get(name, name)] = value.clone()
    named["mask_token"] = torch.randn(1, model.embed_dim)
    if registers:  # the official cls token has a position, which timm has added to the token
        position = torch.randn(1, 1, model.embed_dim)
        named["cls_token"] -= position
        named["pos_embed"] = torch.cat([position, named["pos_embed"]], dim=1)
    return named


CASES = {
    "vit_small_patch14_dinov2": {},
    "vit_small_patch14_reg4_dinov2": {"registers": True},
    "vit_giant_patch14_dinov2": {"swiglu": True},
}


@pytest.mark.parametrize("name", CASES)
def test_import__dinov2_computes_what_timm_computes(small: Callable[..., Any], tmp_path: Path, name: str):
    theirs = perturbed(small(name, num_classes=0, img_size=70, dynamic_img_size=True))
    tensors = official(theirs, **CASES[name])
    torch.save(tensors, tmp_path / "dinov2_pretrain.pth")
    imported = import_pth(tmp_path / "dinov2_pretrain.pth", name)
    assert str(imported) == f"{len(tensors)}/{len(tensors)} tensors"
    model = imported.model
    assert (model.name, model.size, model.step) == ("dinov2_pretrain", 70, None)
    assert model.normalisation.mean == (0.485, 0.456, 0.406)
    assert torch.equal(model.backbone.state_dict()["mask_token"], tensors["mask_token"])
    registers = model.config.registers
    assert model.config.position_resampling == ("antialias" if registers else "offset")
    for side in (70, 98, 42) if registers else (70,):  # elsewhere timm's rule is another than the official one
        images = torch.randn(2, 3, side, side)
        with torch.no_grad():
            found, expected = model.backbone(images), theirs.forward_features(images)
        found = torch.cat([found.cls[:, None], found.registers, found.patches], dim=1)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_import__positions_of_networks_without_registers_follow_the_official_rule(
    small: Callable[..., Any], tmp_path: Path
):
    # dinov2/models/vision_transformer.py, interpolate_pos_encoding with interpolate_offset = 0.1
    theirs = perturbed(small("vit_small_patch14_dinov2", num_classes=0, img_size=70))
    torch.save(official(theirs), tmp_path / "x.pth")
    backbone: Any = import_pth(tmp_path / "x.pth", "vit_small_patch14_dinov2").model.backbone
    grid = theirs.pos_embed[:, 1:].reshape(1, 5, 5, 48).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(grid, scale_factor=((8 + 0.1) / 5, (6 + 0.1) / 5), mode="bicubic")
    found = backbone.positions(8, 6)[:, 1:].reshape(1, 8, 6, 48).permute(0, 3, 1, 2)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_import__training_checkpoint_of_dinov2(small: Callable[..., Any], tmp_path: Path):
    # teacher_checkpoint.pth: prefixed, heads beside, blocks in chunks that keep their numbers
    theirs = perturbed(small("vit_small_patch14_dinov2", num_classes=0, img_size=70))
    tensors = {f"backbone.{name}": value for name, value in official(theirs).items()}
    tensors = {
        name.replace("blocks.0.", "blocks.0.0.").replace("blocks.1.", "blocks.1.1."): v for name, v in tensors.items()
    }
    heads = {"dino_head.mlp.0.weight": torch.zeros(3, 3), "dino_head.last_layer.weight_v": torch.zeros(3, 3)}
    torch.save({"teacher": {**tensors, **heads}}, tmp_path / "teacher_checkpoint.pth")
    imported = import_pth(tmp_path / "teacher_checkpoint.pth", "vit_small_patch14_dinov2")
    assert str(imported) == f"{len(tensors)}/{len(tensors)} tensors, 2 of heads left aside"
    images = torch.randn(1, 3, 70, 70)
    with torch.no_grad():
        torch.testing.assert_close(
            imported.model.backbone(images).cls, theirs.forward_features(images)[:, 0], atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("wrapped", [False, True])
def test_import__dino(small: Callable[..., Any], tmp_path: Path, wrapped: bool):
    theirs = perturbed(small("vit_small_patch16_224", num_classes=0, img_size=64))
    tensors = dict(theirs.state_dict())
    full = {"student": {}, "teacher": {f"module.backbone.{name}": v for name, v in tensors.items()}, "epoch": 3}
    torch.save(full if wrapped else tensors, tmp_path / "dino.pth")
    imported = import_pth(tmp_path / "dino.pth", "vit_small_patch16_224.dino")
    assert str(imported) == f"{len(tensors)}/{len(tensors)} tensors"
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            imported.model.backbone(images).cls, theirs.forward_features(images)[:, 0], atol=1e-5, rtol=0
        )


def test_import__dino_resnet(tmp_path: Path):
    theirs = timm.create_model("resnet18", num_classes=0).eval()
    torch.save(theirs.state_dict(), tmp_path / "dino_resnet.pth")
    imported = import_pth(tmp_path / "dino_resnet.pth", "resnet18")
    assert imported.used == imported.total == len(theirs.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(imported.model.backbone(images).cls, theirs(images), atol=1e-5, rtol=0)


def test_import__refuses_wrong_files_by_the_name_of_the_tensor(small: Callable[..., Any], tmp_path: Path):
    name, file = "vit_small_patch14_dinov2", tmp_path / "x.pth"
    good = official(small(name, num_classes=0, img_size=70))

    def refused(content: Any, text: str, architecture: str = name) -> None:
        torch.save(content, file)
        with pytest.raises(ConfigError, match=text):
            import_pth(file, architecture)

    refused({k: v for k, v in good.items() if k != "blocks.1.norm2.bias"}, r"vit\.blocks\.1\.norm2\.bias is missing")
    refused({**good, "blocks.7.norm1.bias": torch.zeros(48)}, r"vit\.blocks\.7\.norm1\.bias is unknown")
    refused({**good, "norm.weight": torch.zeros(49)}, r"vit\.norm\.weight is \[49\], not \[48\]")
    refused(good, r"registers is missing", architecture="vit_small_patch14_reg4_dinov2")
    refused(good, "the swin_transformer family", architecture="swin_tiny_patch4_window7_224")
    refused({"a": 1}, "holds no weights by name")
    refused({k: v for k, v in good.items() if k != "pos_embed"}, "pos_embed is missing")


def test_import__opens_tensors_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Code:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"norm.weight": Code()}, tmp_path / "x.pth")
    with pytest.raises(ConfigError, match=r"x\.pth: no file of tensors .*what runs code is never opened"):
        import_pth(tmp_path / "x.pth", "vit_small_patch14_dinov2")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(ConfigError, match="no file of tensors"):
        import_pth(tmp_path / "none.pth", "vit_small_patch14_dinov2")
    monkeypatch.setattr(from_pth, "MAX_BYTES", 10)
    with pytest.raises(ConfigError, match="at most 10"):
        import_pth(tmp_path / "x.pth", "vit_small_patch14_dinov2")
