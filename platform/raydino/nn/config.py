"""Settings of the networks. Apart from the networks themselves so that `--help` need not import torch (2 to 6 s)."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from raydino.config import Config
from raydino.views import Positive, Probability, Size

if TYPE_CHECKING:
    from raydino.nn.backbone import Backbone
    from raydino.nn.heads import Head


class BackboneConfig(Config):
    """A timm network: a vision transformer, or for DINO and the supervised twin also a ResNet or ConvNeXt."""

    name: str = "vit_small_patch16_224"
    """Name of a timm model; its published width, depth and heads apply unless set below."""
    channels: Positive = 3
    """Channels of its input; images are decoded to as many: 1 grey, 3 RGB, else the bands or pages of the file."""
    patch_size: Positive = 16
    """Side of a patch, pixels; of a convolutional network its stride, 32 for ResNets and ConvNeXts."""
    width: Positive | None = None
    """Embedding dimension of a ViT; None keeps the model's own."""
    depth: Positive | None = None
    """Blocks of a ViT; None keeps the model's own."""
    heads: Positive | None = None
    """Attention heads; None keeps the model's own."""
    ffn: Literal["model", "mlp", "swiglu"] = "model"
    """Feed-forward layer of a ViT: the model's own, GELU MLP of 4 times the width, or SwiGLU (DINOv2's ViT-L/14 and g/14)."""
    registers: Annotated[int, Field(ge=0)] = 0
    """Register tokens (Darcet et al. 2024), without a position."""
    layer_scale: Annotated[float, Field(ge=0)] = 0.0
    """Initial LayerScale; 0 leaves LayerScale out. DINOv2: 1e-5."""
    token_std: Annotated[float, Field(ge=0)] = 1e-6
    """Standard deviation of cls token and registers at the start (DINOv2: 1e-6, DINO: 0.02)."""
    drop_path: Probability = 0.0
    """Stochastic-depth rate of the student; the teacher has none."""
    stochastic_depth: Literal["per_sample", "batch_subset"] = "per_sample"
    """per_sample: a rate that grows from 0 to `drop_path` over the blocks, samples dropped one by one (DINO); batch_subset:
    `drop_path` in all blocks, branches computed for a subset of the batch only (DINOv2)."""
    position_resampling: Literal["antialias", "offset"] = "antialias"
    """How position embeddings reach another grid: exact size with antialiasing (DINOv2 with registers), or the older rule of DINO
    and DINOv2 without registers."""

    def build(self, *, image_size: Size, drop_path: float, masked: bool = False) -> "Backbone":
        """The backbone for global crops of `image_size` pixels; the teacher is built with `drop_path` 0."""
        from raydino.nn.backbone import build_backbone

        return build_backbone(self, image_size=image_size, drop_path=drop_path, masked=masked)


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


def swiglu_hidden(width: int) -> int:
    """Hidden width of a SwiGLU layer: two thirds of 4 * width, rounded up to a multiple of 8 (2,736 for 1,024)."""
    return (int(4 * width * 2 / 3) + 7) // 8 * 8
