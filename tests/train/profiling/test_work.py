"""Floating-point operations per image, against a closed form, figures derived from the papers, and a real training step."""

import dataclasses

import pytest
import torch
from presets import DINO, DINOV2, SUPERVISED
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from raydino.methods.config import DINOConfig, DINOv2Config, MethodConfig, SupervisedConfig
from raydino.nn.config import BackboneConfig, HeadConfig
from raydino.recipe import Recipe
from raydino.train.profiling.parts import HEADS, STUDENT, TEACHER
from raydino.train.profiling.work import Work, work_per_image
from raydino.views import Batch, Crops

GIGA = 1e9
VIT_S, VIT_B = (BackboneConfig(name=f"vit_{size}_patch16_224") for size in ("small", "base"))


def closed_form(recipe: Recipe, *, width: int, depth: int) -> dict[str, float]:
    """performance of a ViT by hand: 24 d² T + 4 T² d a block, the patch embedding without a gradient for pixels."""
    patch, channels = recipe.backbone.patch_size, recipe.backbone.channels

    def one(crops: Crops) -> tuple[float, float, int]:
        patches = (crops.height // patch) * (crops.width // patch)
        tokens = patches + 1 + recipe.backbone.registers
        blocks = depth * (24 * width**2 * tokens + 4 * tokens**2 * width)
        return crops.count * blocks, crops.count * 2 * patches * channels * patch**2 * width, patches

    method = recipe.method
    (large, embedded, patches), (small, small_embedded, _) = one(method.global_crops), one(method.local_crops)
    parts = {STUDENT: 3 * (large + small) + 2 * (embedded + small_embedded), TEACHER: large + embedded}
    views = method.global_crops.count + method.local_crops.count
    if isinstance(method, SupervisedConfig):
        return {STUDENT: parts[STUDENT], TEACHER: 0.0, HEADS: 3 * views * 2 * width * method.classes}
    head = method.head
    row = 2 * (width * head.hidden + head.hidden * head.bottleneck + head.bottleneck * head.prototypes)
    row += 2 * (head.layers - 2) * head.hidden**2
    rows = 3 * views + method.global_crops.count
    if isinstance(method, DINOv2Config):
        rows += 4 * method.global_crops.count * method.masks.probability * 0.3 * patches
    return {**parts, HEADS: rows * row}


PRESETS = {
    "dinov2 laptop": (DINOV2["laptop"], 192, 3),
    "dinov2 vits16": (DINOV2["vits16"], 384, 12),
    "dino laptop": (DINO["laptop"], 192, 3),
    "dino vits16": (DINO["vits16"], 384, 12),
    "supervised cifar": (SUPERVISED["cifar"], 192, 6),
}


@pytest.mark.parametrize("name", PRESETS)
def test_work__equals_the_closed_form(name: str):
    recipe, width, depth = PRESETS[name]
    work = work_per_image(recipe.method, recipe.backbone, images=8)
    assert work is not None
    assert work.nominal == pytest.approx(closed_form(recipe, width=width, depth=depth), rel=1e-9)


@pytest.mark.parametrize(
    ("method", "backbone", "heads", "whole"),
    [
        (DINOConfig(), VIT_S, 1.4, 114),
        (DINOConfig(), VIT_B, 1.5, 436),
        (DINOv2Config(), VIT_S, 11.9, 124),
        (DINOv2Config(), VIT_B, 12.3, 446),
    ],
    ids=["DINO S/16", "DINO B/16", "DINOv2 S/16", "DINOv2 B/16"],
)
def test_work__is_what_is_known_of_the_published_recipes(
    method: MethodConfig, backbone: BackboneConfig, heads: float, whole: float
):
    """Derived from the papers' settings by hand, with a third pass of the patch embedding, which pixels do not need."""
    work = work_per_image(method, backbone, images=8)
    assert work is not None
    assert work.nominal[HEADS] / GIGA == pytest.approx(heads, rel=0.03)
    assert sum(work.nominal.values()) / GIGA == pytest.approx(whole, rel=0.01)


def test_work__depth_by_subsets_is_left_out_of_the_effective_work():
    backbone = VIT_S.override({"drop_path": 0.1, "stochastic_depth": "batch_subset"})
    work = work_per_image(DINOv2Config(), backbone, images=64)
    assert work is not None
    assert sum(work.effective.values()) / GIGA == pytest.approx(115, rel=0.01)
    per_sample = work_per_image(DINOv2Config(), VIT_S.override({"drop_path": 0.1}), images=64)
    assert per_sample == dataclasses.replace(work, effective=work.nominal)  # it computes what it throws away


TINY = BackboneConfig(name="vit_tiny_patch16_224", patch_size=8, width=32, depth=2, heads=2)
SMALL = {
    "global_crops.size": 32,
    "local_crops": {"size": 16, "count": 3},
    "head": {"prototypes": 64, "hidden": 32, "bottleneck": 16},
}
METHODS = {
    "dino": (DINOConfig().override(SMALL), TINY),
    "dinov2": (DINOv2Config().override(SMALL), TINY),
    "dinov2, heads apart": (
        DINOv2Config(ibot_head=HeadConfig(prototypes=48, hidden=24, bottleneck=16)).override(SMALL),
        TINY,
    ),
    "subsets": (
        DINOv2Config().override(SMALL),
        TINY.override({"drop_path": 0.25, "stochastic_depth": "batch_subset", "registers": 2, "ffn": "swiglu"}),
    ),
    "resnet": (
        DINOConfig().override({**SMALL, "global_crops.size": 64, "local_crops.size": 32}),
        BackboneConfig(name="resnet18", patch_size=32),
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_work__is_what_a_training_step_computes(name: str):
    config, backbone = METHODS[name]
    images, shares = 10, {crops: group.count for crops, group in config.views(backbone).crops.items()}
    method = config.build(backbone, steps=10)
    crops = {key: torch.rand(shape) for key, shape in config.views(backbone).shapes(images).items()}
    assert shares == {"global": 2, "local": 3}
    masks = None
    if isinstance(config, DINOv2Config):
        masks = torch.zeros(2, images, 16, dtype=torch.bool)  # 3 of 10 crops, 16 patches each: 0.5 * 0.3 of all
        masks[:, :3, :8] = True
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # others compute scores again
        output = method(Batch(crops, masks, (b"",) * images, step=0), 0)
        torch.stack(list(output.losses.values())).sum().backward()
    counts = counter.get_flop_counts()["Global"]
    koleo = 2 * 2 * images**2 * backbone.width if isinstance(config, DINOv2Config) and backbone.width else 0
    work = work_per_image(config, backbone, images=images)
    assert isinstance(work, Work)
    assert images * sum(work.effective.values()) + koleo == pytest.approx(sum(counts.values()), rel=1e-9)


def test_work__of_a_method_of_ones_own_is_not_guessed():
    class MyConfig(MethodConfig):
        pass

    assert work_per_image(MyConfig(), VIT_S, images=8) is None
