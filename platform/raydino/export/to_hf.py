"""A folder for Hugging Face transformers: `AutoModel.from_pretrained(DIR)`. The only file that imports transformers.

A ViT of ours with antialiased positions is a `Dinov2WithRegistersModel`, with none of its registers where ours has none: that
class alone resamples positions as ours does. With the older rule it is a `Dinov2Model`. What neither has, such as a
convolutional network or a norm before the blocks, is refused by name.
"""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from raydino.config import ConfigError
from raydino.export.model import Model
from raydino.export.to_timm import per_channel
from raydino.export.verify import Loading
from raydino.nn.backbone import Transformer
from raydino.views import height_width

NOTE = (
    "`AutoImageProcessor.from_pretrained(DIR)` prepares PIL images: shorter side to 256/224 of the size, bicubic, "
    "centre crop, normalised."
)
OFFSET_NOTE = (
    "Verified at its own size alone: this model was trained with the older rule for position embeddings on another grid "
    "(`position_resampling: offset`: a factor of (size + 0.1) / own size), and transformers takes the exact sizes. "
)


def write(model: Model, folder: Path) -> Loading:
    """Write `model` into `folder`; returns how it is used.

    Raises:
        ConfigError: transformers is not installed, or has no class for such a network.
    """
    backbone = _fitting(model)
    transformers = _transformers()
    antialias = model.config.position_resampling == "antialias"
    plain = not antialias and not model.config.registers
    config = _config(transformers, model, backbone, plain=plain)
    theirs = (transformers.Dinov2Model if plain else transformers.Dinov2WithRegistersModel)(config)
    try:
        theirs.load_state_dict(_weights(backbone, registers=not plain))
    except (RuntimeError, KeyError) as error:
        raise ConfigError(
            f"format = hf: {type(theirs).__name__} has no place for {model.config.name} ({error}); take another format."
        ) from error
    theirs.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(_processor(model), indent=1) + "\n")
    first = 1 + model.config.registers
    slices = f"tokens[:, 0], tokens[:, 1:{first}], tokens[:, {first}:]"
    return Loading(
        load='from transformers import AutoModel\n\nmodel = AutoModel.from_pretrained(".").eval()',
        use=f"tokens = model(pixel_values=images).last_hidden_state\ncls, registers, patches = {slices}",
        any_size=antialias,
        note=NOTE if antialias else OFFSET_NOTE + NOTE,
    )


def _fitting(model: Model) -> Transformer:
    backbone, name = model.backbone, model.config.name
    if not isinstance(backbone, Transformer):
        raise ConfigError(f"format = hf: transformers has no class for {name} as it is here; take timm or onnx.")
    high, wide = height_width(model.size)
    if high != wide:
        raise ConfigError(
            f"format = hf: {name} was trained on {high} × {wide} pixels, and Dinov2Model takes its positions for square; take "
            "timm or onnx."
        )
    if not isinstance(backbone.vit.norm_pre, nn.Identity):
        raise ConfigError(
            f"format = hf: {name} has a norm before its blocks (norm_pre), and Dinov2Model none; take timm or onnx."
        )
    block = backbone.vit.blocks[0]
    activation = nn.SiLU if _is_swiglu(block.mlp) else nn.GELU
    ratio = block.mlp.fc1.out_features / backbone.width
    if not isinstance(block.mlp.act, activation) or (activation is nn.GELU and ratio % 1):
        raise ConfigError(
            f"format = hf: {name} has the activation {type(block.mlp.act).__name__} and a feed-forward layer of {ratio:g} times "
            "its width, which Dinov2Model has not; take timm or onnx."
        )
    return backbone


