"""Pictures of a run that explain themselves: what the method sees, what the features hold, where the cls token looks.

Drawn with Pillow alone, so that a worker without a display and without fonts can do it. Small images are enlarged by
whole factors without smoothing, so that a pixel stays a pixel; all crops of a sheet have one scale, so that a local
crop looks as small as it is.
Letters: V views of a group, B images, P patches (row-major), D width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
import torch
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from raydino.views import Normalisation

if TYPE_CHECKING:
    from raydino.nn.backbone import Backbone

_TILE, _GAP, _MARGIN = 144, 8, 28
_INK, _FAINT, _PAPER, _RULE = (24, 28, 38), (104, 112, 128), (255, 255, 255), (214, 219, 228)
_HIDDEN_PATCH = np.array((30, 34, 48), dtype=np.float32)
_PEAK = 4.0  # times the mean: attention below this peak everywhere is drawn as flat
_NEAREST, _AREA = Image.Resampling.NEAREST, Image.Resampling.LANCZOS


@dataclass(frozen=True)
class _Group:
    """Columns of a sheet under one heading."""

    heading: str
    columns: tuple[str, ...]
    tiles: tuple[tuple[Image.Image, ...], ...]  # by row, then column


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
    scale = _scale(max(max(group.shape[-2:]) for group in groups.values()))
    drawn = []
    for name, group in groups.items():
        views, count, (high, wide) = group.shape[0], min(images, group.shape[1]), group.shape[-2:]
        pixels = _as_rgb(group[:, :count].transpose(0, 1))  # B V H W 3
        if name == "global" and masks is not None:
            pixels = _dimmed(pixels, masks[:, :count].cpu().permute(1, 0, 2).numpy(), patch_size)
        tiles = tuple(tuple(_scaled(view, scale) for view in row) for row in pixels)
        title = f"{name} crops, {wide if high == wide else f'{high} × {wide}'} px"
        drawn.append(_Group(title, tuple(str(view + 1) for view in range(views)), tiles))
    note = (
        "One row per image. All views of a row are random crops of the same image; "
        "the student must say of each what the teacher says of the global ones."
    )
    if masks is not None:
        note += "\nDark squares are patches hidden from the student; the teacher sees them."
    return _sheet("What the method sees", note, drawn, rows=())


def patch_pca(encoder: "Backbone", images: UInt8[Tensor, "B C H W"], normalise: Normalisation) -> Image.Image:
    """Images above the first three principal components of their patch features, as red, green and blue.

    The components are those of all patches of the sheet together, so a colour means the same in every column (DINOv2,
    figure 1). Raises ValueError if there are no images.
    """
    _some(images)
    with _evaluating(encoder) as device:
        features = encoder(normalise(images.to(device))).patches.float().cpu()  # B P D
    colours = _principal_colours(features.flatten(0, 1)).reshape(*features.shape[:2], 3)
    scale = _scale(max(images.shape[-2:]))
    above = tuple(_scaled(image, scale) for image in _as_rgb(images))
    below = tuple(_map(colour, like=tile) for colour, tile in zip(colours, above, strict=True))
    group = _Group("", tuple(str(i + 1) for i in range(len(above))), (above, below))
    note = (
        "Patches of one colour have similar features, within an image and between images.\n"
        "At the start colours follow brightness and position; they come to follow things and their parts."
    )
    return _sheet("Patch features, first 3 principal components", note, [group], rows=("image", "features"))


def attention_maps(
    encoder: "Backbone", images: UInt8[Tensor, "B C H W"], normalise: Normalisation
) -> Image.Image | None:
    """Images beside the attention of the last block's cls token to their patches, mean and per head (DINO, figure 1).

    Each map is scaled to its own maximum or to _PEAK times its mean, if that is more. None for a network without attention.
    Raises ValueError for no images.
    """
    _some(images)
    with _evaluating(encoder) as device:
        found = encoder.attention(normalise(images.to(device)))
    if found is None:
        return None
    attention = found.float().cpu().numpy()  # B heads P
    scale = _scale(max(images.shape[-2:]), target=_TILE if attention.shape[1] <= 6 else 2 * _TILE // 3)
    rows_image, rows_mean, rows_heads = [], [], []
    for image, heads in zip(_as_rgb(images), attention, strict=True):
        tile = _scaled(image, scale)
        rows_image.append((tile,))
        rows_mean.append((_map(_heat(heads.mean(0)), like=tile),))
        rows_heads.append(tuple(_map(_heat(head), like=tile) for head in heads))
    groups = [
        _Group("image", ("",), tuple(rows_image)),
        _Group("mean", ("",), tuple(rows_mean)),
        _Group("heads", tuple(str(head + 1) for head in range(attention.shape[1])), tuple(rows_heads)),
    ]
    note = (
        "Where the cls token looks in the last block: bright patches have most of the attention, dark ones little.\n"
        "Each map is scaled to its maximum, a flat one to four times its mean: evenly purple means no preference."
    )
    return _sheet("Attention of the cls token", note, groups, rows=())


class _evaluating:
    """Eval mode without gradients; the mode of every module is put back. Gives the encoder's device."""

    def __init__(self, encoder: nn.Module) -> None:
        self._encoder = encoder
        self._modes = {module: module.training for module in encoder.modules()}
        self._inference = torch.inference_mode()

    def __enter__(self) -> torch.device:
        self._encoder.eval()
        self._inference.__enter__()
        return next(self._encoder.parameters()).device

    def __exit__(self, *exception: object) -> None:
        self._inference.__exit__(None, None, None)
        for module, mode in self._modes.items():
            module.training = mode


