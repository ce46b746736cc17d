"""The vision transformer: a timm model plus what self-distillation adds to it. The only file that imports timm.

timm gives the blocks, their initialisation and the resampling of position embeddings; this file adds the mask token (put in
after the patch embedding and before the position embedding, as iBOT and DINOv2 do) and splits the output by kind of token.
Letters: B crops, H W pixels, P patches (row-major), R registers, D width.
"""

from dataclasses import dataclass
from typing import Any

import timm
import torch
from jaxtyping import Bool, Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from raydino.config import ConfigError
from raydino.nn.config import BackboneConfig


@dataclass(frozen=True)
class BackboneOutput:
    """Tokens after the final norm."""

    cls: Float[Tensor, "B D"]
    registers: Float[Tensor, "B R D"]
    patches: Float[Tensor, "B P D"]


class Backbone(nn.Module):
    """A timm ViT with a mask token.

    Raises:
        ConfigError: the name is no timm ViT, or the sizes do not fit together.
    """

    def __init__(self, config: BackboneConfig, *, image_size: int, drop_path: float = 0.0) -> None:
        super().__init__()
        sizes: dict[str, Any] = {"embed_dim": config.width, "depth": config.depth, "num_heads": config.heads}
        try:
            vit = timm.create_model(
                config.name,
                pretrained=False,
                num_classes=0,
                img_size=image_size,
                patch_size=config.patch_size,
                reg_tokens=config.registers,
                init_values=config.layer_scale or None,
                drop_path_rate=drop_path,
                dynamic_img_size=True,  # global and local crops differ in size
                **{key: value for key, value in sizes.items() if value is not None},
            )
        except (RuntimeError, TypeError, AssertionError) as error:
            raise ConfigError(
                f"backbone.name = {config.name!r}: timm cannot build it ({error}); see timm.list_models('vit_*')"
            ) from error
        if not isinstance(vit, VisionTransformer):
            raise ConfigError(
                f"backbone.name = {config.name!r} is a {type(vit).__name__}; give a plain timm ViT such as vit_small_patch16_224"
            )
        self.vit = vit
        self.mask_token = nn.Parameter(torch.zeros(1, vit.embed_dim))
        self.width: int = vit.embed_dim
        self.depth: int = len(vit.blocks)
        self.patch_size: int = config.patch_size
        self.image_size: int = image_size

    def forward(self, images: Float[Tensor, "B C H W"], masks: Bool[Tensor, "B P"] | None = None) -> BackboneOutput:
        """Tokens of `images`; where `masks` is True the patch is replaced by the mask token."""
        tokens = self.vit.norm(self.vit.blocks(self._embed(images, masks)))
        first = 1 + self.vit.num_reg_tokens
        return BackboneOutput(cls=tokens[:, 0], registers=tokens[:, 1:first], patches=tokens[:, first:])

    def _embed(self, images: Tensor, masks: Tensor | None) -> Float[Tensor, "B T D"]:
        patches = self.vit.patch_embed(images)  # B h w D, a grid because of dynamic_img_size
        if masks is not None:
            grid = masks.view(*patches.shape[:3], 1)
            patches = torch.where(grid, self.mask_token.to(patches.dtype), patches)
        return self.vit.norm_pre(self.vit._pos_embed(patches))

    @torch.no_grad()
    def attention(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B heads P"]:
        """Attention of the cls token to the patches in the last block (DINO, figure 1)."""
        tokens = self._embed(images, None)
        for block in self.vit.blocks[:-1]:
            tokens = block(tokens)
        last: Any = self.vit.blocks[-1]
        batch, count, _ = tokens.shape
        attention = last.attn
        qkv = attention.qkv(last.norm1(tokens)).view(batch, count, 3, attention.num_heads, -1)
        query, key, _ = qkv.permute(2, 0, 3, 1, 4)
        query, key = attention.q_norm(query[:, :, :1]), attention.k_norm(key)
        weights = (query * attention.scale @ key.transpose(-2, -1)).softmax(dim=-1)
        return weights[:, :, 0, 1 + self.vit.num_reg_tokens :]

    def layer_of(self, name: str) -> int:
        """Depth of a parameter for layer-wise learning rates: 0 for embeddings, i + 1 for block i, depth + 1 for the rest."""
        name = name.removeprefix("vit.")
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1
        return (
            0
            if name.startswith(("patch_embed", "pos_embed", "cls_token", "reg_token", "mask_token"))
            else self.depth + 1
        )
