"""Whole images with something beside them (a map of classes, of depth, a group, a pose), and what an encoder says of each patch.

Unlike the centre crops of classification these keep their aspect ratio: the shorter side is brought to a size and both sides
to whole patches. Every rank encodes its share one by one, since sizes differ, and every rank gets all.
Letters: H W pixels, h w patches of the grid, D width, L layers.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from raydino import collectives, keyed
from raydino.data.decode import FORMATS, Undecodable, decode, header
from raydino.evals.evaluation import Labelled
from raydino.evals.features import frozen
from raydino.evals.images import resized
from raydino.nn.backbone import Backbone, BackboneOutput
from raydino.nn.layers import layers, patch_size
from raydino.shards.reader import Collection
from raydino.views import Normalisation

if TYPE_CHECKING:
    from collections.abc import Mapping

PART = 64
MAP_MODES = ("1", "L", "P", "I;16", "I;16B", "I")


def lacking(labelled: Labelled, *columns: str, train: bool) -> str | None:
    """Which of the columns, or the split to learn from, is not there, in words; None if all are."""
    parts = [labelled.test, *([labelled.train] if train else [])]
    if any(part is None for part in parts):
        return "no split to learn from" if labelled.test is not None else "no images to judge"
    for column in columns:
        if any(part is not None and column not in part.columns for part in parts):
            return f"no column {column!r}"
    return None


def described(labelled: Labelled, *, most: int, side: int) -> str:
    """How many images are judged and, at most `most`, learned from, and their size, in words."""
    train, test = (0 if part is None else len(part) for part in (labelled.train, labelled.test))
    return f"{test} judged, {min(train, most)} learned from, shorter side {side}"


def chosen(count: int, most: int, *, seed: int) -> Int[np.ndarray, " M"]:
    """At most `most` of `count` rows, ascending, by (seed, "dense")."""
    return np.sort(keyed.generator(seed, "dense").permutation(count)[:most])


def in_parts(rows: Int[np.ndarray, " M"]) -> list[Int[np.ndarray, " P"]]:
    """Rows in parts of PART at most, so that no more than a part's tokens are in memory at once."""
    return [rows[start : start + PART] for start in range(0, len(rows), PART)]


def rows_with(
    collection: Collection, columns: Sequence[str], rows: np.ndarray
) -> "Iterator[tuple[int, Mapping[str, Any]]]":
    """Rows (ascending) with their encoded image as "bytes", their "path" and `columns`; of an image column its bytes.

    Raises ShardError for a column that is not there.
    """
    start = 0
    for group, count in enumerate(collection.row_groups):
        here = rows[(rows >= start) & (rows < start + count)] - start
        if len(here):
            table = collection.read(group)
            values = {name: table.column(name) for name in ("bytes", "path")}
            values |= {name: collection.column(group, name) for name in columns}
            for row in here.tolist():
                found = {name: value[row].as_py() for name, value in values.items()}
                yield start + row, {k: v["bytes"] if isinstance(v, dict) else v for k, v in found.items()}
        start += count


def decode_map(data: bytes) -> Int[np.ndarray, "H W"]:
    """The numbers in an image of one channel as they are stored: 8 or 16 bits, of a palette the indices.

    Raises ValueError for what is no such image.
    """
    try:
        header(data)  # judges the size before a pixel is allocated
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.mode not in MAP_MODES:
                raise ValueError(f"a map of mode {image.mode}; it must have one channel of whole numbers")
            return np.asarray(image).astype(np.int32)
    except (Undecodable, OSError) as error:
        raise ValueError(f"a map that cannot be decoded ({error})") from error


def whole_image(data: bytes, *, side: int, patch: int, channels: int = 3) -> UInt8[Tensor, "C H W"] | None:
    """An encoded image, its shorter side near `side` and both sides whole patches; None if it cannot be decoded."""
    try:
        image = decode(data, channels=channels)
    except Undecodable:
        return None
    scale = side / min(image.shape[:2])
    height, width = (max(1, round(length * scale / patch)) * patch for length in image.shape[:2])
    return torch.from_numpy(np.ascontiguousarray(resized(image, (width, height)).transpose(2, 0, 1)))


def square_image(data: bytes, *, side: int, channels: int = 3) -> UInt8[Tensor, "C S S"] | None:
    """An encoded image stretched to a square; None if it cannot be decoded."""
    try:
        image = decode(data, channels=channels)
    except Undecodable:
        return None
    return torch.from_numpy(np.ascontiguousarray(resized(image, (side, side)).transpose(2, 0, 1)))


