"""Findings: which images of a folder, and of evaluation sets, may show the same picture. Found once, judged as often as wanted.

Pairs are sought a little beyond the threshold and kept below `pairs/`, under a name that stands for both sets of images and for
how they were compared. So a stricter threshold costs no search, a screening cut short goes on where it was, and a folder that has
grown is only compared with what is new in it. Nothing here is ever changed; what no longer fits is left alone.
"""

import contextlib
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydino.curation.cells import pairs_between, pairs_within
from raydino.curation.cosine import CosinePairs, Vectors
from raydino.curation.duplicates import EXACT, Pairs, search
from raydino.curation.features import Features, Progress
from raydino.curation.ledger import DECISIONS, DUPLICATE
from raydino.curation.spread import Spread
from raydino.shards.manifest import Manifest
from raydino.shards.schema import Folder

LARGEST = 72  # bits: other photographs begin at 80
BEYOND = 8  # bits beyond the radius that are searched, so that a report can show what lies there
LEAST_COSINE = 0.4  # below every published threshold
_PAIRS = pa.schema([(name, pa.int64()) for name in ("first", "second", "bits")] + [("agreement", pa.float32())])
_ALIKE = pa.schema([("first", pa.int64()), ("second", pa.int64()), ("cosine", pa.float32())])
_NOBODY = np.empty(0, np.int64)
NO_PAIRS = Pairs(_NOBODY, _NOBODY, _NOBODY, np.empty(0, np.float32))


@dataclass(frozen=True)
class Images:
    """One set of images and what is known of it."""

    features: Features
    stamp: str
    """Stands for the images and how they were measured."""
    vectors: Vectors | None = None
    """[N, D] of a descriptor, where one was asked for."""
    descriptor: str = ""
    """Stands for that descriptor."""

    @property
    def name(self) -> str:
        """Of the set, for reports."""
        return self.features.name


@dataclass(frozen=True)
class Meeting:
    """What one evaluation set has in common with the training images, and with itself."""

    images: Images
    leaks: Pairs
    """`first` is a training row, `second` one of this set."""
    inside: Pairs
    alike: CosinePairs | None
    """As `leaks`, by descriptors."""


@dataclass(frozen=True)
class Findings:
    """Everything that is judged."""

    train: Images
    copies: NDArray[np.int64]
    """[N] files that were byte for byte each image, itself among them."""
    near: Pairs
    """Among the images of different pixels."""
    alike: CosinePairs | None
    """The same by descriptors."""
    meetings: tuple[Meeting, ...]


def find(
    folder: Folder,
    manifest: Manifest,
    train: Images,
    evaluations: Sequence[Images],
    *,
    radius: int,
    leak_radius: int,
    spread: Spread,
    neighbours: int | None = None,
    progress: Progress,
) -> Findings:
    """Compare the training images with themselves, up to `radius` bits and somewhat beyond, and with each evaluation set, up to
    `leak_radius`; what was compared before is read.

    `neighbours` is as for `cells.pairs_within`. Raises ConfigError if descriptors find too many pairs.
    """
    memo = _Memo(folder)
    chosen = first_of_equal_pixels(train.features)
    looked = chosen[train.features.table.comparable[chosen]]
    total = 2 * len(evaluations) + 1
    near = memo.pairs(
        (train.stamp, "within"), radius, lambda bits: _within(memo, manifest, train, chosen, bits, spread)
    )
    progress("comparing", 1, total)
    alike = None
    if train.vectors is not None:
        vectors = train.vectors
        alike = memo.alike(
            _key(train.stamp, train.descriptor, f"alike {neighbours}"),
            lambda: _mapped(pairs_within(vectors[looked], least=LEAST_COSINE, neighbours=neighbours), looked, looked),
        )
    meetings = []
    for number, one in enumerate(evaluations):
        radii = radius, leak_radius
        meetings.append(_meeting(memo, train, chosen, one, radii, spread=spread, neighbours=neighbours))
        progress("comparing", 2 * number + 3, total)
    return Findings(train, _copies(folder, train.features), near, alike, tuple(meetings))


def first_of_equal_pixels(features: Features) -> NDArray[np.int64]:
    """Ascending rows, of each picture the first with these very pixels."""
    return np.sort(np.unique(features.table.pixels, return_index=True)[1])


def _within(
    memo: "_Memo", manifest: Manifest, train: Images, chosen: NDArray[np.int64], bits: int, spread: Spread
) -> Pairs:
    """Pairs among the chosen rows; of a folder that has grown, the known ones and those with a new row."""
    known, old = NO_PAIRS, 0
    for rows, stamp in _before(manifest, train):
        found = memo.read(_key(stamp, "within", str(bits)))
        if found is not None and rows > old:
            known, old = found, rows
    new = int(np.searchsorted(chosen, old))
    found = search(train.features.table.take(chosen), None, radius=bits, new=new, spread=spread)
    first = np.concatenate([known.first, chosen[found.first]])
    second = np.concatenate([known.second, chosen[found.second]])
    apart, agreement = np.concatenate([known.bits, found.bits]), np.concatenate([known.agreement, found.agreement])
    order = np.lexsort((second, first))
    return Pairs(first[order], second[order], apart[order], agreement[order])


