"""Screen: which images of a curated folder training should not see, as a keep-mask beside the shards.

Three reasons, the last one overruling the others: the same pixels stand in another file already; the image shows the same
picture as a better copy; it shows the same picture as an evaluation image, and then all its duplicates go too, since a missed
leak raises a score and an image too few costs little (DINOv2, section 3). Shards stay as they are, and so do evaluation splits.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydino.config import ConfigError
from raydino.curation.components import components, groups
from raydino.curation.duplicates import RADIUS, Edges, Table, between, within
from raydino.curation.features import VERSIONS, Features, Progress, features
from raydino.curation.fingerprint import SPEC
from raydino.shards.keep import KeepMask, write_mask
from raydino.shards.manifest import FILE_NAME, Manifest, Stage, load
from raydino.shards.reader import Collection, open_collection
from raydino.shards.schema import Folder, redacted

SAME_PIXELS, SAME_PICTURE, LEAKED = "same pixels", "same picture", "leaked"
LEAK_RADIUS = 64  # bits; looser than between training images, as for LVD-142M
LARGEST_RADIUS = 72  # bits; the nearest of 430 photographs of different things are 80 apart
TRAIN = "train"
MOST = 300_000  # images: 5 · N² comparisons are then ten minutes of one core
STAGE = "screen"


@dataclass(frozen=True)
class Screening:
    """What was found."""

    mask: KeepMask
    """Of the training split."""
    leaks: dict[str, Edges]
    """By evaluation set: pairs of a training row and a row of that set."""
    inside: dict[str, int]
    """By evaluation set: duplicate pairs within it. They stay."""


def screen(
    out: str,
    *,
    against: Sequence[str] = (),
    radius: int = RADIUS,
    leak_radius: int = LEAK_RADIUS,
    threads: int | None = None,
    progress: Progress = lambda _stage, _done, _total: None,
) -> Screening:
    """Judge the training split of the curated folder `out`, and write its keep-mask and what was done into its manifest.

    Args:
        out: a folder written by ingest; all its other splits are evaluation sets.
        against: further evaluation sets, curated or Hugging Face style Parquet, with all their splits.
        radius: bits of 256 up to which training images may differ and show the same picture.
        leak_radius: the same between training and evaluation images.
        threads: for decoding; None takes all cores.
        progress: told how far the reading is.

    Raises:
        ConfigError: the folder is not curated or has no training split, a radius is out of range, there are too many images, an
            evaluation set of an earlier screening is not named again, or nothing would be left.
        ShardError: a collection cannot be read.
    """
    check_radii(radius, leak_radius)
    folder = Folder(out)
    if not any(entry.path == FILE_NAME for entry in folder.files()):
        raise ConfigError(f"out = {folder}: there is no manifest.json; curate the images first.")
    manifest, threads = load(folder), threads or len(os.sched_getaffinity(0))
    if TRAIN not in manifest.splits:
        raise ConfigError(
            f"out = {folder}: no split {TRAIN!r} among {', '.join(manifest.splits)}; there is nothing to train on."
        )
    before = {place for stage in manifest.stages if stage.name == STAGE for place in stage.parameters["against"]}
    if forgotten := sorted(before - {redacted(path) for path in against}):
        raise ConfigError(
            f"against: this folder was screened against {', '.join(forgotten)} before, whose leaks would come back; "
            "name it again with --against, or curate into a new folder."
        )
    own = [(split, Collection(folder, manifest.of_split(split)), folder) for split in manifest.splits if split != TRAIN]
    others = [(f"against {redacted(path)}", open_collection(path), None) for path in against]
    training = Collection(folder, manifest.of_split(TRAIN))
    for name, collection in [(TRAIN, training), *((name, collection) for name, collection, _ in own + others)]:
        if len(collection) > MOST:
            raise ConfigError(f"{name}: {len(collection):,} images, and at most {MOST:,} are compared pair by pair.")
    train = features(training, TRAIN, keep_in=folder, threads=threads, progress=progress)
    evaluations = [
        features(collection, name, keep_in=keep_in, threads=threads, progress=progress)
        for name, collection, keep_in in own + others
    ]
    found = judge(train, evaluations, radius=radius, leak_radius=leak_radius)
    if not found.mask.keep.any():
        counts = ", ".join(f"{count:,} {reason}" for reason, count in found.mask.counts().items())
        raise ConfigError(
            f"out = {folder}: nothing would be left to train on ({counts}); is --against the same collection?"
        )
    write_mask(folder, TRAIN, found.mask, ids=train.ids)
    parameters = {
        "radius": radius,
        "leak_radius": leak_radius,
        "against": [redacted(path) for path in against],
        "fingerprint": SPEC,
    }
    _entered(manifest, found.mask, parameters).save(folder)  # last: a mask without its digest here is not followed
    return found


def _entered(manifest: Manifest, mask: KeepMask, parameters: dict[str, Any]) -> Manifest:
    """The manifest with this screening in place of an earlier one."""
    stage = Stage(
        name=STAGE,
        parameters=parameters,
        versions=VERSIONS,
        rows_in=len(mask.keep),
        rows_out=int(mask.keep.sum()),
        by_reason=mask.counts(),
        input_digest=manifest.files_digest,
    )
    stages = (*(one for one in manifest.stages if one.name != STAGE), stage)
    return manifest.override({"stages": stages, "keep": {TRAIN: mask.digest}})


def check_radii(radius: int, leak_radius: int) -> None:
    """Raise ConfigError for a radius that would join different pictures."""
    for name, value in (("radius", radius), ("leak_radius", leak_radius)):
        if not 0 <= value <= LARGEST_RADIUS:
            raise ConfigError(
                f"{name} = {value}: bits of 256 by which copies may differ, 0 to {LARGEST_RADIUS}; other pictures begin at 80."
            )


def judge(train: Features, evaluations: Sequence[Features], *, radius: int, leak_radius: int) -> Screening:
    """The decisions on training images: a pure function of their features, whatever the order of rows."""
    rank = best_copy_rank(train)
    original = _best_of_equal_pixels(train.table, rank)
    rows = np.arange(len(rank))
    distinct, copies = np.flatnonzero(original == rows), np.flatnonzero(original != rows)
    near = within(_part(train.table, distinct), radius=radius)
    near = Edges(distinct[near.first], distinct[near.second], near.distance)
    group = groups(near, rank)
    reason: list[str | None] = [None] * len(rank)
    evidence: list[bytes | None] = [None] * len(rank)
    distance = group.distance.copy()
    for row in copies:
        reason[row], evidence[row] = SAME_PIXELS, train.ids[original[row]]
    for row in np.flatnonzero(~group.kept):
        reason[row], evidence[row] = SAME_PICTURE, train.ids[group.representative[row]]
    pairs = Edges(
        np.concatenate([near.first, copies]),
        np.concatenate([near.second, original[copies]]),
        np.concatenate([near.distance, np.zeros(len(copies), np.int64)]),
    )
    leaks = {one.name: between(train.table, one.table, radius=leak_radius) for one in evaluations}
    meets = [
        (bits, one.ids[other], row)
        for one in evaluations
        for row, other, bits in zip(*(column.tolist() for column in leaks[one.name].columns), strict=True)
    ]
    component = components(pairs, len(rank))
    direct: dict[int, tuple[int, bytes]] = {}
    nearest: dict[int, tuple[int, bytes]] = {}
    for bits, identity, row in sorted(meets):
        direct.setdefault(row, (bits, identity))
        nearest.setdefault(int(component[row]), (bits, identity))
    for row in rows.tolist():
        if (found := direct.get(row) or nearest.get(int(component[row]))) is not None:
            reason[row], (distance[row], evidence[row]) = LEAKED, found
    inside = {one.name: len(within(one.table, radius=radius)) for one in evaluations}
    return Screening(KeepMask(tuple(reason), tuple(evidence), distance), leaks, inside)


def best_copy_rank(train: Features) -> NDArray[np.int64]:
    """[N], 0 for the copy to be preferred to all others: more pixels, then more bytes for each of them, then the lesser id.

    A total order without chance: ids are content hashes, so place and order of files do not count.
    """
    by_id = np.argsort(np.argsort([one.hex() for one in train.ids]))
    density = train.size / np.maximum(train.area, 1)
    order = np.lexsort((by_id, -density, -train.area))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return rank


def _best_of_equal_pixels(table: Table, rank: NDArray[np.int64]) -> NDArray[np.int64]:
    """[N], the best copy with the same pixels; itself where there is no better one."""
    order = np.argsort(rank)
    _, first, inverse = np.unique(table.pixels[order], return_index=True, return_inverse=True)
    best = np.empty(len(order), dtype=np.int64)
    best[order] = order[first][inverse]
    return best


def _part(table: Table, rows: NDArray[np.int64]) -> Table:
    return Table(table.pixels[rows], table.hashes[rows], table.thumbs[rows], table.comparable[rows])
