"""What an evaluation is, and the labelled images it gets: a bank to learn from and queries to be judged by.

Which rows take part is decided by key, never by a shared generator, so runs with one seed are compared on the same images
whatever their machines.
"""

import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from raydino import keyed
from raydino.config import ConfigError
from raydino.evals.images import ImageSet
from raydino.shards.reader import Collection
from raydino.views import Normalisation, Size

if TYPE_CHECKING:
    from raydino.nn.backbone import Backbone

EVAL_SPLITS = ("test", "validation", "val")
_logger = logging.getLogger(__name__)


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
    """The same of the split that is judged; None where there is none, or the caller has classification alone in mind."""

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

    Queries come from the split that `judged_split` finds; where it has no labels, a share `holdout` of the labelled
    training rows is held back (see `Labelled.keep`). At most `bank` and `queries` images are chosen by key.

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
    judged, keep = judged_split(opened, train_split=train_split, asked=eval_split), None
    test = None if judged is None else judged[0]
    if judged is None or not (judged[1] >= 0).any():
        if eval_split is not None:
            raise ConfigError(f"data.eval_split = {eval_split!r} has no labels; give a labelled split or none")
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
        test=test,
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


def judged_split(opened: Collection, *, train_split: str, asked: str | None) -> tuple[Collection, np.ndarray] | None:
    """The split that is judged and its labels: the one asked for, else the first of EVAL_SPLITS with labels, else the first of
    them that there is. None where there is none beside the training split.
    """
    splits = opened.manifest.splits
    usual = [split for split in EVAL_SPLITS if split in splits and split != train_split]
    known = opened.manifest.labelled  # without labels no file is looked into
    first = None
    for split in [asked] if asked is not None else usual:
        part = opened.part(split)
        labels = part.labels() if known else np.full(part.manifest.rows, -1, dtype=np.int64)
        if (labels >= 0).any():
            return part, labels
        first = first or (part, labels)
    return first


def _labelled_rows(
    collection: Collection, labels: np.ndarray, *, size: Size, channels: int, count: int, seed: int
) -> ImageSet:
    rows = np.flatnonzero(labels >= 0)
    if len(rows) > count:  # here and not by `at_most`: the memory for pixels shall be that of the chosen rows
        rows = rows[keyed.generator(seed, "evals").permutation(len(rows))[:count]]
    return ImageSet(collection, rows, labels[rows], size=size, channels=channels)
