"""The books of an ingest: one decision per image, a quarantine for bad ones, counts, and the shards of those that stay.

The tables are written as the decisions come and stay after an error, so that what went wrong can be looked up; shards
of an unfinished ingest are removed.
"""

import hashlib
import importlib.metadata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from raydino.config import ConfigError
from raydino.curation.archives import SourceError
from raydino.curation.features import SCHEMA, STAMP, features_path, features_stamp
from raydino.curation.notes import notes
from raydino.curation.sources import Part, SourceImage
from raydino.data.decode import ImageHeader, Undecodable
from raydino.keyed import key64
from raydino.shards.manifest import Manifest, ShardFile, Stage
from raydino.shards.schema import ID, Folder
from raydino.shards.writer import ShardWriter

DECISIONS = "decisions.parquet"
QUARANTINE = "quarantine.parquet"
SUMMARY = "summary.json"
DUPLICATE = "duplicate"
EARLY = 1000  # bad images after which a hopeless source is given up before its end

_DECISIONS = pa.schema(
    [
        ("id", ID),
        ("path", pa.string()),
        ("kept", pa.bool_()),
        ("reason", pa.string()),
        ("evidence_id", ID),
        ("distance", pa.float32()),
    ]
)
_QUARANTINE = pa.schema(
    [("path", pa.string()), ("id", ID), ("reason", pa.string()), ("detail", pa.string()), ("source", pa.string())]
)


class TooManyBad(ConfigError):
    """More images could not be decoded than `max_bad` allows."""


@dataclass(frozen=True)
class Input:
    """What is to be ingested: the images of one source, listed but not read."""

    name: str
    """Where they come from, for the tables; without credentials."""
    total: int
    """How many there are."""
    parts: Sequence[Part]
    """Read them, one after another in a stable order."""
    classes: tuple[str, ...] = ()
    """Class names that may occur."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Files passed over, by kind."""


@dataclass(frozen=True)
class Rules:
    """What decides which images go where."""

    max_bad: float = 0.05
    """Largest share of undecodable images."""
    eval_fraction: float = 0.0
    """Share of the images without a split that goes to `test`, chosen by content."""
    seed: int = 0
    """Seed of that choice."""

    def __post_init__(self) -> None:
        for name, value in (("max_bad", self.max_bad), ("eval_fraction", self.eval_fraction)):
            if not 0 <= value <= 1:
                raise ConfigError(f"{name} = {value}: it is a share, from 0 to 1.")

    def split(self, image: SourceImage, identity: bytes) -> str:
        """The split of an image: what its source says, else `test` for a share of all contents."""
        if image.split is not None:
            return image.split
        return "test" if key64(self.seed, "split", identity) < self.eval_fraction * 2**63 else "train"


@dataclass(frozen=True)
class Judgement:
    """What was found out about one image."""

    source: str
    image: SourceImage
    verdict: ImageHeader | Undecodable
    features: dict[str, Any]
    """Its row in the table of features."""


class Table:
    """A Parquet table written as its rows come."""

    def __init__(self, folder: Folder, path: str, schema: pa.Schema) -> None:
        self._stream = folder.create(path)
        self._writer = pq.ParquetWriter(self._stream, schema, compression="zstd", write_page_checksum=True)
        self._schema, self._rows = schema, []

    def add(self, *values: object) -> None:
        """Append a row, its values in the order of the schema."""
        self._rows.append(dict(zip(self._schema.names, values, strict=True)))
        if len(self._rows) >= 10_000:
            self._flush()

    def copy(self, rows: pa.Table) -> None:
        """Append rows as they are."""
        self._flush()
        self._writer.write_table(rows)

    def close(self, metadata: Mapping[bytes, str] | None = None) -> None:
        """Write what is left and finish the file; a second time does nothing."""
        if self._stream.closed:
            return
        self._flush()
        self._writer.add_key_value_metadata(dict(metadata or {}))
        self._writer.close()
        self._stream.close()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []


class Outputs:
    """The files of a curated folder while they are written. After an error shards and features are removed, other tables stay.

    `batch` is 0 for a new folder. The tables of a later one go below `place`, its shards beside those there are.
    """

    def __init__(
        self, folder: Folder, classes: tuple[str, ...], *, rows_per_group: int, batch: int = 0, place: str = ""
    ) -> None:
        self.folder, self.classes, self.rows_per_group = folder, classes, rows_per_group
        self.batch, self.place = batch, place
        self.decisions = Table(folder, place + DECISIONS, _DECISIONS)
        self.quarantine = Table(folder, place + QUARANTINE, _QUARANTINE)
        self.writers: dict[str, ShardWriter] = {}
        self.features: dict[str, Table] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.decisions.close()
        self.quarantine.close()
        for split, table in self.features.items():
            table.close()
            if kind is not None:
                self.folder.delete(self.place + features_path(split))
        for writer in self.writers.values():
            writer.discard()

    def decide(self, identity: bytes, path: str, *, reason: str | None = None, evidence: bytes | None = None) -> None:
        """Enter one decision; without a reason to leave it out the image is kept. `evidence` is the id of the image
        that it repeats.
        """
        self.decisions.add(identity, path, reason is None, reason, evidence, None if evidence is None else 0.0)

    def writer(self, split: str) -> ShardWriter:
        """The writer of a split."""
        if split not in self.writers:
            self.writers[split] = ShardWriter(
                self.folder, split, classes=self.classes, rows_per_group=self.rows_per_group, batch=self.batch
            )
            self.features[split] = Table(self.folder, self.place + features_path(split), SCHEMA)
        return self.writers[split]

    def finish(self) -> list[ShardFile]:
        """Close all shards and describe them, in order of the splits' first image."""
        return [file for writer in self.writers.values() for file in writer.close()]

    def stamp(self, manifest: Manifest) -> None:
        """Close the tables of features, marked as those of this manifest's images."""
        for split, table in self.features.items():
            table.close({STAMP: features_stamp(manifest.of_split(split))})


