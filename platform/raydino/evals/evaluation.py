"""What an evaluation is, and the labelled images it gets: a bank to learn from and queries to be judged by.

Pixels are prepared once, by the protocol of the papers (shorter side to 256/224 of the size, bicubic, centre crop), and
stay in memory when the whole set fits, because a run evaluates many times on the same images. Which rows take part is
decided by key, never by a shared generator, so runs with one seed are compared on the same images whatever their
machines. Images that cannot be decoded are left out and counted: dropping them silently would make two collections look
comparable.
Letters: B images of a chunk, C H W channels and size of a crop, N images of a set.
"""

import logging
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from raydino import keyed
from raydino.config import ConfigError
from raydino.data.decode import Undecodable, decode
from raydino.shards.reader import Collection
from raydino.views import Normalisation, Size, height_width

if TYPE_CHECKING:
    import pyarrow as pa

    from raydino.nn.backbone import Backbone

CACHE_BYTES = 1 << 30  # per set and process; 1 GiB holds 7,100 crops of 224 pixels or 350,000 of 32
EVAL_SPLITS = ("test", "validation", "val")
_logger = logging.getLogger(__name__)


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
        self._collection = collection
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
            start = self._ends[group] - self._collection.row_groups[group]
            data.append(self._group(int(group)).column(name)[int(row - start)].as_py())
        return data

    def _group(self, group: int) -> "pa.Table":
        if self._last is None or self._last[0] != group:
            self._last = (group, self._collection.read(group))
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


@dataclass(frozen=True)
class Labelled:
    """Labelled images for evaluations."""

    bank: ImageSet
    """Images of the training split, with labels that may be used."""
    queries: ImageSet
    """Images to be classified; their labels only judge."""
    classes: tuple[str, ...]
    """Class names; label i is `classes[i]`."""
    normalisation: Normalisation = Normalisation()
    """Mean and standard deviation of the input, the same as in training."""
    keep: np.ndarray | None = None
    """bool [rows of the training split], False for rows held back as queries, which training must leave out; None for
    none.
    """
    seed: int = 0
    """Seed of every keyed choice among these images."""
    train: Collection | None = None
    """All rows of the training split with their further columns, for evaluations that learn from those; None for none."""
    test: Collection | None = None
    """The same of the split that is judged; None where the caller has classification alone in mind."""

    @property
    def description(self) -> str:
        """The images in words, for logs."""
        bad = self.bank.undecodable + self.queries.undecodable
        left_out = f", {bad} undecodable left out" if bad else ""
        high, wide = self.queries.shape[1:]
        size = str(high) if high == wide else f"{high} × {wide}"
        side = round(high * 256 / 224)
        scaled = f"shorter side {side}" if high == wide else f"scaled to cover {side} × {round(wide * 256 / 224)}"
        return (
            f"{len(self.queries)} queries against {len(self.bank)} images, {len(self.classes)} classes, "
            f"{scaled} bicubic, centre crop {size}{left_out}"
        )


class Evaluation(ABC):
    """A judgement on an encoder: names and numbers. The caller adds the prefix and logs; all ranks must call it
    together.
    """

    blocks: int = 1
    """Last blocks of which it wants features of the labelled images (see `features.shared_features`)."""

    @property
    @abstractmethod
    def protocol(self) -> str:
        """The protocol in words, for logs and tables."""

    def unfit(self, labelled: Labelled) -> str | None:
        """Why these images do not suit the evaluation, in a few words; None if they do."""
        return None if labelled.classes else "no labels"

    def images(self, labelled: Labelled) -> str:
        """Which images it looks at, and how they are prepared, in words; after `run` also how many could not be decoded."""
        return labelled.description

    @abstractmethod
    def run(self, encoder: "Backbone", labelled: Labelled) -> dict[str, float]:
        """Evaluate `encoder`, which is left as it was; the same numbers on every rank."""


