"""Images as evaluations see them: rows of a collection as centre crops with labels.

Pixels are prepared once, by the protocol of the papers (shorter side to 256/224 of the size, bicubic, centre crop), and
stay in memory when the whole set fits, because a run evaluates many times on the same images. Images that cannot be
decoded are left out and counted: dropping them silently would make two collections look comparable.
Letters: B images of a chunk, C H W channels and size of a crop, N images of a set.
"""

import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from raydino import keyed
from raydino.data.decode import Undecodable, decode
from raydino.shards.reader import Collection
from raydino.views import Size, height_width

if TYPE_CHECKING:
    import pyarrow as pa

FILES_AT_ONCE = 1024
CACHE_BYTES = 1 << 30  # per set and process; 1 GiB holds 7,100 crops of 224 pixels or 350,000 of 32


class ImageSet:
    """Rows of a collection as centre crops with labels. A subset shares the memory of the set it was taken from."""

    def __init__(
        self,
        collection: Collection,
        rows: np.ndarray,
        labels: np.ndarray,
        *,
        size: Size,
        channels: int = 3,
    ) -> None:
        """`rows` (int64 [N], row numbers) with `labels` (int64 [N]) as crops of `size` pixels (side, or height and width);
        rows are sorted.

        Raises:
            ValueError: If rows and labels differ in number, or `size` is not positive.
        """
        if len(rows) != len(labels) or min(height_width(size)) <= 0:
            raise ValueError(
                f"{len(rows)} rows, {len(labels)} labels, size = {size}: need one label a row and size > 0"
            )
        order = np.argsort(rows, kind="stable")  # ascending, so that each row group is read once in a pass
        self.labels = np.asarray(labels, dtype=np.int64)[order]
        self._pixels = _Pixels(collection, np.asarray(rows, dtype=np.int64)[order], size=size, channels=channels)
        self._places = np.arange(len(order))

    def __len__(self) -> int:
        """Number of rows, undecodable ones included."""
        return len(self._places)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a crop."""
        return self._pixels.shape

    @property
    def collection(self) -> Collection:
        """Where the images are, with their further columns."""
        return self._pixels.collection

    @property
    def rows(self) -> np.ndarray:
        """Row numbers in the collection, ascending, int64 [N]."""
        return self._pixels.rows[self._places]

    @property
    def undecodable(self) -> int:
        """How many of the images met so far could not be decoded."""
        return int(self._pixels.bad[self._places].sum())

    def ids(self) -> list[bytes]:
        """Content ids of the images, in order of their rows; reads them."""
        return self._pixels.column(self._places, "id")

    def files(self, *, most: int) -> list[bytes]:
        """The images as they are encoded, in order of their rows; reads them. Raises ValueError for more than `most` bytes."""
        found: list[bytes] = []
        total = 0
        for start in range(0, len(self), FILES_AT_ONCE):
            part = self._pixels.column(self._places[start : start + FILES_AT_ONCE], "bytes")
            found += part
            total += sum(map(len, part))
            if total > most:
                raise ValueError(
                    f"{start + len(part):,} of {len(self):,} encoded images have {total / 2**30:.1f} GiB, and at most "
                    f"{most / 2**30:.1f} are kept in memory; take fewer"
                )
        return found

    def at_most(self, count: int, *, seed: int) -> "ImageSet":
        """This set, or `count` of its images chosen by (seed, "evals")."""
        if count >= len(self):
            return self
        return self.part(np.sort(keyed.generator(seed, "evals").permutation(len(self))[:count]))

    def part(self, positions: np.ndarray) -> "ImageSet":
        """The images at `positions` (int64, in that order) as a set of their own, in the same memory."""
        subset = object.__new__(ImageSet)
        subset.labels, subset._pixels, subset._places = self.labels[positions], self._pixels, self._places[positions]
        return subset

    def within(self, other: "ImageSet") -> np.ndarray | None:
        """Positions in `other` of the images of this set, int64 [N]; None if they are not all in it, or not ascending there."""
        if self._pixels is not other._pixels:
            return None
        found = np.searchsorted(other._places, self._places)
        inside = found < len(other._places)
        return found if inside.all() and (other._places[found] == self._places).all() else None

    def chunks(self, positions: np.ndarray, *, batch: int) -> Iterator[tuple[Tensor, np.ndarray]]:
        """Images at `positions` of this set, `batch` at a time: uint8 [B, C, H, W] and the positions that were
        decodable.

        The next chunk is decoded while the caller works on this one. A chunk may hold fewer images than `batch`, or
        none.
        """
        parts = [positions[start : start + batch] for start in range(0, len(positions), batch)]
        if not parts:
            return
        with ThreadPoolExecutor(1, thread_name_prefix="evals-ahead") as ahead:
            coming = ahead.submit(self._pixels.load, self._places[parts[0]])
            for i, part in enumerate(parts):
                pixels, good = coming.result()
                if i + 1 < len(parts):
                    coming = ahead.submit(self._pixels.load, self._places[parts[i + 1]])
                yield torch.from_numpy(pixels), part[good]


class _Pixels:
    """Decoded crops by place, kept when all of them fit into CACHE_BYTES."""

    def __init__(self, collection: Collection, rows: np.ndarray, *, size: Size, channels: int) -> None:
        self.rows, self.size, self.shape = rows, size, (channels, *height_width(size))
        self.bad = np.zeros(len(rows), dtype=bool)
        self.collection = collection
        self._ends = np.cumsum(collection.row_groups)
        self._known = np.zeros(len(rows), dtype=bool)
        self._last: tuple[int, pa.Table] | None = None
        self._fits = len(rows) * math.prod(self.shape) <= CACHE_BYTES

    @cached_property
    def _cache(self) -> np.ndarray:
        # Pages are committed as they are written, so a rank that decodes its share holds no more than its share.
        return np.empty((len(self.rows), *self.shape), dtype=np.uint8)

    def load(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Crops uint8 [B', C, H, W] of the decodable images among `places`, and which those are, bool [B]."""
        if self._fits and self._known[places].all():
            good = ~self.bad[places]
            return self._cache[places[good]], good
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="evals-decode") as pool:
            crops = list(pool.map(lambda data: _crop(data, self.size, self.shape[0]), self.column(places, "bytes")))
        good = np.array([crop is not None for crop in crops])
        self.bad[places] = ~good
        kept = [crop for crop in crops if crop is not None]
        pixels = np.stack(kept) if kept else np.empty((0, *self.shape), dtype=np.uint8)
        if self._fits:
            self._cache[places[good]] = pixels
            self._known[places] = True
        return pixels, good

    def column(self, places: np.ndarray, name: str) -> list[bytes]:
        groups = np.searchsorted(self._ends, self.rows[places], side="right")
        data: list[bytes] = []
        for row, group in zip(self.rows[places], groups, strict=True):
            start = self._ends[group] - self.collection.row_groups[group]
            data.append(self._group(int(group)).column(name)[int(row - start)].as_py())
        return data

    def _group(self, group: int) -> "pa.Table":
        if self._last is None or self._last[0] != group:
            self._last = (group, self.collection.read(group))
        return self._last[1]


