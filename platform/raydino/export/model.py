"""Model: a frozen backbone with what must be known to use it, and the published ones that timm has."""

from dataclasses import dataclass

import torch

from raydino.nn.backbone import Backbone, family_of, published
from raydino.nn.config import BackboneConfig
from raydino.nn.weights import config_of, from_timm, load_strictly, weights_digest
from raydino.views import Normalisation, Size


@dataclass(frozen=True)
class Model:
    """A backbone to be evaluated or handed out."""

    name: str
    """For reports, without folders: "dinov2-0123456789ab@200", "timm:vit_small_patch14_dinov2"."""
    backbone: Backbone
    """In evaluation mode, none of its weights to be trained."""
    config: BackboneConfig
    """What builds it."""
    size: Size
    """Pixels of the images it was trained on: a side, or height and width."""
    normalisation: Normalisation
    """Of its input."""
    step: int | None
    """Steps of the run it comes from; None for published weights."""
    digest: str
    """sha256 of names, shapes and values of its weights, hexadecimal."""


def frozen(
    name: str,
    backbone: Backbone,
    config: BackboneConfig,
    *,
    size: Size,
    normalisation: Normalisation,
    step: int | None = None,
) -> Model:
    """`backbone` as a `Model`: set to evaluation mode and frozen in place."""
    backbone.eval().requires_grad_(requires_grad=False)
    digest = weights_digest(backbone)
    return Model(name, backbone, config, size=size, normalisation=normalisation, step=step, digest=digest)


def open_timm(name: str, *, device: str | torch.device = "cpu", pretrained: bool = True) -> Model:
    """timm's model `name` with its published weights, from timm's cache or the network, or with random ones.

    Position embeddings reach other sizes as timm resamples them, with antialiasing.

    Raises:
        ConfigError: timm has no such model or no weights of it, or it is of a kind that `build_backbone` does not know.
    """
    arch = name.partition(".")[0]
    family_of(arch)
    model, settings, _ = published(name, weights=pretrained)
    _, height, width = settings["input_size"]
    size = height if height == width else (height, width)
    config = config_of(arch, model)
    backbone = config.build(image_size=size, drop_path=0.0)
    load_strictly(backbone, from_timm(model.state_dict(), backbone), origin=f"timm:{name}")
    normalisation = Normalisation(mean=settings["mean"], std=settings["std"])
    return frozen(f"timm:{name}", backbone.to(device), config, size=size, normalisation=normalisation)
