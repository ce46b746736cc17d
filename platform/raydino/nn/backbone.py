"""The networks that see images: timm models plus what self-distillation adds to them. The only file that imports timm.

`Transformer` takes blocks and their initialisation from timm and adds the mask token (put in after the patch embedding and before
the position embedding, as iBOT and DINOv2 do), register tokens without a position, the published resampling of position
embeddings and stochastic depth by subsets of the batch. `ConvNet` makes a ResNet or ConvNeXt look the same from outside.
Letters: B crops, H W pixels, P patches (row-major), R registers, D width.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeGuard

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from timm.data import create_transform, resolve_model_data_config
from timm.layers import Mlp, SwiGLUPacked, resample_abs_pos_embed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from raydino.config import ConfigError
from raydino.nn.config import BackboneConfig, swiglu_hidden
from raydino.nn.depth import use_subsets
from raydino.nn.patches import PatchProjection
from raydino.views import Size

TRANSFORMERS, CONVNETS = ("vision_transformer", "deit"), ("resnet", "convnext")  # timm's files
OF_VITS = frozenset(
    {
        "width",
        "depth",
        "heads",
        "ffn",
        "registers",
        "layer_scale",
        "token_std",
        "stochastic_depth",
        "position_resampling",
    }
)
"""Fields of `BackboneConfig` that a convolutional network has no use for."""
TIMM_TOKEN_STD = 1e-6
OFFSET = 0.1  # added to the target grid before dividing, as published, so that rounding cannot lose a row (dino#8)


class BackboneOutput(NamedTuple):
    """What a backbone says of crops; a tuple, because sharding looks for tensors in those (train/sharding.py)."""

    cls: Float[Tensor, "B D"]
    """The normalised cls token, or a convolutional network's pooled features."""
    registers: Float[Tensor, "B R D"]
    patches: Float[Tensor, "B P D"]


