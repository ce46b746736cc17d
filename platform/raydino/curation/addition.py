"""A further batch for a curated folder, written so that the folder is whole at every moment.

Nothing that is there is decoded, moved or renumbered: shards of the batch stand behind those before, and every table grows at its
end. The batch's own tables lie apart until all its images are judged; then the grown tables take the place of the old ones, and
the manifest comes last. Stopped in between, the old manifest still stands for the old rows, of which each grown table knows the
number, and the next addition begins from them.
"""

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from raydino.config import ConfigError
from raydino.curation.archives import SourceError
from raydino.curation.books import opened
from raydino.curation.features import BEFORE, STAMP, features_path, features_stamp, known_rows
from raydino.curation.ledger import DECISIONS, QUARANTINE, SUMMARY, Rules, Table
from raydino.shards.keep import mask_path
from raydino.shards.manifest import FILE_NAME, Manifest, Stage, load, stored_ids
from raydino.shards.schema import Folder

PLACE = ".adding/"  # hidden: no reader takes its tables for shards
STAGE = "add"
ROWS = 10_000  # copied at once; features of an image are 2 to 4 kB
_WHOLE = f"{PLACE}whole/"
_OURS = re.compile(r"^(data/(\..+\.part|.+-b\d{3,}-\d{5,}-of-\d{5,}\.parquet)|(features|keep)/.+\.parquet)$")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Addition:
    """A curated folder about to get a batch."""

    folder: Folder
    manifest: Manifest
    """Before the batch."""
    batch: int
    """Number of the batch; the folder's first ingest is 0."""
    summaries: tuple[dict[str, Any], ...]
    """Counts of each batch so far."""

    def rules(self, max_bad: float, eval_fraction: float | None, seed: int | None) -> Rules:
        """The rules of the batch: the folder's own, by which equal content goes to the same split whenever it comes.

        Raises:
            ConfigError: another `eval_fraction` or `seed` is asked for.
        """
        stage = next(stage for stage in self.manifest.stages if stage.name == "deduplicate")
        recorded = (("eval_fraction", eval_fraction, stage.parameters["eval_fraction"]), ("seed", seed, stage.seed))
        for name, asked, there in recorded:
            if asked is not None and asked != there:
                raise ConfigError(
                    f"{name} = {asked}: {self.folder} was curated with {there}; leave it out, or curate into a new folder."
                )
        return Rules(max_bad, stage.parameters["eval_fraction"], stage.seed)

    def classes(self, names: Sequence[str]) -> tuple[str, ...]:
        """Class names with those of the batch behind. Raises SourceError if the images there have numbers without names."""
        if names and self.manifest.labelled and not self.manifest.classes:
            raise SourceError(
                f"sources: they name {len(names)} classes, while the labels in {self.folder} are numbers without names; "
                "curate into a new folder."
            )
        return tuple(dict.fromkeys((*self.manifest.classes, *names)))

    def ids(self) -> Iterator[bytes]:
        """Ids of all images there."""
        return (one for file in self.manifest.files for one in stored_ids(self.folder, file))

    def commit(self, fresh: Manifest, summary: dict[str, Any]) -> Manifest:
        """Append the batch, described by a manifest and a summary of its own, and return the folder's new manifest.

        Raises:
            ConfigError: something else has changed the folder since the addition began.
        """
        manifest = self._grown(fresh)
        tables = self._tables(manifest)
        batches = [{name: one[name] for name in one if name != "digest"} for one in (*self.summaries, summary)]
        whole = {
            "digest": manifest.digest,
            **_together(batches),
            "classes": len(manifest.classes),
            "batches": batches,
        }
        self.folder.write_bytes(_WHOLE + SUMMARY, readable(whole))
        if load(self.folder) != self.manifest:
            raise ConfigError(f"out = {self.folder}: its manifest has changed meanwhile; add the batch again.")
        for path in (*tables, SUMMARY):
            self.folder.move(_WHOLE + path, path)
        manifest.save(self.folder)
        if dropped := sorted(set(self.manifest.keep) - set(manifest.keep)):
            _logger.warning(
                "%s: %d images were added, so the keep-mask of %s no longer fits and is gone; screen the folder again.",
                self.folder,
                fresh.rows,
                ", ".join(dropped),
            )
        _clear(self.folder, manifest)
        return manifest

    def _grown(self, fresh: Manifest) -> Manifest:
        """The manifest of all batches. A mask stays only where no image came: a new evaluation image may be a leak, too."""
        old = self.manifest
        rows = {split: old.of_split(split).rows for split in old.splits}
        digests = {split: old.of_split(split).files_digest for split in old.splits}
        stage = Stage(
            name=STAGE,
            parameters={"batch": self.batch, "rows": rows, "files": digests},
            rows_in=old.rows,
            rows_out=old.rows,
            input_digest=old.files_digest,
        )
        changes = {
            "files": (*old.files, *fresh.files),
            "classes": fresh.classes,
            "labelled": old.labelled or fresh.labelled,
            "stages": (*old.stages, stage, *fresh.stages),
            "keep": {} if fresh.rows else old.keep,
        }
        return old.model_copy(update=changes)  # `override` would keep the masks there are

    def _tables(self, manifest: Manifest) -> list[str]:
        """Write the grown tables apart, and name them in the order in which they are to be moved."""
        grown = []
        there = {entry.path for entry in self.folder.files()}
        for split in manifest.splits:
            path, stamp = features_path(split), features_stamp(manifest.of_split(split))
            marks, parts = {STAMP: stamp}, list[tuple[str, int | None]]()
            if split in self.manifest.splits:
                before = self.manifest.of_split(split)
                earlier = features_stamp(before)
                if stamp == earlier or not self._has_features(path, earlier, before.rows):
                    continue  # nothing new, or of other software: then screening computes them anew
                marks[BEFORE] = f"{before.rows} {earlier}"
                parts.append((path, before.rows))
            if PLACE + path in there:
                parts.append((PLACE + path, None))
            self._join(path, parts, marks)
            grown.append(path)
        decided, bad = _booked(self.manifest)
        for path, rows in ((DECISIONS, decided), (QUARANTINE, bad)):
            self._join(path, [(path, rows), (PLACE + path, None)], {})
            grown.append(path)
        return grown

    def _has_features(self, path: str, stamp: str, rows: int) -> bool:
        try:
            with opened(self.folder, path) as file:
                return known_rows(file.metadata.metadata, stamp, file.metadata.num_rows) == rows
        except ConfigError:  # not there, or damaged
            return False

    def _join(self, path: str, parts: Sequence[tuple[str, int | None]], marks: Mapping[bytes, str]) -> None:
        """Write below _WHOLE the first rows of each of the tables, None for all, one after another."""
        with opened(self.folder, parts[-1][0]) as file:
            schema = file.schema_arrow.remove_metadata()
        with closing(Table(self.folder, _WHOLE + path, schema)) as table:
            for source, rows in parts:
                for some in _first(self.folder, source, rows):
                    table.copy(some)
            table.close(marks)


