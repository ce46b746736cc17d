"""Weights by name: their digest, and the way of timm's names to those of our networks. Nothing is left out in silence."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from raydino.config import ConfigError
from raydino.nn.backbone import Backbone, ConvNet, Transformer
from raydino.nn.config import BackboneConfig

SHOWN = 3  # tensors named in a message; the others are counted


def weights_digest(network: nn.Module) -> str:
    """`digest_of` all weights and buffers of a network."""
    return digest_of(network.state_dict())


def digest_of(weights: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and values, in the order of the names; hexadecimal."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def config_of(name: str, model: Any) -> BackboneConfig:
    """The `BackboneConfig` of a timm model `name` (without its tag): what its published weights are of."""
    if not hasattr(model, "blocks"):
        return BackboneConfig(name=name, channels=_channels(model), patch_size=model.feature_info[-1]["reduction"])
    scale = getattr(model.blocks[0].ls1, "init_values", None)
    return BackboneConfig(
        name=name,
        channels=_channels(model),
        patch_size=model.patch_embed.patch_size[0],
        registers=model.num_reg_tokens,
        layer_scale=scale or 0.0,
    )


def from_timm(weights: Mapping[str, Tensor], backbone: Backbone) -> dict[str, Tensor]:
    """timm's tensors under the names of `backbone`. The mask token, which timm's models lack, is zeros, as at the start."""
    if isinstance(backbone, ConvNet):
        return {f"net.{name}": value for name, value in weights.items()}
    named = {"registers" if name == "reg_token" else f"vit.{name}": value for name, value in weights.items()}
    for ours in ("mask_token", "registers"):  # without registers ours is empty
        if ours not in named and (ours == "mask_token" or not backbone.state_dict()[ours].numel()):
            named[ours] = torch.zeros_like(backbone.state_dict()[ours])
    return named


def at_size(backbone: Backbone, *, like: Backbone) -> dict[str, Tensor]:
    """The weights of `backbone` for the grid of patches of `like`: its positions resampled once by its own rule, so that
    features at that size stay what they were."""
    weights = dict(backbone.state_dict())
    if isinstance(backbone, Transformer) and isinstance(like, Transformer):
        with torch.no_grad():
            weights["vit.pos_embed"] = backbone.positions(*like.vit.patch_embed.grid_size).clone()
    return weights


def load_strictly(network: nn.Module, weights: Mapping[str, Tensor], *, origin: str) -> None:
    """Load `weights`, all of them and no others, each of the right shape. Raises ConfigError naming `origin` and tensors."""
    own = network.state_dict()
    faults = [f"{name} is missing" for name in own if name not in weights]
    faults += [f"{name} is unknown" for name in weights if name not in own]
    faults += [
        f"{name} is {list(value.shape)}, not {list(own[name].shape)}"
        for name, value in weights.items()
        if name in own and value.shape != own[name].shape
    ]
    if faults:
        more = f" and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise ConfigError(
            f"{origin}: weights of another network: {'; '.join(faults[:SHOWN])}{more}; name the network they are of."
        )
    network.load_state_dict(dict(weights))


def _channels(model: Any) -> int:
    return next(module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d))