def labelled_sets(
    opened: Collection,
    *,
    train_split: str,
    eval_split: str | None,
    holdout: float,
    seed: int,
    bank: int,
    queries: int,
    size: Size,
    channels: int = 3,
    normalisation: Normalisation = Normalisation(),
    mask: str = "",
) -> Labelled | None:
    """The labelled images of a collection of all splits, or None where it has no labels to evaluate with.

    Queries come from `eval_split`, else from the first labelled split of EVAL_SPLITS, else a share `holdout` of the
    labelled training rows is held back (see `Labelled.keep`). At most `bank` and `queries` images are chosen by key.

    Raises:
        ConfigError: If `eval_split` is the training split, is not there, or has no labels.
        ShardError: If the collection cannot be read.
    """
    whole, path = opened.manifest, opened.folder
    if eval_split is not None and (eval_split == train_split or eval_split not in whole.splits):
        raise ConfigError(
            f"data.eval_split = {eval_split!r}: give a split other than data.split = {train_split!r} "
            f"out of {list(whole.splits)}"
        )
    train = opened.part(train_split, mask=mask)
    if not whole.labelled:  # known without a look into every file
        _logger.info("%s: no labels, so no labelled evaluation", path)
        return None
    train_labels, kept = train.labels(), train.keep()
    if kept is not None:  # a copy of a query in the bank would answer for it
        train_labels = np.where(kept, train_labels, -1)
    if not (train_labels >= 0).any():
        _logger.info("%s: split %r has no labels, so no labelled evaluation", path, train_split)
        return None
    judged, keep = _judged(opened, eval_split, [s for s in EVAL_SPLITS if s in whole.splits and s != train_split]), None
    if judged is None:
        keep = holdout_rows(train_labels, share=holdout, seed=seed)
        if keep.all():
            _logger.info("%s: one labelled split, and data.holdout = %g holds none of it back", path, holdout)
            return None
        judged = train, np.where(keep, -1, train_labels)
        train_labels = np.where(keep, train_labels, -1)
    last = int(max(train_labels.max(), judged[1].max()))
    names = whole.classes + tuple(str(label) for label in range(len(whole.classes), last + 1))
    return Labelled(
        bank=_labelled_rows(train, train_labels, size=size, channels=channels, count=bank, seed=seed),
        queries=_labelled_rows(*judged, size=size, channels=channels, count=queries, seed=seed),
        classes=names,
        normalisation=normalisation,
        keep=keep,
        seed=seed,
        train=train,
        test=None if keep is not None else judged[0],
    )


def holdout_rows(labels: np.ndarray, *, share: float, seed: int) -> np.ndarray:
    """bool [rows], False for the `share` of the labelled rows (label >= 0) that is held back by (seed, "holdout").

    The same rows for the same seed whatever the machines; at least one row on either side. All True where `share` is 0
    or fewer than two rows are labelled. Raises ConfigError unless 0 <= share < 1.
    """
    if not 0 <= share < 1:
        raise ConfigError(f"data.holdout = {share}: give a share of the training split, at least 0 and below 1")
    labelled = np.flatnonzero(np.asarray(labels) >= 0)
    keep = np.ones(len(labels), dtype=bool)
    if share and len(labelled) >= 2:
        count = min(max(1, round(share * len(labelled))), len(labelled) - 1)
        keep[keyed.generator(seed, "holdout").permutation(labelled)[:count]] = False
    return keep


def _judged(opened: Collection, asked: str | None, usual: Sequence[str]) -> tuple[Collection, np.ndarray] | None:
    """The split asked for, else the first of the usual ones that has labels; with its labels."""
    for split in [asked] if asked is not None else usual:
        collection = opened.part(split)
        labels = collection.labels()
        if (labels >= 0).any():
            return collection, labels
        if asked is not None:
            raise ConfigError(f"data.eval_split = {asked!r} has no labels; give a labelled split or none")
    return None


def _labelled_rows(
    collection: Collection, labels: np.ndarray, *, size: Size, channels: int, count: int, seed: int
) -> ImageSet:
    rows = np.flatnonzero(labels >= 0)
    if len(rows) > count:  # here and not by `at_most`: the memory for pixels shall be that of the chosen rows
        rows = rows[keyed.generator(seed, "evals").permutation(len(rows))[:count]]
    return ImageSet(collection, rows, labels[rows], size=size, channels=channels)