class Backbone(nn.Module):
    """What methods, evaluations and the optimiser know of a network."""

    width: int
    """D, length of a feature."""
    depth: int
    """Blocks, for layer-wise learning rates."""

    def forward(self, images: Float[Tensor, "B C H W"], masks: Bool[Tensor, "B P"] | None = None) -> BackboneOutput:
        """Features of `images`; where `masks` is True the student does not see the patch."""
        raise TypeError(f"{type(self).__name__} does not define forward")

    def attention(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B heads P"] | None:
        """Attention of the cls token to the patches in the last block (DINO, figure 1); None for a network without attention."""
        return None

    def blocks(self) -> Sequence[nn.Module]:
        """A transformer's blocks, to be sharded or computed again one by one: entered by their call alone, which hooks see."""
        return ()

    def layer_of(self, name: str) -> int:
        """Depth of a parameter for layer-wise learning rates: 0 for embeddings, i + 1 for block i, depth + 1 for the rest."""
        return self.depth + 1

    def forgo_masks(self) -> None:
        """Prepare for a method that masks nothing: a parameter that no loss reaches would stall the gradient all-reduce."""


def build_backbone(config: BackboneConfig, *, image_size: Size, drop_path: float, masked: bool = False) -> Backbone:
    """The network that `config` names, for crops of `image_size` pixels (side, or height and width).

    Raises:
        ConfigError: the name is no timm model of a kind known here, sizes do not fit together, or masks are asked of a network
            without patches.
    """
    family = family_of(config.name)
    if family in CONVNETS and masked:
        raise ConfigError(
            f"backbone.name = {config.name!r} cannot be masked; set method.ibot_weight to 0, or give a ViT such as "
            "vit_small_patch16_224"
        )
    if family in CONVNETS:
        return ConvNet(config, drop_path=drop_path)
    return Transformer(config, image_size=image_size, drop_path=drop_path)


def family_of(name: str) -> str:
    """timm's file of the model `name`, one of TRANSFORMERS or CONVNETS. Raises ConfigError for what is of another."""
    family = timm.model_entrypoint(name).__module__.rpartition(".")[2] if timm.is_model(name) else ""
    if family not in (*TRANSFORMERS, *CONVNETS):
        raise ConfigError(
            f"backbone.name = {name!r}: {f'the {family} family of timm' if family else 'no such timm model'}; give a "
            "plain ViT such as vit_small_patch16_224 (timm.list_models('vit_*')), or for DINO a ResNet or ConvNeXt"
        )
    return family


def published(name: str, *, weights: bool) -> tuple[nn.Module, dict[str, Any], Any]:
    """A timm model without its classifier, what timm says of its input, and its transform of a PIL image to uint8 [C, H, W].

    With its published `weights`, from timm's cache or the network, or random ones. Raises ConfigError where timm has none.
    """
    try:
        model = timm.create_model(name, pretrained=weights, num_classes=0).eval()
    except (RuntimeError, OSError, ValueError) as error:
        raise ConfigError(f"timm:{name}: timm cannot give it ({error}); see timm.list_pretrained()") from error
    settings = resolve_model_data_config(model)
    return model, settings, create_transform(**settings, use_prefetcher=True)


class Transformer(Backbone):
    """A plain timm ViT with mask and register tokens."""

    def __init__(self, config: BackboneConfig, *, image_size: Size = 224, drop_path: float = 0.0) -> None:
        super().__init__()
        self.vit: Any = _timm_vit(config, image_size=image_size, drop_path=drop_path)
        self.width, self.depth = self.vit.embed_dim, len(self.vit.blocks)
        self.mask_token = nn.Parameter(torch.zeros(1, self.width))
        self.registers = nn.Parameter(config.token_std * torch.randn(1, config.registers, self.width))
        if config.token_std != TIMM_TOKEN_STD and self.vit.cls_token is not None:
            nn.init.trunc_normal_(self.vit.cls_token, std=config.token_std)
        self.registers.requires_grad = config.registers > 0
        if config.stochastic_depth == "batch_subset" and drop_path > 0:
            use_subsets(self.vit.blocks, rate=drop_path)
        self.resampling = config.position_resampling

    def forward(self, images: Float[Tensor, "B C H W"], masks: Bool[Tensor, "B P"] | None = None) -> BackboneOutput:
        """Tokens of `images` after the final norm; where `masks` is True the patch is replaced by the mask token."""
        tokens = self.vit.blocks(self._embed(images, masks))
        tokens, first = self.vit.norm(tokens), 1 + self.registers.shape[1]
        return BackboneOutput(cls=tokens[:, 0], registers=tokens[:, 1:first], patches=tokens[:, first:])

    def _embed(self, images: Tensor, masks: Tensor | None) -> Float[Tensor, "B T D"]:
        vit = self.vit
        patches = vit.patch_embed(images)  # B h w D, a grid because of dynamic_img_size
        if masks is not None:
            grid = masks.view(*patches.shape[:3], 1)
            patches = torch.where(grid, self.mask_token.to(patches.dtype), patches)
        rows, columns = patches.shape[1:3]
        positions = self.positions(rows, columns)  # of the cls token too, unless the model has none
        tokens, cls = patches.flatten(1, 2), vit.cls_token.expand(patches.shape[0], -1, -1)
        if positions.shape[1] == rows * columns:
            tokens = torch.cat([cls, tokens + positions], dim=1)
        else:
            tokens = torch.cat([cls, tokens], dim=1) + positions
        if self.registers.shape[1]:
            tokens = torch.cat([tokens[:, :1], self.registers.expand(tokens.shape[0], -1, -1), tokens[:, 1:]], dim=1)
        return vit.norm_pre(tokens)

    def positions(self, rows: int, columns: int) -> Float[Tensor, "1 T D"]:
        """Position embeddings for a grid of patches: bicubic, in float32, the cls token's entry untouched.

        "antialias" samples at the exact size with antialiasing (DINOv2 with registers); "offset" gives the resampler the factor
        (size + 0.1) / own size and no antialiasing (DINO, DINOv2 without registers).
        """
        vit, own = self.vit, self.vit.patch_embed.grid_size
        if (rows, columns) == tuple(own):
            return vit.pos_embed
        prefix = 0 if vit.no_embed_class else 1
        if self.resampling == "antialias":
            return resample_abs_pos_embed(
                vit.pos_embed, new_size=[rows, columns], old_size=list(own), num_prefix_tokens=prefix
            )
        grid = vit.pos_embed[:, prefix:].float().unflatten(1, own).permute(0, 3, 1, 2)
        factors = ((rows + OFFSET) / own[0], (columns + OFFSET) / own[1])
        grid = F.interpolate(grid, scale_factor=factors, mode="bicubic", antialias=False)
        if grid.shape[-2:] != (rows, columns):
            raise ValueError(
                f"position embeddings of {tuple(own)} came out as {grid.shape[-2:]}, not {(rows, columns)}"
            )
        grid = grid.permute(0, 2, 3, 1).flatten(1, 2).to(vit.pos_embed.dtype)
        return torch.cat([vit.pos_embed[:, :prefix], grid], dim=1)

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
        return weights[:, :, 0, 1 + self.registers.shape[1] :]

    def blocks(self) -> Sequence[nn.Module]:
        """timm's blocks."""
        return list(self.vit.blocks)

    def layer_of(self, name: str) -> int:
        """Depth of a parameter for layer-wise learning rates: 0 for embeddings, i + 1 for block i, depth + 1 for the rest."""
        name = name.removeprefix("vit.")
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1
        embeddings = ("patch_embed", "pos_embed", "cls_token", "registers", "mask_token")
        return 0 if name.startswith(embeddings) else self.depth + 1

    def forgo_masks(self) -> None:
        """The mask token is not trained."""
        self.mask_token.requires_grad = False


class ConvNet(Backbone):
    """A timm convolutional network (ResNet, ConvNeXt, …): pooled features as cls, its last feature map as patches."""

    def __init__(self, config: BackboneConfig, *, drop_path: float = 0.0) -> None:
        super().__init__()
        for name in sorted(OF_VITS):
            if (given := getattr(config, name)) != (plain := type(config).model_fields[name].default):
                raise ConfigError(f"backbone.{name} = {given} is for ViTs; with {config.name} leave it at {plain}")
        try:
            self.net: Any = timm.create_model(
                config.name, pretrained=False, num_classes=0, in_chans=config.channels, drop_path_rate=drop_path
            )
        except (RuntimeError, TypeError) as error:
            raise ConfigError(f"backbone.name = {config.name!r}: timm cannot build it ({error})") from error
        self.width, self.depth = self.net.num_features, 0
        if config.patch_size != (stride := self.net.feature_info[-1]["reduction"]):
            raise ConfigError(
                f"backbone.patch_size = {config.patch_size}: {config.name} has a stride of {stride}; set patch_size to {stride}"
            )

    def forward(self, images: Float[Tensor, "B C H W"], masks: Bool[Tensor, "B P"] | None = None) -> BackboneOutput:
        """Pooled features and the last feature map of `images`. Raises ValueError for masks."""
        if masks is not None:
            raise ValueError("a convolutional network cannot be masked")
        features = self.net.forward_features(images)
        patches = features.flatten(2).transpose(1, 2)
        return BackboneOutput(cls=self.net.forward_head(features), registers=patches[:, :0], patches=patches)


def _timm_vit(config: BackboneConfig, *, image_size: Size, drop_path: float) -> VisionTransformer:
    sizes = {"embed_dim": config.width, "depth": config.depth, "num_heads": config.heads}
    options: dict[str, Any] = {key: value for key, value in sizes.items() if value is not None}
    if config.ffn != "model":
        options |= (
            {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU}
            if config.ffn == "swiglu"
            else {"mlp_layer": Mlp, "act_layer": nn.GELU, "mlp_ratio": 4.0}
        )
    if config.ffn == "swiglu":
        width = config.width or _own_width(config.name)
        options["mlp_ratio"] = 2 * swiglu_hidden(width) / width  # gate and value lie in one matrix
    try:
        vit = timm.create_model(
            config.name,
            pretrained=False,
            num_classes=0,
            in_chans=config.channels,
            img_size=image_size,
            patch_size=config.patch_size,
            reg_tokens=0,  # ours have no position
            init_values=config.layer_scale or None,
            drop_path_rate=drop_path if config.stochastic_depth == "per_sample" else 0.0,
            dynamic_img_size=True,  # global and local crops differ in size
            **options,
        )
    except (RuntimeError, TypeError, AssertionError) as error:
        raise ConfigError(
            f"backbone.name = {config.name!r}: timm cannot build it ({error}); see timm.list_models('vit_*')"
        ) from error
    if not _is_plain(vit):
        raise ConfigError(
            f"backbone.name = {config.name!r} is no plain ViT: it needs one cls token, timm's ordinary blocks, learned positions "
            "and a final norm before pooling; give one such as vit_small_patch16_224"
        )
    vit.patch_embed.proj = PatchProjection.like(vit.patch_embed.proj)
    if config.ffn == "swiglu":
        for block in vit.blocks:  # timm starts the gates open; DINOv2 starts all linear layers alike
            mlp: Any = block.mlp
            nn.init.trunc_normal_(mlp.fc1.weight, std=0.02)
            nn.init.zeros_(mlp.fc1.bias)
    return vit


def _own_width(name: str) -> int:
    """The width that timm gives a model, which only building it tells; on no memory and without drawing numbers."""
    with torch.device("meta"):
        model: Any = timm.create_model(name, pretrained=False, depth=1, num_classes=0)
    return model.embed_dim


def _is_plain(vit: Any) -> TypeGuard[VisionTransformer]:
    """Whether a network is of the form that `Transformer` runs: others have more tokens, other blocks or another last norm."""
    if not isinstance(vit, VisionTransformer) or vit.cls_token is None or vit.pos_embed is None:
        return False
    pooled_first = isinstance(vit.norm, nn.Identity) or not isinstance(vit.fc_norm, nn.Identity)
    return vit.num_prefix_tokens == 1 and not pooled_first and all(type(block) is Block for block in list(vit.blocks))
