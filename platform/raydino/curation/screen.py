"""Screen: from a curated folder and evaluation sets to a keep-mask beside the shards, which stay as they are.

    features (of the ingest, or made here) -> findings (pairs, kept) -> judge (thresholds) -> keep-mask -> manifest

All splits but `train` count as evaluation sets and lose nothing.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raydino.config import ConfigError
from raydino.curation.balance import hierarchy, rule_of_thumb, weights
from raydino.curation.cosine import Vectors
from raydino.curation.embed import Descriptor, embed
from raydino.curation.features import VERSIONS, Progress, features, features_stamp
from raydino.curation.findings import Findings, Images, find
from raydino.curation.fingerprint import SPEC
from raydino.curation.judge import Limits, Verdict, judge
from raydino.curation.retrieve import NEIGHBOURS, Retrieved, in_cells_of_queries, near_queries
from raydino.curation.spread import Spread, here
from raydino.shards.keep import ALL, KeepMask, write_mask
from raydino.shards.manifest import FILE_NAME, Manifest, Stage, load
from raydino.shards.reader import Collection, open_collection
from raydino.shards.schema import Folder, redacted

TRAIN = "train"
STAGE = "screen"
NOT_RETRIEVED = "not retrieved"


@dataclass(frozen=True)
class Embedding:
    """What descriptors are used for."""

    descriptor: Descriptor
    neighbours: int | None = None
    """Nearest images that each is compared with; None for all."""
    towards: str | None = None
    """A folder of queries: of the images that stay only those near to one of them are kept."""
    retrieved: int = NEIGHBOURS
    """Images for each query."""
    cells: int | None = None
    """Cells of the images that stay, of which those with several queries are kept instead; None for the nearest images."""
    balance: float | None = None
    """Rows of an epoch as a share of those that stay, balanced by weights; None leaves all weights 1."""
    seed: int = 0
    """Of all cells."""


@dataclass(frozen=True)
class Screening:
    """What was found and decided."""

    folder: Folder
    manifest: Manifest
    """With this screening in it."""
    collections: Mapping[str, Collection]
    """The training images and the evaluation sets, by name."""
    findings: Findings
    limits: Limits
    verdict: Verdict
    name: str
    """Of the keep-mask; empty for the folder's own."""

    @property
    def stage(self) -> str:
        """Its name in the manifest."""
        return _stage(self.name)

    @property
    def mask(self) -> KeepMask:
        """Of the training split."""
        return self.verdict.mask


def screen(
    out: str,
    *,
    against: Sequence[str] = (),
    limits: Limits | None = None,
    embedding: Embedding | None = None,
    name: str = "",
    threads: int | None = None,
    spread: Spread | None = None,
    progress: Progress = lambda _stage, _done, _total: None,
) -> Screening:
    """Judge the training split of the curated folder `out`, and write its keep-mask and what was done into its manifest.

    Args:
        out: a folder written by ingest; all its other splits are evaluation sets.
        against: further evaluation sets, curated or Hugging Face style Parquet, with all their splits.
        limits: thresholds; None takes the defaults.
        embedding: descriptors beside the fingerprints, and what else they are used for.
        name: of the keep-mask, beside the folder's own; a run follows it with `data.keep`. Empty is the folder's own.
        threads: for decoding; None takes all cores.
        spread: where images are compared; None takes those threads.
        progress: told how far each stage is.

    Raises:
        ConfigError: the folder is not curated or has no training split, an evaluation set of an earlier screening is not named
            again, or nothing would be left.
        ShardError: a collection cannot be read.
    """
    folder, limits = Folder(out), limits or Limits()
    threads = threads or len(os.sched_getaffinity(0))
    manifest = curated(folder)
    if name and (name == ALL or not name.replace("-", "").replace("_", "").isalnum()):
        raise ConfigError(f"name = {name!r}: give letters, digits, - and _, and not {ALL!r}.")
    check_against(manifest, against)
    images = _Reader(folder, embedding, threads, progress)
    splits = (TRAIN, *(split for split in manifest.splits if split != TRAIN))
    collections = {split: Collection(folder, manifest.of_split(split)) for split in splits}
    collections |= {f"against {redacted(path)}": open_collection(path) for path in against}
    train, *evaluations = [images.of(one, name, own=name in splits) for name, one in collections.items()]
    neighbours = embedding.neighbours if embedding else None
    spread = spread or here(threads)
    found = find(
        folder,
        manifest,
        train,
        evaluations,
        radius=limits.radius,
        leak_radius=limits.leak_radius,
        spread=spread,
        neighbours=neighbours,
        progress=progress,
    )
    verdict = judge(found, limits)
    if embedding is not None:
        verdict = _shaped(verdict, found, embedding, images)
    if not verdict.mask.keep.any():
        counts = ", ".join(f"{count:,} {reason}" for reason, count in verdict.mask.counts().items())
        raise ConfigError(
            f"out = {folder}: nothing would be left to train on ({counts}); is --against the same collection?"
        )
    write_mask(folder, TRAIN, verdict.mask, ids=train.features.ids, name=name)
    manifest = _entered(manifest, verdict.mask, limits, embedding, against, name)
    manifest.save(folder)  # last: a mask without its digest here is not followed
    return Screening(folder, manifest, collections, found, limits, verdict, name)


def _stage(name: str) -> str:
    return f"{STAGE} {name}".rstrip()


def curated(folder: Folder) -> Manifest:
    """The manifest of a folder that can be screened. Raises ConfigError."""
    if not any(entry.path == FILE_NAME for entry in folder.files()):
        raise ConfigError(f"out = {folder}: there is no manifest.json; curate the images first.")
    manifest = load(folder)
    if TRAIN not in manifest.splits:
        raise ConfigError(
            f"out = {folder}: no split {TRAIN!r} among {', '.join(manifest.splits)}; there is nothing to train on."
        )
    return manifest


