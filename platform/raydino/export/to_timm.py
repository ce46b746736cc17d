"""A folder that `timm.create_model("local-dir:…")` loads: timm's config.json and model.safetensors.

Registers become timm's, which have no position either if the positions are those of patches alone (`no_embed_class`); the cls
token's own position is then added to the token.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from raydino.export.model import Model
from raydino.export.verify import Loading
from raydino.nn.backbone import ConvNet, Transformer
from raydino.views import height_width

OF_SWIGLU, OF_MLP = "vit_giant_patch14_dinov2", "vit_base_patch16_224"
"""timm's models whose feed-forward layer is SwiGLU, and a GELU MLP: what is ours beside it goes into their arguments."""
LOAD = 'import timm\n\nmodel = timm.create_model("local-dir:.", pretrained=True).eval()'
OFFSET_NOTE = (
    "Verified at its own size alone: this model was trained with the older rule for position embeddings on another grid "
    '(`position_resampling: offset`), and timm resamples by its own; the format "onnx" or "safetensors" keeps the rule.'
)


def write(model: Model, folder: Path) -> Loading:
    """Write `model` into `folder`; returns how it is used."""
    backbone = model.backbone
    if isinstance(backbone, ConvNet):
        weights = {name.removeprefix("net."): value for name, value in backbone.state_dict().items()}
        _save(model, folder, model.config.name, {"in_chans": model.config.channels}, weights)
        use = "features = model.forward_features(images)\ncls, patches = model.forward_head(features), features.flatten(2)"
        return Loading(LOAD, f"{use}.transpose(1, 2)\nregisters = patches[:, :0]")
    assert isinstance(backbone, Transformer), "there are two kinds of networks"
    architecture, arguments = _arguments(model, backbone)
    _save(model, folder, architecture, arguments, _weights(backbone))
    first, any_size = 1 + model.config.registers, model.config.position_resampling == "antialias"
    slices = f"tokens[:, 0], tokens[:, 1:{first}], tokens[:, {first}:]"
    use = f"tokens = model.forward_features(images)\ncls, registers, patches = {slices}"
    return Loading(LOAD, use, any_size=any_size, note="" if any_size else OFFSET_NOTE)


def _arguments(model: Model, backbone: Transformer) -> tuple[str, dict[str, Any]]:
    """timm's name and arguments of the network. A LayerScale of 0 is none, also where the named model has one."""
    config, vit = model.config, backbone.vit
    block = vit.blocks[0]
    arguments = {
        **{"img_size": list(height_width(model.size)), "patch_size": config.patch_size, "in_chans": config.channels},
        **{"embed_dim": backbone.width, "depth": backbone.depth, "num_heads": block.attn.num_heads},
        **{"init_values": getattr(block.ls1, "init_values", 0.0), "reg_tokens": config.registers},
        **{"no_embed_class": _patches_alone(backbone), "dynamic_img_size": True},
    }
    if config.ffn == "model":
        return config.name, arguments
    name = OF_SWIGLU if config.ffn == "swiglu" else OF_MLP
    return name, {**arguments, "mlp_ratio": block.mlp.fc1.out_features / backbone.width}


def _patches_alone(backbone: Transformer) -> bool:
    """Whether the exported positions are those of patches alone."""
    return backbone.vit.no_embed_class or backbone.registers.shape[1] > 0


def _weights(backbone: Transformer) -> dict[str, Tensor]:
    weights = {name.removeprefix("vit."): value for name, value in backbone.state_dict().items()}
    del weights["mask_token"]  # timm's models are never masked
    registers = weights.pop("registers")
    if registers.shape[1]:
        weights["reg_token"] = registers
    if _patches_alone(backbone) and not backbone.vit.no_embed_class:
        weights["cls_token"] = weights["cls_token"] + weights["pos_embed"][:, :1]
        weights["pos_embed"] = weights["pos_embed"][:, 1:]
    return weights


def _save(model: Model, folder: Path, architecture: str, arguments: dict[str, Any], weights: dict[str, Tensor]) -> None:
    channels = model.config.channels
    config = {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": model.backbone.width,
        "pretrained_cfg": {
            "tag": "raydino",
            "num_classes": 0,
            "input_size": [channels, *height_width(model.size)],
            "mean": per_channel(model.normalisation.mean, channels),
            "std": per_channel(model.normalisation.std, channels),
            "interpolation": "bicubic",
            "crop_pct": 224 / 256,
            "fixed_input_size": False,
        },
        "model_args": arguments,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    # A copy of each: a slice shares its memory, which safetensors refuses.
    tensors = {name: value.cpu().clone(memory_format=torch.contiguous_format) for name, value in weights.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def per_channel(values: tuple[float, ...], channels: int) -> list[float]:
    """One value for each channel, as other libraries want them."""
    return list(values if len(values) > 1 else values * channels)