def _config(transformers: ModuleType, model: Model, backbone: Transformer, *, plain: bool) -> Any:
    block = backbone.vit.blocks[0]
    swiglu = _is_swiglu(block.mlp)
    fields: dict[str, Any] = {
        "hidden_size": backbone.width,
        "num_hidden_layers": backbone.depth,
        "num_attention_heads": block.attn.num_heads,
        "mlp_ratio": 4 if swiglu else block.mlp.fc1.out_features // backbone.width,
        "layer_norm_eps": block.norm1.eps,
        "image_size": height_width(model.size)[0],
        "patch_size": model.config.patch_size,
        "num_channels": model.config.channels,
        "qkv_bias": block.attn.qkv.bias is not None,
        "use_swiglu_ffn": swiglu,
    }
    if plain:
        return transformers.Dinov2Config(**fields)
    return transformers.Dinov2WithRegistersConfig(**fields, num_register_tokens=model.config.registers)


def _weights(backbone: Transformer, *, registers: bool) -> dict[str, Tensor]:
    """Our tensors under their names; one that has none keeps its own and is refused when it is loaded."""
    ours = {name.removeprefix("vit."): value for name, value in backbone.state_dict().items()}
    positions = ours.pop("pos_embed")
    if backbone.vit.no_embed_class:  # the cls token then has none
        positions = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
    theirs = {
        "embeddings.cls_token": ours.pop("cls_token"),
        "embeddings.mask_token": ours.pop("mask_token"),
        "embeddings.position_embeddings": positions,
        "embeddings.patch_embeddings.projection.weight": ours.pop("patch_embed.proj.weight"),
        "embeddings.patch_embeddings.projection.bias": ours.pop("patch_embed.proj.bias"),
        "layernorm.weight": ours.pop("norm.weight"),
        "layernorm.bias": ours.pop("norm.bias"),
    }
    given = ours.pop("registers")
    if registers:
        theirs["embeddings.register_tokens"] = given
    for number in range(backbone.depth):
        prefix = f"blocks.{number}."
        block = {name.removeprefix(prefix): ours.pop(name) for name in list(ours) if name.startswith(prefix)}
        swiglu = _is_swiglu(backbone.vit.blocks[number].mlp)
        renamed = _block(block, swiglu=swiglu, width=backbone.width)
        theirs |= {f"encoder.layer.{number}.{name}": value for name, value in renamed.items()}
    return {**ours, **theirs}


def _block(block: dict[str, Tensor], *, swiglu: bool, width: int) -> dict[str, Tensor]:
    theirs: dict[str, Tensor] = {}
    for kind in ("weight", "bias"):
        if f"attn.qkv.{kind}" in block:
            parts = block.pop(f"attn.qkv.{kind}").chunk(3)
            theirs |= {
                f"attention.{name}_proj.{kind}": part.contiguous() for name, part in zip("qkv", parts, strict=True)
            }
        theirs[f"attention.o_proj.{kind}"] = block.pop(f"attn.proj.{kind}")
        if swiglu:  # timm keeps gate and value in one matrix, in this order
            gate, value = block.pop(f"mlp.fc1.{kind}").chunk(2)
            theirs |= {f"mlp.gate_proj.{kind}": gate.contiguous(), f"mlp.up_proj.{kind}": value.contiguous()}
            theirs[f"mlp.down_proj.{kind}"] = block.pop(f"mlp.fc2.{kind}")
    for number in (1, 2):
        scale = block.pop(f"ls{number}.gamma", None)
        theirs[f"layer_scale{number}.lambda1"] = torch.ones(width) if scale is None else scale
    return {**theirs, **block}


def _is_swiglu(mlp: Any) -> bool:
    return mlp.fc1.out_features == 2 * mlp.fc2.in_features


def _processor(model: Model) -> dict[str, Any]:
    side, channels = height_width(model.size)[0], model.config.channels
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": channels == 3,
        "do_resize": True,
        "size": {"shortest_edge": round(side * 256 / 224)},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": per_channel(model.normalisation.mean, channels),
        "image_std": per_channel(model.normalisation.std, channels),
    }


def _transformers() -> ModuleType:
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            "format = hf: transformers is not installed; run `make setup`, or install raydino[export]."
        ) from error
    transformers.utils.logging.disable_progress_bar()
    return transformers
