"""Fifty steps of every method, from images to losses, against a recorded trace: whatever changes a loss has to show here.

The whole chain but Ray: generated images, order, decoding, crops, masks, initial weights, losses, optimiser, teacher, centres.
A change that is meant to alter a loss records new traces with

    RAYDINO_RECORD_GOLDEN=1 python -m pytest tests/golden

and says so in the changelog. Processors round differently: between AVX-512 and plain code these traces were measured to
differ by 2e-6 on one machine and by 2.3e-5 on another, and the tolerance leaves room for other matrix libraries. KoLeo takes the
logarithm of distances between features that nearly coincide, which enlarges rounding: it differed by 1.3e-4.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from raydino.curation.synthetic import write_builtin
from raydino.methods.config import DINOConfig, DINOv2Config, SupervisedConfig
from raydino.nn.config import BackboneConfig, HeadConfig
from raydino.recipe import Recipe
from raydino.schedule import cosine
from raydino.train.config import OptimConfig

STEPS = 50
TOLERANCE, OF_KOLEO = 1e-4, 1e-3
FOLDER = Path(__file__).parent
CROPS = {
    "global_crops.size": 16,
    "local_crops.size": 8,
    "local_crops.count": 2,
    "teacher_momentum": {"start": 0.95, "end": 1.0},
}
SMALL = {**CROPS, "head": {"prototypes": 64, "hidden": 32, "bottleneck": 16}, "freeze_last_layer": 5}
METHODS = {
    "dino": DINOConfig().override(SMALL),
    "dinov2_short": DINOv2Config().override(SMALL),
    "dinov2_long": DINOv2Config(
        centering="sinkhorn_knopp", ibot_head=HeadConfig(prototypes=48, hidden=32, bottleneck=16, train_gain=True)
    ).override(SMALL),
    "supervised": SupervisedConfig(classes=8).override(CROPS),
}
RECIPES = {
    name: Recipe(
        steps=STEPS,
        global_batch=16,
        backbone=BackboneConfig(
            name="vit_tiny_patch16_224", patch_size=4, width=32, depth=2, heads=2, drop_path=0.1, layer_scale=0.1
        ),
        method=method,
        optim=OptimConfig(lr=1e-3, warmup=0.2, weight_decay=cosine(0.04, 0.4), layer_decay=0.9),
    )
    for name, method in METHODS.items()
}
RECIPES["dinov2_vitl14"] = RECIPES["dinov2_long"].override(
    {  # what the released networks have besides: SwiGLU, subsets, registers, positions by the older rule
        "backbone": {
            "ffn": "swiglu",
            "registers": 2,
            "drop_path": 0.4,
            "stochastic_depth": "batch_subset",
            "position_resampling": "offset",
        }
    }
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 generated images as shards."""
    folder = tmp_path_factory.mktemp("golden") / "images"
    write_builtin(str(folder), train=240, test=60)
    return folder


def trace(recipe: Recipe, images: Path, train_here: Callable[..., Any]) -> dict[str, list[float]]:
    """Every loss of every step."""
    out: dict[str, list[float]] = {}
    for report in train_here(recipe, images):
        for name, value in report.metrics.items():
            if name.startswith("loss/"):
                out.setdefault(name, []).append(float(value))
    return out


@pytest.mark.parametrize("name", RECIPES)
def test_trace__fifty_steps_give_the_recorded_losses(name: str, images: Path, train_here: Callable[..., Any]):
    found, path = trace(RECIPES[name], images, train_here), FOLDER / f"{name}.json"
    if os.environ.get("RAYDINO_RECORD_GOLDEN"):
        lines = [
            f"{json.dumps(key)}: {json.dumps([round(value, 6) for value in values])}" for key, values in found.items()
        ]
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    recorded = json.loads(path.read_text())
    assert found.keys() == recorded.keys()
    for key, values in recorded.items():
        assert len(values) == STEPS
        torch.testing.assert_close(
            torch.tensor(found[key]),
            torch.tensor(values),
            rtol=OF_KOLEO if key.endswith("koleo") else TOLERANCE,
            atol=1e-6,
            msg=lambda m, key=key: f"{key}: {m}",
        )


def test_trace__a_loss_weight_that_is_off_by_a_percent_is_noticed(images: Path, train_here: Callable[..., Any]):
    """The tolerance is no blanket: one per cent on one weight of one loss term leaves it."""
    recorded = json.loads((FOLDER / "dinov2_short.json").read_text())
    found = trace(RECIPES["dinov2_short"].override({"method.ibot_weight": 1.01}), images, train_here)
    worst = max(abs(a - b) / abs(b) for a, b in zip(found["loss/total"], recorded["loss/total"], strict=True))
    assert worst > TOLERANCE