def begin_addition(folder: Folder) -> Addition:
    """A curated folder ready for a batch; what an addition that did not end has left there is removed.

    Raises:
        ConfigError: it was not written by ingest, or books are missing or are those of another manifest.
    """
    there = {entry.path for entry in folder.files()}
    if FILE_NAME not in there:
        raise ConfigError(f"out = {folder}: there is no {FILE_NAME} to add to; ingest without add, into a new folder.")
    manifest = load(folder)
    names = [stage.name for stage in manifest.stages]
    missing = [path for path in (DECISIONS, QUARANTINE, SUMMARY) if path not in there]
    if missing or "deduplicate" not in names:
        what = f"no {', '.join(missing)}" if missing else "no stage 'deduplicate' in its manifest"
        raise ConfigError(f"out = {folder}: {what}; restore it, or curate into a new folder.")
    batches = 1 + names.count(STAGE)
    summary = json.loads(folder.read_bytes(SUMMARY))
    summaries = tuple(summary.get("batches", [summary])[:batches])
    if sum(one["rows_in"] for one in summaries) != _booked(manifest)[0]:
        raise ConfigError(
            f"out = {folder}: {SUMMARY} is not that of {FILE_NAME}; restore it, or curate into a new folder."
        )
    _clear(folder, manifest)
    # A split of the folder may itself be named like a batch.
    number = next(n for n in range(batches, 2**31) if not any(f"-b{n:03d}-" in file.path for file in manifest.files))
    return Addition(folder, manifest, number, summaries)


def readable(summary: Mapping[str, Any]) -> bytes:
    """The content of summary.json."""
    return json.dumps(summary, indent=2).encode() + b"\n"


def _clear(folder: Folder, manifest: Manifest) -> None:
    """Remove what additions have left: tables of batches, shards, features and masks that the manifest does not know."""
    known = {file.path for file in manifest.files} | {features_path(split) for split in manifest.splits}
    known |= {mask_path(split) for split in manifest.keep}
    for entry in folder.files():
        if entry.path not in known and _OURS.match(entry.path):
            folder.delete(entry.path)
    folder.delete_folder(PLACE.rstrip("/"))


def _booked(manifest: Manifest) -> tuple[int, int]:
    """Rows of the tables of decisions and of undecodable images, by the stages; after a stop the tables may have more."""
    stages = [stage for stage in manifest.stages if stage.name == "validate"]
    return sum(stage.rows_in for stage in stages), sum(sum(stage.by_reason.values()) for stage in stages)


def _first(folder: Folder, path: str, rows: int | None) -> Iterator[pa.Table]:
    """The first rows of a table, None for all, some at a time. Raises ConfigError if it has fewer."""
    with opened(folder, path) as file:
        there = file.metadata.num_rows
        left = there if rows is None else rows
        if there < left:
            raise ConfigError(f"{folder}/{path}: {there:,} rows, the manifest says {left:,}; restore the file.")
        for batch in file.iter_batches(ROWS):
            if not left:
                return
            some = pa.Table.from_batches([batch.slice(0, left)])
            left -= len(some)
            yield some


def _together(parts: Sequence[Any]) -> Any:
    """Sums of counts, name by name where they have names."""
    if not isinstance(parts[0], Mapping):
        return sum(parts)
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: _together([part[name] for part in parts if name in part]) for name in names}
