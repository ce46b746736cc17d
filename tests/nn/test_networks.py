"""Backbone, head and teacher against what they are defined to be."""

import math

import pytest
import timm
import torch
import torch.nn.functional as F

from raydino.config import ConfigError
from raydino.nn.config import BackboneConfig, HeadConfig, swiglu_hidden
from raydino.nn.ema import update_teacher

TINY = BackboneConfig(name="vit_tiny_patch16_224", patch_size=4, width=32, depth=2, heads=2, registers=2)


def test_backbone__shapes_for_global_and_local_crops():
    backbone = TINY.build(image_size=32, drop_path=0.0)
    for side in (32, 16):
        tokens = backbone(torch.randn(3, 3, side, side))
        assert tokens.cls.shape == (3, 32)
        assert tokens.registers.shape == (3, 2, 32)
        assert tokens.patches.shape == (3, (side // 4) ** 2, 32)


def test_backbone__equals_timm_without_masks():
    """timm's own registers have no position if its cls token has none either, so that of ours goes into its cls token."""
    backbone = TINY.build(image_size=32, drop_path=0.0)
    peer = timm.create_model(
        TINY.name,
        num_classes=0,
        img_size=32,
        patch_size=4,
        embed_dim=32,
        depth=2,
        num_heads=2,
        reg_tokens=2,
        no_embed_class=True,
        dynamic_img_size=True,
    )
    weights = backbone.vit.state_dict()
    position = weights["pos_embed"]
    folded = {"cls_token": weights["cls_token"] + position[:, :1], "pos_embed": position[:, 1:]}
    peer.load_state_dict({**weights, **folded, "reg_token": backbone.registers})
    for side in (32, 16, 20):
        images = torch.randn(2, 3, side, side)
        features = peer.forward_features(images)
        torch.testing.assert_close(backbone(images).cls, features[:, 0])
        torch.testing.assert_close(backbone(images).registers, features[:, 1:3])
        torch.testing.assert_close(backbone(images).patches, features[:, 3:])


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize(("height", "width"), [(32, 16), (8, 24), (4, 4)])
def test_backbone__takes_any_channels_and_sizes(channels: int, height: int, width: int):
    config = TINY.override({"channels": channels})
    backbone = config.build(image_size=(16, 24), drop_path=0.0)
    tokens = backbone(torch.randn(2, channels, height, width))
    assert tokens.patches.shape == (2, height // 4 * width // 4, 32)


def _cubic(x: float, a: float = -0.75) -> float:
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def _resampled(row: list[float], count: int) -> list[float]:
    """Cubic convolution at the places that the factor (count + 0.1) / len(row) gives; the border value goes on for ever."""
    out = []
    for i in range(count):
        place = (i + 0.5) / ((count + 0.1) / len(row)) - 0.5
        base = math.floor(place)
        near = range(base - 1, base + 3)
        out.append(sum(row[min(max(j, 0), len(row) - 1)] * _cubic(place - j) for j in near))
    return out


@pytest.mark.parametrize(("rows", "columns"), [(3, 3), (6, 4), (8, 5), (13, 9)])
def test_backbone__offset_resampling_is_cubic_convolution_by_the_published_factor(rows: int, columns: int):
    backbone = TINY.override({"position_resampling": "offset"}).build(image_size=32, drop_path=0.0)
    found = backbone._positions(rows, columns).detach()
    torch.testing.assert_close(found[:, 0], backbone.vit.pos_embed[:, 0])
    grid = backbone.vit.pos_embed[0, 1:, 5].view(8, 8).tolist()
    down = list(zip(*(_resampled(list(column), rows) for column in zip(*grid, strict=True)), strict=True))
    expected = torch.tensor([_resampled(list(row), columns) for row in down])
    torch.testing.assert_close(found[0, 1:, 5].view(rows, columns), expected, rtol=1e-4, atol=1e-6)


def test_backbone__registers_and_cls_start_with_the_spread_asked_for():
    for std in (1e-6, 0.02):
        backbone = TINY.override({"width": 512, "token_std": std}).build(image_size=32, drop_path=0.0)
        for token in (backbone.vit.cls_token, backbone.registers):
            assert token.std().item() == pytest.approx(std, rel=0.15)


def test_swiglu__hidden_widths_are_those_of_the_released_models():
    assert [swiglu_hidden(width) for width in (1024, 1536)] == [2736, 4096]


def test_swiglu__equals_its_formula_and_starts_like_other_layers():
    backbone = TINY.override({"width": 48, "ffn": "swiglu"}).build(image_size=32, drop_path=0.0)
    mlp, x = backbone.vit.blocks[0].mlp, torch.randn(5, 48)
    gate, value = (x @ mlp.fc1.weight.T + mlp.fc1.bias).chunk(2, dim=-1)
    torch.testing.assert_close(mlp(x), gate * torch.sigmoid(gate) * value @ mlp.fc2.weight.T + mlp.fc2.bias)
    assert mlp.fc2.weight.shape == (48, 128) and mlp.fc1.bias.abs().sum() == 0
    for half in mlp.fc1.weight.chunk(2):
        assert half.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
def test_convnet__pooled_features_and_last_map(name: str):
    backbone = BackboneConfig(name=name, channels=2, patch_size=32).build(image_size=64, drop_path=0.0).eval()
    images = torch.randn(2, 2, 64, 96)
    out = backbone(images)
    assert out.patches.shape == (2, 6, backbone.width) and out.registers.shape == (2, 0, backbone.width)
    torch.testing.assert_close(out.cls, backbone.net(images))
    if name == "resnet18":
        torch.testing.assert_close(out.cls, out.patches.mean(dim=1))
    assert backbone.attention(images) is None


def test_convnet__refuses_what_only_a_vit_has():
    for field, value in {
        "registers": 4,
        "width": 64,
        "ffn": "swiglu",
        "stochastic_depth": "batch_subset",
        "token_std": 0.02,
    }.items():
        with pytest.raises(ConfigError, match=rf"backbone\.{field} = {value} is for ViTs"):
            BackboneConfig(name="resnet18", patch_size=32).override({field: value}).build(image_size=64, drop_path=0.0)
    with pytest.raises(ConfigError, match="stride of 32; set patch_size to 32"):
        BackboneConfig(name="resnet18").build(image_size=64, drop_path=0.0)
    with pytest.raises(ConfigError, match="cannot be masked"):
        BackboneConfig(name="resnet18").build(image_size=64, drop_path=0.0, masked=True)


def test_backbone__output_does_not_depend_on_masked_pixels():
    backbone = TINY.build(image_size=32, drop_path=0.0)
    torch.nn.init.normal_(backbone.mask_token)
    images, masks = torch.randn(1, 3, 32, 32), torch.zeros(1, 64, dtype=torch.bool)
    masks[0, 9] = True  # row 1, column 1 of the 8 x 8 grid
    changed = images.clone()
    changed[:, :, 4:8, 4:8] += 5.0
    torch.testing.assert_close(backbone(images, masks).cls, backbone(changed, masks).cls)
    assert not torch.allclose(backbone(images).cls, backbone(changed).cls)


def test_backbone__attention_is_that_of_the_last_block():
    backbone = TINY.build(image_size=16, drop_path=0.0)
    images, seen = torch.randn(2, 3, 16, 16), {}
    last = backbone.vit.blocks[-1].attn
    last.qkv.register_forward_hook(lambda _module, _input, output: seen.update(qkv=output))
    backbone(images)
    query, key, _ = seen["qkv"].view(2, -1, 3, 2, 16).permute(2, 0, 3, 1, 4)
    expected = torch.softmax(query @ key.transpose(-2, -1) / 16**0.5, -1)[:, :, 0, 3:]
    torch.testing.assert_close(backbone.attention(images), expected)


def test_backbone__names_what_is_wrong_with_an_unknown_model():
    with pytest.raises(ConfigError, match=r"backbone\.name = 'vit_nonsense'"):
        BackboneConfig(name="vit_nonsense").build(image_size=224, drop_path=0.0)
    with pytest.raises(ConfigError, match="swin_transformer family"):
        BackboneConfig(name="swin_tiny_patch4_window7_224").build(image_size=224, drop_path=0.0)


@pytest.mark.parametrize(
    "name", ["deit_tiny_distilled_patch16_224", "vit_little_patch16_reg4_gap_256", "vit_small_plus_patch16_dinov3"]
)
def test_backbone__refuses_vits_of_another_form(name: str):
    with pytest.raises(ConfigError, match="family|plain ViT"):
        BackboneConfig(name=name).build(image_size=64, drop_path=0.0)


def test_layer_of__orders_embeddings_blocks_and_the_rest():
    backbone = TINY.build(image_size=32, drop_path=0.0)
    layers = {name: backbone.layer_of(name) for name, _ in backbone.named_parameters()}
    assert (
        layers["vit.patch_embed.proj.weight"]
        == layers["vit.cls_token"]
        == layers["mask_token"]
        == layers["registers"]
        == 0
    )
    assert layers["vit.blocks.0.norm1.weight"] == 1
    assert layers["vit.blocks.1.mlp.fc1.weight"] == 2
    assert layers["vit.norm.weight"] == 3


def test_head__scores_are_cosines_for_unit_gain():
    head = HeadConfig(prototypes=7, hidden=16, bottleneck=8).build(32)
    features = torch.randn(5, 32)
    bottleneck = head.mlp(features)
    expected = F.cosine_similarity(bottleneck[:, None], head.prototypes.direction[None], dim=-1)
    torch.testing.assert_close(head(features), expected, rtol=1e-4, atol=1e-6)


def test_head__gain_is_trained_only_when_asked():
    for train_gain in (False, True):
        head = HeadConfig(prototypes=7, hidden=16, bottleneck=8, train_gain=train_gain).build(32)
        assert head.prototypes.gain.requires_grad is train_gain


def test_update_teacher__closed_form_after_n_steps():
    teacher, student = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    start, target = teacher.weight.clone(), student.weight.clone()
    for _ in range(10):
        update_teacher(teacher=teacher, student=student, momentum=0.9)
    torch.testing.assert_close(teacher.weight, 0.9**10 * start + (1 - 0.9**10) * target)
