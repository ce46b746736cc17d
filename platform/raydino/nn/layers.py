"""What a frozen backbone says on the way: the tokens after chosen blocks, and the grid they lie on.

Evaluations of the papers take more than the last block. The blocks are observed while the backbone runs as always, so that
there is one forward pass in the code and not a second that could differ from it.
Letters: B images, P patches, D width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from raydino.nn.backbone import Backbone, BackboneOutput, ConvNet, Transformer

FOUR_OF = {24: (4, 11, 17, 23), 40: (9, 19, 29, 39)}
"""Blocks of which DINOv2 predicts depth (section 7.4: 5, 12, 18, 24 of ViT-L; 10, 20, 30, 40 of g), counted from 0."""


class Pixels(Backbone):
    """The image itself as features: what a network must beat to have learned anything.

    cls is the image averaged to `side` pixels at most, a patch its own pixels averaged to 4 × 4 at most.
    """

    def __init__(self, *, channels: int = 3, side: int = 32, patch_size: int = 16) -> None:
        super().__init__()
        self.side, self.patch_size, self.depth = side, patch_size, 0
        self.width = channels * side * side
        self.zero = nn.Parameter(torch.zeros(()), requires_grad=False)  # says on which device it lies

    def forward(self, images: Float[Tensor, "B C H W"], masks: Tensor | None = None) -> BackboneOutput:
        """The pixels of `images`. Raises ValueError for masks."""
        if masks is not None:
            raise ValueError("pixels cannot be masked")
        height, width = images.shape[-2:]
        cls = F.adaptive_avg_pool2d(images, (min(self.side, height), min(self.side, width))).flatten(1)
        patch = min(self.patch_size, height, width)
        rows, columns, fine = height // patch, width // patch, min(4, patch)
        small = F.adaptive_avg_pool2d(images[..., : rows * patch, : columns * patch], (rows * fine, columns * fine))
        patches = F.unfold(small, fine, stride=fine).transpose(1, 2)  # B P C·16
        return BackboneOutput(cls=cls, registers=patches[:, :0], patches=patches)


def patch_size(backbone: Backbone) -> int:
    """Side of a patch, pixels; of a convolutional network its stride. Raises TypeError for another kind of network."""
    if isinstance(backbone, Transformer):
        return int(backbone.vit.patch_embed.patch_size[0])
    if isinstance(backbone, ConvNet):
        return int(backbone.net.feature_info[-1]["reduction"])
    if isinstance(backbone, Pixels):
        return backbone.patch_size
    raise TypeError(f"{type(backbone).__name__}: its patches have no known size")


def last_blocks(backbone: Backbone, count: int) -> tuple[int, ...]:
    """The last `count` blocks, ascending; all of them where there are fewer, and (-1,) for a network without blocks."""
    depth = len(backbone.blocks())
    return tuple(range(max(0, depth - count), depth)) or (-1,)


def spaced_blocks(backbone: Backbone) -> tuple[int, ...]:
    """Four blocks at equal distances, the last among them, as DINOv2 takes them for depth (3, 6, 9, 12 of ViT-S and B)."""
    depth = len(backbone.blocks())
    if depth <= 4:
        return last_blocks(backbone, 4)
    return FOUR_OF.get(depth) or tuple(round(depth * part / 4) - 1 for part in (1, 2, 3, 4))


def layers(backbone: nn.Module, images: Float[Tensor, "B C H W"], blocks: Sequence[int]) -> list[BackboneOutput]:
    """The tokens of `images` after each of `blocks` (from 0; -1 is the output itself), all through the final norm.

    Raises IndexError for a block that the backbone does not have.
    """
    parts = backbone.blocks() if isinstance(backbone, Backbone) else ()
    inner = sorted({block for block in blocks if block not in (-1, len(parts) - 1)})
    if inner and not (inner[0] >= 0 and inner[-1] < len(parts)):
        raise IndexError(f"blocks {tuple(blocks)} asked for, the backbone has {len(parts)}")
    kept: dict[int, Tensor] = {}

    def keep(block: int) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            kept[block] = output

        return hook

    hooks = [parts[block].register_forward_hook(keep(block)) for block in inner]
    try:
        final = backbone(images)
    finally:
        for hook in hooks:
            hook.remove()
    network: Any = backbone
    normed = {block: network.vit.norm(tokens) for block, tokens in kept.items()}
    first = 1 + (final.registers.shape[1] if inner else 0)
    return [
        BackboneOutput(cls=tokens[:, 0], registers=tokens[:, 1:first], patches=tokens[:, first:])
        if (tokens := normed.get(block)) is not None
        else final
        for block in blocks
    ]
