"""The manifest: which shards a collection has, what is in them, and how they came to be.

It is the one small file that a run needs to plan its order and to prove that the images are those it began with. It is
JSON with one line per shard, to be read by people and compared by `diff`.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import AfterValidator, ValidationError

from raydino.config import Config, explain
from raydino.shards.retries import with_retries
from raydino.shards.schema import ID_BYTES, Folder, ShardError

FILE_NAME = "manifest.json"
VERSION = 1


def _inside(path: str) -> str:
    """A manifest may come from anybody: none of its names leads out of its folder."""
    if not path or path.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", path) or "\0" in path or "://" in path:
        raise ValueError("leads out of the folder; curate the images again")
    return path


class ShardFile(Config):
    """One Parquet file of a collection."""

    path: Annotated[str, AfterValidator(_inside)]
    """Path relative to the folder, with `/`; never out of it."""
    split: str
    """Split that the rows belong to."""
    rows: int
    """Images in the file."""
    row_groups: tuple[int, ...]
    """Images in each row group, in order."""
    bytes: int
    """Size of the file."""
    digest: str
    """sha256 over relative path, size and Parquet footer."""


class Stage(Config):
    """One step of curation, with all that is needed to do it again."""

    name: str
    """What was done."""
    parameters: dict[str, Any] = {}
    """Settings that decided the outcome."""
    versions: dict[str, str] = {}
    """Versions of the software that decided the outcome."""
    seed: int = 0
    """Seed of what was random."""
    rows_in: int
    """Images that came in."""
    rows_out: int
    """Images that went on."""
    by_reason: dict[str, int] = {}
    """Images that did not, by reason."""
    input_digest: str = ""
    """sha256 of the stage's input."""


class Manifest(Config):
    """A collection of images. `files` are in the order of the collection: it defines the number of each row group and
    row.
    """

    version: int = VERSION
    """Version of this file's layout."""
    files: tuple[ShardFile, ...]
    """Shards."""
    classes: tuple[str, ...] = ()
    """Class names; label i is called `classes[i]`. Empty where there are no labels or they have no names."""
    labelled: bool = False
    """Whether any image has a label."""
    stages: tuple[Stage, ...] = ()
    """How the collection was made."""
    keep: dict[str, str] = {}
    """Digest of the keep-mask of each split that has one (see `shards.keep`)."""
    mask: str = ""
    """Name of these masks; empty for those of the folder's own screening."""

    @property
    def rows(self) -> int:
        """Images in all files."""
        return sum(file.rows for file in self.files)

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, in order of first appearance."""
        return tuple(dict.fromkeys(file.split for file in self.files))

    @property
    def digest(self) -> str:
        """sha256 that stands for what is trained on: the files, the classes and the keep-masks.

        Stages are left out, since they name places and versions: the same images curated elsewhere are the same
        collection.
        """
        if not self.keep:
            return self.files_digest
        masks = json.dumps(sorted(self.keep.items()))
        return hashlib.sha256(f"{self.files_digest}{masks}".encode()).hexdigest()

    @property
    def files_digest(self) -> str:
        """sha256 over the files' paths, splits, row groups and digests and the classes, whatever of them is kept."""
        root = hashlib.sha256()
        for file in self.files:
            root.update(json.dumps([file.path, file.split, file.row_groups, file.bytes, file.digest]).encode())
        root.update(json.dumps([self.version, self.classes, self.labelled]).encode())
        return root.hexdigest()

    def of_split(self, name: str) -> "Manifest":
        """The part of one split. Raises ShardError with the splits there are."""
        files = tuple(file for file in self.files if file.split == name)
        if not files:
            raise ShardError(
                f"split = {name!r}: there is no such split; there are: {', '.join(self.splits) or 'none'}."
            )
        keep = {split: digest for split, digest in self.keep.items() if split == name}
        return self.model_copy(update={"files": files, "keep": keep})  # `override` would add to the masks there are

    def save(self, folder: Folder) -> None:
        """Write manifest.json into `folder`: beside and renamed, for it may replace one."""
        folder.write_bytes(f"{FILE_NAME}.part", _readable(self.dump()).encode())
        folder.move(f"{FILE_NAME}.part", FILE_NAME)


def load(folder: Folder) -> Manifest:
    """Read manifest.json of `folder`. Raises ShardError naming file, field and remedy."""
    place = f"{folder}/{FILE_NAME}"
    try:
        data = json.loads(folder.read_bytes(FILE_NAME))
    except OSError as error:
        raise ShardError(
            f"{place}: cannot be read ({error}); curate the images first or give another folder."
        ) from None
    except ValueError as error:
        raise ShardError(f"{place}: not valid JSON ({error}); restore the file or curate again.") from None
    version = data.get("version") if isinstance(data, Mapping) else None
    if version != VERSION:
        raise ShardError(
            f"{place}: version = {version!r}, this software reads {VERSION}; use the software that wrote it."
        )
    try:
        return Manifest.model_validate(data)
    except ValidationError as error:
        raise ShardError(f"{place}: {explain(error)}") from None


def build(
    folder: Folder, files: Sequence[ShardFile], *, classes: Sequence[str], labelled: bool, stages: Sequence[Stage]
) -> Manifest:
    """The manifest of freshly written shards. Reads the id columns (16 bytes per image) and raises ShardError, with
    counts, if an id stands twice: the order of a run and its random crops are keyed by id.
    """
    every = np.frombuffer(b"".join(one for file in files for one in stored_ids(folder, file)), dtype=f"V{ID_BYTES}")
    distinct = len(np.unique(every))
    if distinct < len(every):
        raise ShardError(
            f"{folder}: {len(every):,} rows have {distinct:,} distinct ids, {len(every) - distinct:,} are repeats; "
            "remove exact duplicates before writing."
        )
    return Manifest(files=tuple(files), classes=tuple(classes), labelled=labelled, stages=tuple(stages))


def stored_ids(folder: Folder, file: ShardFile) -> list[bytes]:
    """The ids in a shard written here, in row order; only that column is read. Raises ShardError if it cannot be."""

    def read() -> list[bytes]:
        with folder.fs.open_input_file(folder.where(file.path)) as stream:
            parquet = pq.ParquetFile(stream, page_checksum_verification=True)
            return parquet.read(columns=["id"]).column("id").to_pylist()

    try:
        return with_retries(read)
    except (OSError, pa.ArrowException) as error:
        raise ShardError(f"{folder}/{file.path}: cannot be read ({error}); restore the file.") from None


def _readable(data: Mapping[str, Any]) -> str:
    """JSON with one line per field and, in lists of objects, one line per object."""
    fields = []
    for name, value in data.items():
        text = json.dumps(value, ensure_ascii=False)
        if isinstance(value, list) and value and isinstance(value[0], dict):
            items = ",\n    ".join(json.dumps(item, ensure_ascii=False) for item in value)
            text = f"[\n    {items}\n  ]"
        fields.append(f"  {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(fields) + "\n}\n"
