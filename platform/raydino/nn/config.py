"""Settings of the networks. Apart from the networks themselves so that `--help` need not import torch (2 to 6 s)."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from raydino.config import Config
from raydino.views import Positive, Probability

if TYPE_CHECKING:
    from raydino.nn.backbone import Backbone
    from raydino.nn.heads import Head


class BackboneConfig(Config):
    """A timm vision transformer."""

    name: str = "vit_small_patch16_224"
    """Name of a timm ViT; its published width, depth and heads apply unless set below."""
    patch_size: Positive = 16
    """Side of a patch, pixels."""
    width: Positive | None = None
    """Embedding dimension; None keeps the model's own."""
    depth: Positive | None = None
    """Number of blocks; None keeps the model's own."""
    heads: Positive | None = None
    """Attention heads; None keeps the model's own."""
    registers: Annotated[int, Field(ge=0)] = 0
    """Register tokens (Darcet et al. 2024)."""
    layer_scale: Annotated[float, Field(ge=0)] = 0.0
    """Initial LayerScale; 0 leaves LayerScale out. DINOv2: 1e-5."""
    drop_path: Probability = 0.0
    """Stochastic-depth rate of the student; the teacher has none."""

    def build(self, *, image_size: int, drop_path: float) -> "Backbone":
        """The backbone for global crops of `image_size` pixels; the teacher is built with `drop_path` 0."""
        from raydino.nn.backbone import Backbone

        return Backbone(self, image_size=image_size, drop_path=drop_path)


class HeadConfig(Config):
    """The projection head (DINO, section 3.1 and appendix C): MLP, L2-normalised bottleneck, weight-normed prototypes."""

    prototypes: Positive = 65_536
    """K, outputs of the head."""
    hidden: Positive = 2048
    """Width of the MLP's hidden layers."""
    bottleneck: Positive = 256
    """Width of the L2-normalised bottleneck."""
    layers: Positive = 3
    """Linear layers of the MLP, the bottleneck's included."""
    normalise: bool = True
    """Whether the bottleneck is L2-normalised; without it 3 layers or more collapse (DINO, appendix C), so only for ablations."""
    train_gain: bool = False
    """Whether the prototypes' weight-norm gain is trained (DINOv2: yes) or fixed at 1 (DINO's `norm_last_layer`)."""

    def build(self, width: int) -> "Head":
        """The head on top of features of `width` dimensions."""
        from raydino.nn.heads import Head

        return Head(self, width)
