"""Import of the weights that DINO and DINOv2 published: `.pth` files, in the layouts of the official repositories.

The one place where a foreign .pth is opened, and only by the import command: as tensors alone (`weights_only`), which refuses
whatever would run code. Every tensor of the backbone must find its place and every place its tensor; what is left aside, the
heads of a training checkpoint, is counted. The rule for position embeddings on another grid is the official one: with
antialiasing for networks with registers, the offset of 0.1 for those without.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raydino.config import ConfigError
from raydino.export.model import Model, frozen
from raydino.nn.backbone import ConvNet, family_of, published
from raydino.nn.config import BackboneConfig
from raydino.nn.weights import config_of, load_strictly
from raydino.views import Normalisation

MAX_BYTES = 10_000_000_000  # ViT-g, the largest that was published, has 4.5 GB
CONV_SIZE = 224  # pixels; a convolutional network's weights do not say
PARTS = ("teacher", "student", "model", "state_dict")  # of a training checkpoint, the first that is there
HEADS = ("head.", "dino_head.", "ibot_head.", "fc.")
RENAMED = (
    (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),  # DINOv2 trains its blocks in chunks and keeps their numbers
    (r"\.mlp\.w12\.", ".mlp.fc1."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
)


@dataclass(frozen=True)
class Imported:
    """Published weights as a model, and what became of the file's tensors."""

    model: Model
    used: int
    """Tensors of the file that are in the model."""
    total: int
    """Tensors in the file's network."""
    heads: int
    """Those of heads, which a backbone has not."""

    def __str__(self) -> str:
        aside = f", {self.heads} of heads left aside" if self.heads else ""
        return f"{self.used}/{self.total - self.heads} tensors{aside}"


def import_pth(path: Path, architecture: str) -> Imported:
    """The weights in `path`, of timm's `architecture` (such as vit_small_patch14_dinov2), on the CPU.

    Raises:
        ConfigError: the file is too large, holds other things than tensors, or weights of another network; it names the tensors.
    """
    found = _tensors(path)
    total = len(found)
    backbone_only = {name: value for name, value in found.items() if not name.startswith(HEADS)}
    family_of(architecture)
    with torch.device("meta"):  # its settings are asked for, not its weights
        published_as, _, _ = published(architecture, weights=False)
    config = config_of(architecture.partition(".")[0], published_as)
    if not hasattr(published_as, "blocks"):
        size, weights = CONV_SIZE, {f"net.{name}": value for name, value in backbone_only.items()}
    else:
        config = config.override({"position_resampling": "antialias" if config.registers else "offset"})
        size, weights = _side(path, backbone_only, config), _renamed(backbone_only)
    backbone = config.build(image_size=size, drop_path=0.0)
    if not isinstance(backbone, ConvNet):
        weights = _placed(
            weights, backbone.state_dict(), patches_alone=bool(getattr(published_as, "no_embed_class", 0))
        )
    load_strictly(backbone, weights, origin=f"{path.name} as {architecture}")
    model = frozen(f"{path.stem}", backbone, config, size=size, normalisation=Normalisation())
    return Imported(model, used=len(backbone_only), total=total, heads=total - len(backbone_only))


def _tensors(path: Path) -> dict[str, Tensor]:
    """The network's tensors in a file, without the prefixes of wrappers. Raises ConfigError."""
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise ConfigError(f"{path}: {size:,} bytes, and published weights have at most {MAX_BYTES:,}.")
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except ConfigError:
        raise
    except Exception as error:  # whatever a file of somebody else may raise
        line = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"{path}: no file of tensors ({line}); give a .pth that DINO or DINOv2 published; what runs code is never opened."
        ) from error
    for part in PARTS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(part), Mapping):
            loaded = loaded[part]
            break
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()) or not loaded:
        raise ConfigError(f"{path}: holds no weights by name; give a .pth that DINO or DINOv2 published.")
    return {re.sub(r"^(module\.)?(backbone\.)?", "", name): value for name, value in loaded.items()}


def _side(path: Path, weights: Mapping[str, Tensor], config: BackboneConfig) -> int:
    """Pixels of the images it was trained on, from its positions."""
    if "pos_embed" not in weights:
        raise ConfigError(f"{path.name}: pos_embed is missing, so these are no weights of {config.name}; name another.")
    return math.isqrt(weights["pos_embed"].shape[1] - 1) * config.patch_size


def _renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, value in weights.items():
        for old, new in RENAMED:
            name = re.sub(old, new, name)
        renamed[name] = value
    return renamed


def _placed(weights: dict[str, Tensor], own: Mapping[str, Tensor], *, patches_alone: bool) -> dict[str, Tensor]:
    """Official names as ours. DINO's networks have no mask token, which is then zeros, and no registers."""
    theirs = dict(weights)
    if (
        patches_alone and {"cls_token", "pos_embed"} <= theirs.keys()
    ):  # the cls token's position goes into the token, as in timm
        theirs["cls_token"] = theirs["cls_token"] + theirs["pos_embed"][:, :1]
        theirs["pos_embed"] = theirs["pos_embed"][:, 1:]
    placed = {
        "mask_token": theirs.pop("mask_token", torch.zeros_like(own["mask_token"])),
        **({} if own["registers"].numel() else {"registers": own["registers"]}),
    }
    if "register_tokens" in theirs:
        placed["registers"] = theirs.pop("register_tokens")
    return {**placed, **{f"vit.{name}": value for name, value in theirs.items()}}