def encode_each(
    encoder: Backbone,
    images: Sequence[UInt8[Tensor, "C H W"] | None],
    *,
    blocks: Sequence[int],
    say: Callable[[list[BackboneOutput]], Float[Tensor, "..."]],
    normalise: Normalisation,
) -> list[Float[Tensor, "..."] | None]:
    """What `say` makes of the outputs after `blocks` for each image (of one size or not), float32 on the encoder's device.

    `say` gives tensors [..., F] whose F is the same for all images, of at most 3 dimensions. None stays None.
    """
    device = next(encoder.parameters()).device
    mine: list[Tensor] = []
    shapes: list[list[int]] = []
    with frozen(encoder, device):
        for index in range(collectives.rank(), len(images), collectives.world_size()):
            if (image := images[index]) is not None:
                said = say(layers(encoder, normalise(image[None].to(device)), blocks)).float()
                mine.append(said.reshape(-1, said.shape[-1]))
                shapes.append([index, *said.shape[:-1]] + [-1] * (3 - said.ndim))
    if collectives.world_size() > 1:  # a rank without an image does not know the width
        width = int(collectives.all_max(torch.tensor([mine[0].shape[1] if mine else 0], device=device)))
        mine, shapes = mine or [torch.zeros(0, width, device=device)], shapes
    if not mine:
        return [None] * len(images)
    rows = collectives.gather_rows(torch.cat(mine).clone())
    every = collectives.gather_rows(torch.tensor(shapes, dtype=torch.long, device=device).view(-1, 3)).tolist()
    found: list[Tensor | None] = [None] * len(images)
    for index, *sizes in every:
        sizes = [size for size in sizes if size >= 0]
        count = int(np.prod(sizes)) if sizes else 1
        found[index], rows = rows[:count].view(*sizes, rows.shape[1]), rows[count:]
    return found


def grids(
    encoder: Backbone,
    images: Sequence[UInt8[Tensor, "C H W"] | None],
    *,
    blocks: Sequence[int],
    normalise: Normalisation,
    cls: bool = False,
) -> list[Float[Tensor, "h w F"] | None]:
    """The patch tokens of each image as a grid, those of several blocks side by side, with `cls` each beside its cls token."""
    patch = patch_size(encoder)

    def say(outputs: list[BackboneOutput]) -> Tensor:
        parts = []
        for output in outputs:
            parts.append(output.patches)
            if cls:
                parts.append(output.cls[:, None].expand(-1, output.patches.shape[1], -1))
        return torch.cat(parts, dim=-1)[0]  # P F

    flat = encode_each(encoder, images, blocks=blocks, say=say, normalise=normalise)
    found: list[Tensor | None] = []
    for image, rows in zip(images, flat, strict=True):
        size = (0, 0) if image is None else (image.shape[-2] // patch, image.shape[-1] // patch)
        found.append(None if rows is None else rows.view(*size, -1))
    return found


def check_room(
    encoder: Backbone,
    images: Sequence[UInt8[Tensor, "C H W"] | None],
    *,
    blocks: Sequence[int],
    normalise: Normalisation,
    cls: bool = False,
) -> None:
    """Refuse images whose tokens, kept as `grids` gives them, are more than the encoder's device has room for.

    Raises ValueError saying how much, and what to lower.
    """
    real = [image for image in images if image is not None]
    if not real:
        return
    [one] = grids(encoder, real[:1], blocks=blocks, normalise=normalise, cls=cls)
    assert one is not None
    patches = sum(image.shape[-2] * image.shape[-1] for image in real) / (real[0].shape[-2] * real[0].shape[-1])
    need = 2 * 4 * one.numel() * patches  # float32, and once more while ranks exchange them
    device = one.device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if need > free:
        raise ValueError(
            f"the tokens of {len(real):,} images take {need / 2**30:.1f} GiB, of which {free / 2**30:.1f} are free; lower "
            "train_images or side"
        )


def enlarged(grid: Float[Tensor, "h w F"], size: tuple[int, int]) -> Float[Tensor, "H W F"]:
    """Bilinear, corners not aligned, as segmentation heads do it."""
    return F.interpolate(grid.permute(2, 0, 1)[None], size=size, mode="bilinear", align_corners=False)[0].permute(
        1, 2, 0
    )