def check_against(manifest: Manifest, against: Sequence[str]) -> None:
    """Raise ConfigError if an evaluation set of an earlier screening is not among `against`."""
    before = {place for stage in manifest.stages if stage.name == STAGE for place in stage.parameters["against"]}
    if forgotten := sorted(before - {redacted(path) for path in against}):
        raise ConfigError(
            f"against: this folder was screened against {', '.join(forgotten)} before, whose leaks would come back; "
            "name it again with --against, or curate into a new folder."
        )


@dataclass(frozen=True)
class _Reader:
    """Reads what is known of images, or finds it out."""

    folder: Folder
    embedding: Embedding | None
    threads: int
    progress: Progress

    def of(self, collection: Collection, name: str, *, own: bool) -> Images:
        """One set; features of own splits are kept in the folder, descriptors of all."""
        keep_in = self.folder if own else None
        known = features(collection, name, keep_in=keep_in, threads=self.threads, progress=self.progress)
        stamp = features_stamp(collection.manifest)
        if self.embedding is None:
            return Images(known, stamp)
        return Images(known, stamp, self.vectors(collection, name), self.embedding.descriptor.digest)

    def vectors(self, collection: Collection, name: str) -> Vectors:
        """Unit vectors of a collection, read if they were made before. Raises ShardError if it cannot be read."""
        assert self.embedding is not None
        made = self.embedding.descriptor
        key = hashlib.sha256(f"{collection.manifest.files_digest} {made.digest} {made.size} {VERSIONS}".encode())
        path, shape = f"embeddings/{key.hexdigest()[:16]}.f16", (len(collection), made.dim)
        if any(entry.path == path and entry.size == 2 * np.prod(shape) for entry in self.folder.files()):
            return np.frombuffer(self.folder.read_bytes(path), np.float16).reshape(shape)

        def told(_: str, done: int, total: int) -> None:
            self.progress(f"describing {name}", done, total)

        vectors = embed(collection, made, threads=self.threads, progress=told)
        self.folder.write_bytes(f"{path}.part", vectors.tobytes())
        self.folder.move(f"{path}.part", path)
        return vectors


def _shaped(verdict: Verdict, found: Findings, embedding: Embedding, images: _Reader) -> Verdict:
    """The verdict with retrieval and balance, which decide among the rows that stay."""
    mask, vectors = verdict.mask, found.train.vectors
    assert vectors is not None
    reason, weight = list(mask.reason), None
    if embedding.towards is not None:
        staying = np.flatnonzero(mask.keep)
        queries = images.vectors(open_collection(embedding.towards), "queries")
        asked = _asked(_described(vectors[staying]), _described(queries), embedding)
        for row in np.setdiff1d(staying, staying[asked.rows]).tolist():
            reason[row] = NOT_RETRIEVED
    mask = KeepMask(tuple(reason), mask.evidence, mask.distance)
    if embedding.balance is not None:
        staying = np.flatnonzero(mask.keep)
        levels, steps, points = rule_of_thumb(len(staying))
        tree = hierarchy(
            vectors[staying].astype(np.float32),
            levels=levels,
            resampling_steps=steps,
            points_per_cell=points,
            seed=embedding.seed,
        )
        weight = np.ones(len(mask.keep), np.float32)
        weight[staying] = weights(tree, max(1, round(embedding.balance * len(staying))), seed=embedding.seed)
    shaped = KeepMask(mask.reason, mask.evidence, mask.distance, weight)
    return Verdict(shaped, verdict.representative, verdict.leaks, verdict.leaked, verdict.inside)


def _asked(pool: NDArray[np.float32], queries: NDArray[np.float32], embedding: Embedding) -> Retrieved:
    """Rows of the pool that the queries ask for, by either of the two published ways."""
    if embedding.cells is None:
        return near_queries(pool, queries, neighbours=embedding.retrieved)
    return in_cells_of_queries(pool, queries, cells=embedding.cells, seed=embedding.seed)


def _described(vectors: Vectors) -> NDArray[np.float32]:
    """As float32, with a direction of their own for images without one: those that could not be decoded."""
    out = vectors.astype(np.float32)
    out[~out.any(axis=1), 0] = 1e-6
    return out


def _entered(
    manifest: Manifest, mask: KeepMask, limits: Limits, embedding: Embedding | None, against: Sequence[str], name: str
) -> Manifest:
    """The manifest with this screening in place of an earlier one of that name."""
    described = {}
    if embedding is not None:
        described = {
            "descriptor": embedding.descriptor.name,
            "kind": embedding.descriptor.kind,
            "weights": embedding.descriptor.digest,
            "neighbours": embedding.neighbours,
            "towards": embedding.towards and redacted(embedding.towards),
            "retrieved": embedding.retrieved,
            "cells": embedding.cells,
            "balance": embedding.balance,
        }
    stage = Stage(
        name=_stage(name),
        parameters={
            **limits.changed,
            **described,
            "against": [redacted(path) for path in against],
            "fingerprint": SPEC,
        },
        versions=VERSIONS,
        seed=embedding.seed if embedding else 0,
        rows_in=len(mask.keep),
        rows_out=int(mask.keep.sum()),
        by_reason=mask.counts(),
        input_digest=manifest.files_digest,
    )
    stages = (*(one for one in manifest.stages if one.name != stage.name), stage)
    return manifest.override({"stages": stages, **({} if name else {"keep": {TRAIN: mask.digest}})})
