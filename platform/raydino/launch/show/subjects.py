"""What pictures are drawn of: image files, images of a set chosen by key, and the set whose images are neighbours.

Everything that can be refused about them is refused here, before a network is opened.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int

from raydino import keyed
from raydino.config import ConfigError
from raydino.data.decode import Undecodable, decode
from raydino.evals.evaluation import EVAL_SPLITS
from raydino.evals.images import ImageSet
from raydino.export.model import Model
from raydino.shards.reader import Collection, open_collection


@dataclass(frozen=True)
class Subject:
    """An image to draw."""

    name: str
    """Of its files; no two subjects share one."""
    data: bytes
    """As it is encoded."""
    label: str
    """Its class; empty where that is not known."""
    row: int
    """In the bank's collection; -1 if it is from elsewhere."""


@dataclass(frozen=True)
class Bank:
    """The set of images in which neighbours are looked for; N rows of it by key."""

    name: str
    collection: Collection
    rows: Int[np.ndarray, " N"]
    """Ascending."""
    labels: Int[np.ndarray, " N"]
    """-1 where there is none."""
    judged: Collection
    """From which images are chosen to be drawn: another split if there is one."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; may be fewer than there are labels."""
        return self.collection.manifest.classes

    def called(self, label: int) -> str:
        """The class of a label; empty for -1."""
        if label < 0:
            return ""
        return self.classes[label] if label < len(self.classes) else str(label)

    def seen_by(self, model: Model) -> ImageSet:
        """The images as `model` sees them."""
        return ImageSet(self.collection, self.rows, self.labels, size=model.size, channels=model.config.channels)


def read_files(paths: Sequence[str]) -> list[Subject]:
    """Image files, each decoded once to know that it can be. Raises ConfigError for one that is not there or no image."""
    found: dict[str, Subject] = {}
    for path in paths:
        file = Path(path).expanduser()
        if not file.is_file():
            what = "is a folder; give its images, or --data for a set" if file.is_dir() else "there is no such file"
            raise ConfigError(f"image = {path!r}: {what}.")
        data = file.read_bytes()
        try:
            decode(data)
        except Undecodable as error:
            raise ConfigError(f"image = {path!r}: cannot be decoded ({error}); leave it out.") from error
        stem = re.sub(r"[^A-Za-z0-9_-]+", "-", file.stem).strip("-") or "image"
        name, number = stem, 1
        while name in found:
            number += 1
            name = f"{stem}-{number}"
        found[name] = Subject(name, data, label="", row=-1)
    return list(found.values())


def open_bank(path: str, *, split: str | None, eval_split: str | None, most: int, seed: int) -> Bank:
    """The images at `path` that curation kept, `most` of them by (seed, "show"). Raises ConfigError or ShardError."""
    whole = open_collection(path if "://" in path else str(Path(path).expanduser().resolve()))
    splits = whole.manifest.splits
    for field, asked in (("split", split), ("eval_split", eval_split)):
        if asked is not None and asked not in splits:
            raise ConfigError(f"{field} = {asked!r}: {path} has {', '.join(splits)}; give one of them.")
    own = split or ("train" if "train" in splits else splits[0])
    judged = eval_split or next((each for each in EVAL_SPLITS if each in splits and each != own), own)
    collection = whole.part(own)
    kept = collection.keep()
    rows = np.arange(len(collection)) if kept is None else np.flatnonzero(kept)
    if len(rows) > most:
        rows = np.sort(rows[keyed.generator(seed, "show").permutation(len(rows))[:most]])
    name = path.rstrip("/").rpartition("/")[2] or path
    other = collection if judged == own else whole.part(judged)
    return Bank(name, collection, rows, collection.labels()[rows], other)


def chosen(bank: Bank, count: int, *, seed: int) -> list[Subject]:
    """`count` decodable images of the set by (seed, "shown"), labelled ones where there are any; fewer where it has fewer.

    Raises ConfigError where none can be decoded.
    """
    labels, subjects = bank.judged.labels(), list[Subject]()
    rows = np.flatnonzero(labels >= 0) if (labels >= 0).any() else np.arange(len(labels))
    for row in keyed.generator(seed, "shown").permutation(rows):
        data = bank.judged.rows(np.array([row])).column("bytes")[0].as_py()
        try:
            decode(data)
        except Undecodable:
            continue
        own = int(row) if bank.judged is bank.collection else -1
        subjects.append(Subject(f"row-{row}", data, bank.called(int(labels[row])), own))
        if len(subjects) == count:
            break
    if not subjects:
        raise ConfigError(f"data = {bank.name!r}: none of {len(rows)} images can be decoded; give other images.")
    return subjects
