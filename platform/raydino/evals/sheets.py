"""Sheets of tiles under a title, drawn with Pillow alone, so that a worker without a display and without fonts can do it.

Small images are enlarged by whole factors without smoothing, so that a pixel stays a pixel.
Letters: H W pixels, P patches (row-major), h w patches of the grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

TILE = 144
"""Pixels that a small image is enlarged to, at most."""
_GAP, _MARGIN = 8, 28
INK, FAINT = (24, 28, 38), (104, 112, 128)
_PAPER, _RULE = (255, 255, 255), (214, 219, 228)
_PEAK = 4.0  # times the mean: attention below this peak everywhere is drawn as flat
_NEAREST, _AREA = Image.Resampling.NEAREST, Image.Resampling.LANCZOS

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Group:
    """Columns of a sheet under one heading."""

    heading: str
    columns: tuple[str, ...]
    tiles: tuple[tuple[Image.Image, ...], ...]  # by row, then column


def as_rgb(images: UInt8[Tensor, "*N C H W"]) -> UInt8[np.ndarray, "*N H W 3"]:
    """Pixels to look at: grey in all three colours, of more channels the first three."""
    pixels = images.cpu().movedim(-3, -1).numpy()
    return pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., [0, 0, 0]]


def enlargement(size: int, *, target: int = TILE) -> float:
    """Enlargement of an image of `size` pixels: a whole number for small ones, a reduction for large ones."""
    return float(max(1, target // size)) if size <= target else target / size


def scaled(pixels: UInt8[np.ndarray, "H W 3"], factor: float) -> Image.Image:
    """Pixels enlarged without smoothing, or reduced with it."""
    size = (max(1, round(pixels.shape[1] * factor)), max(1, round(pixels.shape[0] * factor)))
    return Image.fromarray(np.ascontiguousarray(pixels)).resize(size, _NEAREST if factor >= 1 else _AREA)


def grid_rows(patches: int, *, height: int, width: int) -> int:
    """Rows of the grid that `patches` square patches make on an image. Raises ValueError where they make none."""
    rows = max(1, round((patches * height / width) ** 0.5))
    if patches % rows:
        raise ValueError(f"{patches} patches do not make a grid on an image of {width} × {height}")
    return rows


def patch_map(values: Float[np.ndarray, "P 3"], *, rows: int, like: Image.Image) -> Image.Image:
    """Colours in 0..1 of a grid of `rows`, as large as the image they belong to."""
    grid = (values.reshape(rows, -1, 3) * 255).round().astype(np.uint8)
    return Image.fromarray(grid).resize(like.size, _NEAREST)


def heat(values: Float[np.ndarray, " P"]) -> Float[np.ndarray, "P 3"]:
    """Values as colours in 0..1; the maximum is brightest."""
    # With its own maximum alone as the scale, the flat attention of an untrained encoder would look like a find.
    top = max(float(values.max()), _PEAK * float(values.mean()), 1e-12)
    return mpl.colormaps["inferno"](values / top)[:, :3]


def sheet(title: str, note: str, groups: Sequence[Group], *, rows: Sequence[str]) -> Image.Image:
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
    canvas = Image.new("RGB", (round(wide) + _MARGIN, top + sum(heights) + _GAP * (count - 1) + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((_MARGIN, _MARGIN), title, INK, large, anchor="lt")
    for i, line in enumerate(text):
        draw.text((_MARGIN, _MARGIN + 46 + 19 * i), line, FAINT, small, anchor="ls")
    x = left
    for group, width in zip(groups, widths, strict=True):
        if group.heading:
            draw.text((x, top - 32), group.heading, INK, middle, anchor="ls")
            draw.line((x, top - 24, x + width, top - 24), _RULE)
        for column, name in enumerate(group.columns):
            across = x + sum(tile.width + _GAP for tile in group.tiles[0][:column])
            draw.text((across + group.tiles[0][column].width / 2, top - 8), name, FAINT, small, anchor="ms")
            for row in range(count):
                tile = group.tiles[row][column]
                y = top + sum(heights[:row]) + _GAP * row + (heights[row] - tile.height) // 2
                canvas.paste(tile, (across, y))
        x += width + 3 * _GAP
    for row, name in enumerate(rows):
        draw.text((_MARGIN, top + sum(heights[:row]) + _GAP * row + heights[row] / 2), name, FAINT, small, anchor="lm")
    return canvas


def captioned(tile: Image.Image, lines: Sequence[str], *, frame: tuple[int, int, int] | None = None) -> Image.Image:
    """A tile with lines of text under it, cut to its width, in a frame of a colour if one is given."""
    font, edge, high = ImageFont.load_default(size=12), 4, 16
    whole = Image.new("RGB", (tile.width + 2 * edge, tile.height + 2 * edge + high * len(lines)), _PAPER)
    draw = ImageDraw.Draw(whole)
    if frame is not None:
        draw.rectangle((0, 0, whole.width - 1, tile.height + 2 * edge - 1), fill=frame)
    whole.paste(tile, (edge, edge))
    for i, line in enumerate(lines):
        place = (whole.width / 2, tile.height + 2 * edge + high * (i + 0.75))
        draw.text(place, _cut(line, font, whole.width), INK, font, anchor="ms")
    return whole


def _cut(text: str, font: Font, width: float) -> str:
    """`text` with its end left out where it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


def _wrapped(text: str, font: Font, width: float) -> list[str]:
    """`text` in lines of at most about `width` pixels, and not narrower than is pleasant to read."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > max(width, 420):
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