def _before(manifest: Manifest, train: Images) -> list[tuple[int, str]]:
    """Rows and stamp of the training images before each addition to the folder."""
    out, now = [], manifest.of_split(train.name).files_digest
    for stage in manifest.stages:
        if stage.name == "add" and train.name in stage.parameters["rows"]:
            earlier = train.stamp.replace(now, stage.parameters["files"][train.name])
            out.append((stage.parameters["rows"][train.name], earlier))
    return out


def _meeting(
    memo: "_Memo",
    train: Images,
    chosen: NDArray[np.int64],
    one: Images,
    radii: tuple[int, int],
    *,
    spread: Spread,
    neighbours: int | None,
) -> Meeting:
    table, other = train.features.table, one.features.table

    def leaks(bits: int) -> Pairs:
        found = search(table.take(chosen), other, radius=bits, spread=spread)
        return replace(found, first=chosen[found.first])

    def inside(bits: int) -> Pairs:
        rows = first_of_equal_pixels(one.features)
        found = search(other.take(rows), None, radius=bits, spread=spread)
        return replace(found, first=rows[found.first], second=rows[found.second])

    alike = None
    if train.vectors is not None and one.vectors is not None:
        mine, theirs = chosen[table.comparable[chosen]], np.flatnonzero(other.comparable)
        vectors, others = train.vectors[mine], one.vectors[theirs]
        alike = memo.alike(
            _key(train.stamp, one.stamp, train.descriptor, f"alike {neighbours}"),
            lambda: _mapped(pairs_between(vectors, others, least=LEAST_COSINE, neighbours=neighbours), mine, theirs),
        )
    return Meeting(
        one,
        memo.pairs((train.stamp, one.stamp), radii[1], leaks),
        memo.pairs((one.stamp, "within"), radii[0], inside),
        alike,
    )


def _mapped(found: CosinePairs, first: NDArray[np.int64], second: NDArray[np.int64]) -> CosinePairs:
    return CosinePairs(first[found.first], second[found.second], found.cosine)


def _copies(folder: Folder, features: Features) -> NDArray[np.int64]:
    """[N], how many files were this image, byte for byte: ingest kept one of them and wrote down the others."""
    table = folder.read_table(DECISIONS, columns=["reason", "evidence_id"])
    rows = zip(table["reason"].to_pylist(), table["evidence_id"].to_pylist(), strict=True)
    counts = Counter(evidence for reason, evidence in rows if reason == DUPLICATE)
    return np.array([1 + counts[identity] for identity in features.ids], dtype=np.int64)


def _key(*parts: str) -> str:
    """Name of what was compared, how and with which software."""
    how = f"{LEAST_COSINE} {EXACT} faiss {metadata.version('faiss-cpu')}"
    return hashlib.sha256("\n".join((*parts, how)).encode()).hexdigest()[:16]


def _columns(pairs: Pairs) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    return pairs.first, pairs.second, pairs.bits, pairs.agreement


@dataclass(frozen=True)
class _Memo:
    """The pairs found before, one file each."""

    folder: Folder

    def pairs(self, key: tuple[str, str], radius: int, make: Callable[[int], Pairs]) -> Pairs:
        """Pairs up to the radius and somewhat beyond, of this search or of one that went further."""
        searched = range(min(LARGEST, -(-(radius + BEYOND) // BEYOND) * BEYOND), LARGEST + 1, BEYOND)
        for bits in searched:
            if (known := self.read(_key(*key, str(bits)))) is not None:
                return known
        found = make(searched[0])
        self._write(_key(*key, str(searched[0])), pa.table(list(_columns(found)), schema=_PAIRS))
        return found

    def alike(self, key: str, make: Callable[[], CosinePairs]) -> CosinePairs:
        """Pairs by descriptors."""
        table = self._table(key, _ALIKE)
        if table is not None:
            return CosinePairs(*(table[name].to_numpy() for name in _ALIKE.names))
        found = make()
        self._write(key, pa.table([found.first, found.second, found.cosine], schema=_ALIKE))
        return found

    def read(self, key: str) -> Pairs | None:
        """Pairs of an earlier search, None if there was none."""
        table = self._table(key, _PAIRS)
        return None if table is None else Pairs(*(table[name].to_numpy() for name in _PAIRS.names))

    def _table(self, key: str, schema: pa.Schema) -> pa.Table | None:
        with contextlib.suppress(OSError, pa.ArrowException):  # not there, or damaged: found again
            table = self.folder.read_table(f"pairs/{key}.parquet")
            return table if table.schema.equals(schema) else None
        return None

    def _write(self, key: str, table: pa.Table) -> None:
        self.folder.write_table(f"pairs/{key}.parquet", table)
