"""What all sides of peers.py train alike: network, crops, batch, head, optimiser."""

from dataclasses import dataclass
from typing import Any

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GLOBAL_SCALE, LOCAL_SCALE = (0.4, 1.0), (0.05, 0.4)
STUDENT_TEMPERATURE, TEACHER_TEMPERATURE = 0.1, 0.04
RATE, DECAY, CLIP, MOMENTUM = 5e-4, 0.04, 3.0, 0.996


@dataclass(frozen=True)
class Setting:
    """One comparison."""

    width: int
    depth: int
    heads: int
    patch: int
    prototypes: int
    hidden: int
    bottleneck: int
    images: int
    """Per step."""
    settle: int
    """Steps at the start of a block that are not timed: what lay ready from the pause before is used up."""
    timed: int
    """Steps of a block."""
    large: int = 224
    small: int = 96
    local: int = 8
    """Local crops; global ones are two."""
    fast: bool = False
    """Whether raydino's fast crops are a side as well: only where crops matter."""

    @property
    def timm_options(self) -> dict[str, Any]:
        """How timm builds the network, for crops of both sizes."""
        sizes = {"embed_dim": self.width, "depth": self.depth, "num_heads": self.heads, "patch_size": self.patch}
        return {**sizes, "img_size": self.large, "num_classes": 0, "dynamic_img_size": True}


SETTINGS = {
    # DINO's own crops and head on ViT-tiny/16
    "vit-tiny": Setting(192, 12, 3, 16, 65_536, 2048, 256, images=8, settle=1, timed=4),
    # a step as short beside its crops as a GPU's is: the same photographs and crops, a network of two small blocks
    "short-step": Setting(64, 2, 2, 32, 1024, 256, 64, images=16, settle=5, timed=40, fast=True),
}