def centre_crop(image: np.ndarray, size: Size) -> np.ndarray:
    """uint8 [H, W, C] to uint8 [C, height, width] of `size`: shorter side to round(size·256/224), bicubic antialiased, centre
    crop.

    The protocol of DINO and DINOv2 (256 and 224 pixels), with the same share cut off at other sizes; for a `size` that is not
    square the image is scaled until it covers both sides.
    """
    rows, columns = height_width(size)
    high, wide = (max(side, round(side * 256 / 224)) for side in (rows, columns))
    scale = max(high / image.shape[0], wide / image.shape[1])
    new = (max(wide, round(image.shape[1] * scale)), max(high, round(image.shape[0] * scale)))
    top, left = (new[1] - rows) // 2, (new[0] - columns) // 2
    large = resized(image, new)
    return np.ascontiguousarray(large[top : top + rows, left : left + columns].transpose(2, 0, 1))


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """To `size` (width, height). Pillow knows images of 3 channels and of 1."""
    if image.shape[2] == 3:
        return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    bands = (Image.fromarray(band).resize(size, Image.Resampling.BICUBIC) for band in np.moveaxis(image, 2, 0))
    return np.stack([np.asarray(band) for band in bands], axis=2)


def _crop(data: bytes, size: Size, channels: int) -> np.ndarray | None:
    try:
        return centre_crop(decode(data, channels=channels), size)
    except Undecodable:
        return None
