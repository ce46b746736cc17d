"""Pictures of a run that explain themselves: what the method sees, what the features hold, where the cls token looks.

All crops of a sheet have one scale, so that a local crop looks as small as it is. Images are encoded one by one, since they may
differ in size. While training only rank 0 draws, so nothing here waits for another rank.
Letters: V views of a group, B images, P patches (row-major), h w patches of a grid, D width.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor

from raydino.evals.components import patch_colours
from raydino.evals.features import frozen
from raydino.evals.sheets import TILE, Group, as_rgb, enlargement, grid_rows, heat, patch_map, scaled, sheet
from raydino.views import Normalisation

if TYPE_CHECKING:
    from raydino.nn.backbone import Backbone

_HIDDEN_PATCH = np.array((30, 34, 48), dtype=np.float32)
_COLOURS = "Patches of one colour have similar features, within an image and between images.\n"
_MANY_HEADS = 6  # from more on, their maps are drawn at two thirds


def crop_sheet(
    crops: Mapping[str, UInt8[Tensor, "V B C H W"]],
    masks: Bool[Tensor, "V B P"] | None,
    patch_size: int,
    *,
    images: int = 6,
) -> Image.Image:
    """The views of the first `images` images of a batch: a row an image, a column a view; patches hidden from the
    student are dark.

    Raises ValueError if there is nothing to draw or the masks do not fit the global crops.
    """
    groups = {name: group for name, group in crops.items() if group.numel()}
    if not groups:
        raise ValueError("crop_sheet: the batch has no crops to draw")
    factor = enlargement(max(max(group.shape[-2:]) for group in groups.values()))
    drawn = []
    for name, group in groups.items():
        views, count, (high, wide) = group.shape[0], min(images, group.shape[1]), group.shape[-2:]
        pixels = as_rgb(group[:, :count].transpose(0, 1))  # B V H W 3
        if name == "global" and masks is not None:
            pixels = _dimmed(pixels, masks[:, :count].cpu().permute(1, 0, 2).numpy(), patch_size)
        tiles = tuple(tuple(scaled(view, factor) for view in row) for row in pixels)
        title = f"{name} crops, {wide if high == wide else f'{high} × {wide}'} px"
        drawn.append(Group(title, tuple(str(view + 1) for view in range(views)), tiles))
    note = (
        "One row per image. All views of a row are random crops of the same image; "
        "the student must say of each what the teacher says of the global ones."
    )
    if masks is not None:
        note += "\nDark squares are patches hidden from the student; the teacher sees them."
    return sheet("What the method sees", note, drawn, rows=())


def patch_pca(
    encoder: "Backbone",
    images: Sequence[UInt8[Tensor, "C H W"]] | UInt8[Tensor, "B C H W"],
    normalise: Normalisation,
) -> Image.Image:
    """Images above the first three principal components of their patch features, as red, green and blue.

    The components are those of all patches of the sheet together, so a colour means the same in every column (DINOv2,
    figure 1). Raises ValueError if there are no images.
    """
    return pca_sheet(images, patch_colours(patch_grids(encoder, images, normalise)))


def patch_grids(
    encoder: "Backbone",
    images: Sequence[UInt8[Tensor, "C H W"]] | UInt8[Tensor, "B C H W"],
    normalise: Normalisation,
) -> list[Float[Tensor, "h w D"]]:
    """Patch features of each image after the last block, float32 on the CPU. Raises ValueError if there are no images."""
    _some(images)
    grids, device = [], next(encoder.parameters()).device
    with frozen(encoder, device):
        for image in images:
            patches = encoder(normalise(image[None].to(device))).patches[0].float().cpu()
            grids.append(
                patches.unflatten(0, (grid_rows(len(patches), height=image.shape[1], width=image.shape[2]), -1))
            )
    return grids


def pca_sheet(
    images: Sequence[UInt8[Tensor, "C H W"]] | UInt8[Tensor, "B C H W"],
    colours: Sequence[Float[np.ndarray, "P 3"]],
    *,
    foreground: bool = False,
    tile: int = TILE,
) -> Image.Image:
    """Images above the colours of their patches (`components.patch_colours`, or `foreground_colours` where `foreground`), at most
    `tile` pixels a side. Raises ValueError if there are no images.
    """
    above = _tiles(images, tile)
    below = []
    for image, colour, like in zip(images, colours, above, strict=True):
        rows = grid_rows(len(colour), height=image.shape[1], width=image.shape[2])
        below.append(patch_map(colour, rows=rows, like=like))
    group = Group("", tuple(str(i + 1) for i in range(len(above))) if len(above) > 1 else ("",), (above, tuple(below)))
    if foreground:
        title = "Foreground patches, first 3 principal components"
        note = (
            _COLOURS + "Black is the side of the first component of all patches that holds more of the images' borders."
        )
    else:
        title = "Patch features, first 3 principal components"
        note = (
            _COLOURS
            + "At the start colours follow brightness and position; they come to follow things and their parts."
        )
    return sheet(title, note, [group], rows=("image", "features"))


def attention_maps(
    encoder: "Backbone",
    images: Sequence[UInt8[Tensor, "C H W"]] | UInt8[Tensor, "B C H W"],
    normalise: Normalisation,
    *,
    tile: int = TILE,
) -> Image.Image | None:
    """Images beside the attention of the last block's cls token to their patches, mean and per head (DINO, figure 1).

    Registers and the cls token itself have a share that no map shows. Each map is scaled to its own maximum or to four times
    its mean, if that is more. None for a network without attention. Raises ValueError for no images.
    """
    attention = cls_attention(encoder, images, normalise)
    if attention is None:
        return None
    heads = len(attention[0])
    drawn: list[list[Image.Image]] = []
    for image, maps, like in zip(
        images, attention, _tiles(images, tile if heads <= _MANY_HEADS else 2 * tile // 3), strict=True
    ):
        rows = grid_rows(maps.shape[1], height=image.shape[1], width=image.shape[2])
        shown = [maps.mean(0), *maps]
        drawn.append([like, *(patch_map(heat(values), rows=rows, like=like) for values in shown)])
    groups = [
        Group("image", ("",), tuple((row[0],) for row in drawn)),
        Group("mean", ("",), tuple((row[1],) for row in drawn)),
        Group("heads", tuple(str(head + 1) for head in range(heads)), tuple(tuple(row[2:]) for row in drawn)),
    ]
    note = (
        "Where the cls token looks in the last block: bright patches have most of the attention, dark ones little.\n"
        "Each map is scaled to its maximum, a flat one to four times its mean: evenly purple means no preference."
    )
    return sheet("Attention of the cls token", note, groups, rows=())


def cls_attention(
    encoder: "Backbone",
    images: Sequence[UInt8[Tensor, "C H W"]] | UInt8[Tensor, "B C H W"],
    normalise: Normalisation,
) -> list[Float[np.ndarray, "heads P"]] | None:
    """Attention of the last block's cls token to the patches of each image; None for a network without attention. A row sums to
    less than 1: the rest is on cls and registers. Raises ValueError for no images.
    """
    _some(images)
    found, device = [], next(encoder.parameters()).device
    with frozen(encoder, device):
        for image in images:
            attention = encoder.attention(normalise(image[None].to(device)))
            if attention is None:
                return None
            found.append(attention[0].float().cpu().numpy())
    return found


def _tiles(images: Sequence[Tensor] | Tensor, target: int) -> tuple[Image.Image, ...]:
    """The images, all at one scale."""
    _some(images)
    factor = enlargement(max(max(image.shape[-2:]) for image in images), target=target)
    return tuple(scaled(as_rgb(image), factor) for image in images)


def _some(images: Sequence[Tensor] | Tensor) -> None:
    if not len(images):
        raise ValueError("there are no images to draw; give at least one")


def _dimmed(pixels: np.ndarray, masks: np.ndarray, patch_size: int) -> np.ndarray:
    """uint8 [B, V, H, W, 3] with the pixels of masked patches (bool [B, V, P]) darkened to a trace."""
    height, width = pixels.shape[2] // patch_size, pixels.shape[3] // patch_size
    if masks.shape[-1] != height * width:
        raise ValueError(
            f"masks over {masks.shape[-1]} patches do not fit global crops of {height} x {width} patches "
            f"of {patch_size} pixels"
        )
    grid = masks.reshape(*masks.shape[:2], height, width).repeat(patch_size, axis=2).repeat(patch_size, axis=3)
    dark = 0.12 * pixels + 0.88 * _HIDDEN_PATCH
    return np.where(grid[..., None], dark, pixels).astype(np.uint8)
