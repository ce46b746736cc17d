"""Small models of every kind that exports know, with weights that matter: fresh ones are too small to be seen."""

from typing import Any

import torch

from raydino.export.model import Model, frozen
from raydino.nn.config import BackboneConfig
from raydino.views import Normalisation, Size

SMALL: dict[str, Any] = {"patch_size": 8, "width": 32, "depth": 2, "heads": 2}
KINDS: dict[str, tuple[dict[str, Any], Size]] = {
    "plain": (SMALL, 40),
    "registers": ({**SMALL, "registers": 3, "layer_scale": 1e-5}, 40),
    "swiglu": ({**SMALL, "ffn": "swiglu", "registers": 1, "layer_scale": 1e-5}, 40),
    "cls without a position": ({**SMALL, "name": "vit_small_patch14_reg4_dinov2", "registers": 4}, 40),
    "grey": ({**SMALL, "channels": 1}, 40),
    "oblong": ({**SMALL, "registers": 2}, (24, 40)),
    "offset": ({**SMALL, "position_resampling": "offset", "layer_scale": 0.1}, 40),
    "norm before the blocks": ({**SMALL, "name": "vit_base_patch16_clip_224"}, 40),
    "resnet": ({"name": "resnet18", "patch_size": 32}, 64),
}


def a_model(kind: str, **changes: Any) -> Model:
    fields, size = KINDS[kind]
    config = BackboneConfig(**{**fields, **changes})
    torch.manual_seed(0)
    backbone = config.build(image_size=size, drop_path=0.0)
    for parameter in backbone.parameters():
        parameter.data.add_(
            (0.01 if kind == "resnet" else 0.1) * torch.randn_like(parameter)
        )  # a ResNet has no last norm
    normalisation = Normalisation(mean=(0.4,), std=(0.2,))
    return frozen(f"{kind}@7", backbone, config, size=size, normalisation=normalisation, step=7)