def _some(images: Tensor) -> None:
    if not len(images):
        raise ValueError("there are no images to draw; give at least one")


def _as_rgb(images: UInt8[Tensor, "*N C H W"]) -> UInt8[np.ndarray, "*N H W 3"]:
    """Pixels to look at: grey in all three colours, of more channels the first three."""
    pixels = images.cpu().movedim(-3, -1).numpy()
    return pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., [0, 0, 0]]


def _scale(size: int, *, target: int = _TILE) -> float:
    """Enlargement of an image of `size` pixels: a whole number for small ones, a reduction for large ones."""
    return float(max(1, target // size)) if size <= target else target / size


def _scaled(pixels: np.ndarray, scale: float) -> Image.Image:
    """uint8 [H, W, 3] enlarged without smoothing, or reduced with it."""
    size = (round(pixels.shape[1] * scale), round(pixels.shape[0] * scale))
    return Image.fromarray(np.ascontiguousarray(pixels)).resize(size, _NEAREST if scale >= 1 else _AREA)


def _map(values: np.ndarray, *, like: Image.Image) -> Image.Image:
    """Colours [P, 3] in 0..1 of a patch grid, as large as the image they belong to."""
    rows = max(1, round((len(values) * like.height / like.width) ** 0.5))
    if len(values) % rows:
        raise ValueError(f"{len(values)} patches do not make a grid on an image of {like.width} × {like.height}")
    grid = (values.reshape(rows, -1, 3) * 255).round().astype(np.uint8)
    return Image.fromarray(grid).resize(like.size, _NEAREST)


def _heat(values: np.ndarray) -> np.ndarray:
    """[P] to colours [P, 3]; the maximum is brightest."""
    # With its own maximum alone as the scale, the flat attention of an untrained encoder would look like a find.
    top = max(float(values.max()), _PEAK * float(values.mean()), 1e-12)
    return mpl.colormaps["inferno"](values / top)[:, :3]


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


def _principal_colours(features: Tensor) -> np.ndarray:
    """[N, D] to [N, 3] in 0..1: the first three principal components between their 2nd and 98th percentile."""
    centred = (features - features.mean(0)).double()
    _, _, axes = torch.linalg.svd(centred, full_matrices=False)
    axes = axes[:3]
    # The sign of an axis is arbitrary; with the largest loading positive, colours do not flip between evaluations.
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    parts = (centred @ axes.T).numpy()
    parts = np.pad(parts, ((0, 0), (0, 3 - parts.shape[1])))  # narrow features have fewer than three
    low, high = np.percentile(parts, [2, 98], axis=0)
    return np.clip((parts - low) / np.maximum(high - low, 1e-9), 0, 1)


def _sheet(title: str, note: str, groups: Sequence[_Group], *, rows: Sequence[str]) -> Image.Image:
    """Groups of tiles side by side under a title; every column is as wide, every row as high, as its largest tile."""
    count = len(groups[0].tiles)
    large, middle, small = (ImageFont.load_default(size=size) for size in (24, 15, 13))
    heights = [max(tile.height for group in groups for tile in group.tiles[row]) for row in range(count)]
    left = _MARGIN + (max(round(small.getlength(name)) for name in rows) + 12 if rows else 0)
    widths = [
        max(sum(t.width + _GAP for t in group.tiles[0]) - _GAP, round(middle.getlength(group.heading)))
        for group in groups
    ]
    text = [
        line
        for paragraph in note.split("\n")
        for line in _wrapped(paragraph, small, left + sum(widths) + 3 * _GAP * len(widths))
    ]
    top = _MARGIN + 36 + 19 * len(text) + 18 + (24 if any(group.heading for group in groups) else 0) + 20
    wide = max(
        [left + sum(widths) + 3 * _GAP * (len(groups) - 1), _MARGIN + large.getlength(title)]
        + [_MARGIN + small.getlength(t) for t in text]
    )
    sheet = Image.new("RGB", (round(wide) + _MARGIN, top + sum(heights) + _GAP * (count - 1) + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN), title, _INK, large, anchor="lt")
    for i, line in enumerate(text):
        draw.text((_MARGIN, _MARGIN + 46 + 19 * i), line, _FAINT, small, anchor="ls")
    x = left
    for group, width in zip(groups, widths, strict=True):
        if group.heading:
            draw.text((x, top - 32), group.heading, _INK, middle, anchor="ls")
            draw.line((x, top - 24, x + width, top - 24), _RULE)
        for column, name in enumerate(group.columns):
            across = x + sum(tile.width + _GAP for tile in group.tiles[0][:column])
            draw.text((across + group.tiles[0][column].width / 2, top - 8), name, _FAINT, small, anchor="ms")
            for row in range(count):
                tile = group.tiles[row][column]
                y = top + sum(heights[:row]) + _GAP * row + (heights[row] - tile.height) // 2
                sheet.paste(tile, (across, y))
        x += width + 3 * _GAP
    for row, name in enumerate(rows):
        draw.text((_MARGIN, top + sum(heights[:row]) + _GAP * row + heights[row] / 2), name, _FAINT, small, anchor="lm")
    return sheet


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> list[str]:
    """`text` in lines of at most about `width` pixels, and not narrower than is pleasant to read."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > max(width, 420):
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