class Ledger:
    """Enters judgements in order: quarantine, duplicate or shard, and counts. `kept` are ids of images kept before."""

    def __init__(self, outputs: Outputs, rules: Rules, total: int, *, kept: Iterable[bytes] = ()) -> None:
        self.outputs, self.rules, self.total = outputs, rules, total
        self.numbers = {name: number for number, name in enumerate(outputs.classes)}
        self.seen = self.labelled = 0
        self.kept = set(kept)
        self.bad: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.by_split: Counter[str] = Counter()
        self.digests = {"validate": hashlib.sha256(), "deduplicate": hashlib.sha256()}

    def enter(self, found: Judgement) -> None:
        """Decide on one image. Raises TooManyBad as soon as `max_bad` cannot be kept any more."""
        image, identity, verdict = found.image, found.features["id"], found.verdict
        self.seen += 1
        self.digests["validate"].update(identity)
        if isinstance(verdict, Undecodable):
            self.bad[verdict.reason] += 1
            self.outputs.quarantine.add(image.path, identity, verdict.reason, verdict.detail, found.source)
            self.outputs.decide(identity, image.path, reason=verdict.reason)
            self.check(final=False)
            return
        self.notes.update(notes(verdict, image.path))
        self.digests["deduplicate"].update(identity)
        if identity in self.kept:
            self.outputs.decide(identity, image.path, reason=DUPLICATE, evidence=identity)
            return
        split, label = self.rules.split(image, identity), self._label(found)
        self.outputs.writer(split).add(
            image.data,
            path=image.path,
            label=label,
            format=verdict.format,
            width=verdict.width,
            height=verdict.height,
            mode=verdict.mode,
        )
        self.outputs.features[split].add(*found.features.values())
        self.kept.add(identity)
        self.by_split[split] += 1
        self.labelled += label is not None
        self.outputs.decide(identity, image.path)

    def _label(self, found: Judgement) -> int | None:
        image = found.image
        if image.class_name is not None:
            return self.numbers[image.class_name]
        if image.label is not None and self.numbers:
            raise SourceError(
                f"{found.source}: {image.path} has the label {image.label} without a name, while other images "
                "have class names; ingest the sources apart, or name all classes."
            )
        return image.label

    def check(self, *, final: bool) -> None:
        """Raise TooManyBad as soon as the rest of the source cannot mend the share, and ConfigError if nothing is left."""
        bad = sum(self.bad.values())
        total = self.seen if final else max(self.total, self.seen)
        place = f"{self.outputs.folder}/{self.outputs.place}{QUARANTINE}"
        if bad > self.rules.max_bad * total and (final or bad >= EARLY):
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.bad.most_common())
            raise TooManyBad(
                f"max_bad = {self.rules.max_bad:g}: {bad:,} of {self.seen:,} images cannot be decoded ({reasons}); "
                f"see {place}, mend the source or raise max_bad."
            )
        if final and not self.kept:
            raise SourceError(f"sources: none of {self.seen:,} images is usable; see {place}.")

    def stages(self, inputs: Sequence[Input]) -> list[Stage]:
        """What was done, for the manifest."""
        versions = {name: importlib.metadata.version(name) for name in ("pillow", "simplejpeg", "pyarrow")}
        good, fresh = self.seen - sum(self.bad.values()), sum(self.by_split.values())
        batch = {"batch": self.outputs.batch} if self.outputs.batch else {}
        return [
            Stage(
                name="validate",
                parameters={"sources": [item.name for item in inputs], "max_bad": self.rules.max_bad, **batch},
                versions=versions,
                rows_in=self.seen,
                rows_out=good,
                by_reason=dict(sorted(self.bad.items())),
                input_digest=self.digests["validate"].hexdigest(),
            ),
            Stage(
                name="deduplicate",
                parameters={"by": "sha256", "eval_fraction": self.rules.eval_fraction, **batch},
                versions=versions,
                seed=self.rules.seed,
                rows_in=good,
                rows_out=fresh,
                by_reason={DUPLICATE: good - fresh},
                input_digest=self.digests["deduplicate"].hexdigest(),
            ),
        ]

    def summary(self, manifest: Manifest, inputs: Sequence[Input]) -> dict[str, Any]:
        """Counts for summary.json, of this ingest alone."""
        skipped = sum((item.skipped for item in inputs), Counter())
        return {
            "digest": manifest.digest,
            "rows_in": self.seen,
            "rows_out": sum(self.by_split.values()),
            "splits": dict(sorted(self.by_split.items())),
            "labelled": self.labelled,
            "classes": len(manifest.classes),
            "stages": {stage.name: stage.by_reason for stage in self.stages(inputs)},
            "skipped": dict(sorted(skipped.items())),
            "notes": dict(sorted(self.notes.items())),
        }
