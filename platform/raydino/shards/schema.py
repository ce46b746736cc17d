"""The layout of shards on disk: where a folder is, how its files are named, what columns and metadata they have.

Shards are Parquet in the Hugging Face image layout, so that every tool that reads such datasets reads these, and the
reader here takes datasets made elsewhere as they are. WebDataset tars were the alternative: one torn tar stops a
loader, and there is no reading of one column. A `Folder` hides whether the bytes lie on a local disk or behind s3://,
gs:// or any fsspec URI.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs
from pyarrow import fs

from raydino.config import ConfigError
from raydino.shards.retries import is_transient, with_retries

ID = pa.binary(16)
ID_BYTES = 16  # half of a sha256: the chance that two of 10⁹ images collide is 10⁻²¹
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TAIL = 1 << 16  # read at the end of a file in one request; holds most footers
SPLITS = ("train", "test", "validation", "val", "valid", "dev", "eval")
_NUMBERED = re.compile(r"^(?P<split>\w[\w.-]*?)(-b\d{3,})?-\d{5,}-of-\d{5,}\b")  # -b001: a batch added later


class ShardError(ConfigError):
    """A shard or manifest that cannot be used. The message names the file, the row group if any, and the remedy."""


class ShardUnreachable(ShardError):
    """Storage that did not answer, retries included: it says nothing against the shard, and may pass."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file below a folder: its path relative to the folder, with `/`, and its size in bytes."""

    path: str
    size: int


class Folder:
    """A folder by local path or URI. Pickles as its address, so it can travel to other processes.

    pyarrow's own file systems come first (s3://, gs://, hdfs://, file://), then whatever fsspec knows (memory://,
    az://, …).
    """

    def __init__(self, address: str | Path) -> None:
        self.address = str(address)
        self.fs, self.root = _resolve(self.address)

    def __reduce__(self) -> tuple[type["Folder"], tuple[str]]:
        return Folder, (self.address,)

    def __str__(self) -> str:
        return redacted(self.address)

    def where(self, path: str) -> str:
        """The path that the file system understands."""
        return f"{self.root}/{path}" if path else self.root

    def files(self) -> list[FileEntry]:
        """All files below the folder in order of their paths; empty where there is no such folder. Raises ShardError where
        storage refuses to list it."""
        if isinstance(self.fs, fs.LocalFileSystem):
            return sorted(_walk(Path(self.root)), key=lambda entry: entry.path)
        selector = fs.FileSelector(self.root, recursive=True, allow_not_found=True)
        try:
            found = with_retries(lambda: self.fs.get_file_info(selector))
        except OSError as error:
            kind, remedy = (
                (ShardUnreachable, "it may pass")
                if is_transient(error)
                else (ShardError, "check address and credentials")
            )
            raise kind(f"{self}: cannot be listed ({redacted(str(error))}); {remedy}.") from None
        start = len(self.root.rstrip("/")) + 1
        entries = [FileEntry(info.path[start:], info.size or 0) for info in found if info.type == fs.FileType.File]
        return sorted(entries, key=lambda entry: entry.path)

    def read_bytes(self, path: str, *, at_most: int = -1) -> bytes:
        """One file, or its first `at_most` bytes."""

        def read() -> bytes:
            if isinstance(self.fs, fs.LocalFileSystem):  # names on a disk need not be UTF-8, which pyarrow insists on
                with Path(self.root, path).open("rb") as local:
                    return local.read(at_most)
            with self.fs.open_input_file(self.where(path)) as remote:
                return remote.read(None if at_most < 0 else at_most)

        return with_retries(read)

    def write_bytes(self, path: str, data: bytes) -> None:
        """Write one file, making the folders above it."""
        with self.create(path) as stream:
            stream.write(data)

    def read_table(self, path: str, columns: Sequence[str] | None = None) -> pa.Table:
        """A whole Parquet file, or some columns of it, page checksums verified."""

        def read() -> pa.Table:
            with self.fs.open_input_file(self.where(path)) as stream:
                return pq.ParquetFile(stream, page_checksum_verification=True).read(columns=columns)

        return with_retries(read)

    def write_table(self, path: str, table: pa.Table) -> None:
        """Write a Parquet file beside and rename it, so that nobody ever meets half of it."""
        part = f"{path}.part"
        with self.create(part) as stream:
            pq.write_table(table, stream, compression="zstd", write_page_checksum=True)
        self.move(part, path)

    def create(self, path: str) -> pa.NativeFile:
        """A stream that writes one file, making the folders above it. Nothing is compressed on the way."""
        self.fs.create_dir(self.where(path.rpartition("/")[0]), recursive=True)
        return self.fs.open_output_stream(self.where(path), compression=None)

    def move(self, source: str, target: str) -> None:
        """Rename a file inside the folder."""
        self.fs.move(self.where(source), self.where(target))

    def delete(self, path: str) -> None:
        """Remove one file."""
        self.fs.delete_file(self.where(path))

    def delete_folder(self, path: str) -> None:
        """Remove a folder inside the folder and all below it, if it is there."""
        if self.fs.get_file_info(self.where(path)).type == fs.FileType.Directory:
            self.fs.delete_dir(self.where(path))


def _walk(root: Path) -> Iterator[FileEntry]:
    """Regular files below a local folder. Links are followed, since data sets are often made of them, but no folder is
    entered twice, so a link to a folder above ends there. Pipes and devices are left out: reading one could wait for
    ever.
    """
    entered: set[tuple[int, int]] = set()
    for place, folders, names in os.walk(root, followlinks=True):
        status = Path(place).stat()
        if (status.st_dev, status.st_ino) in entered:
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        folders.sort()
        for name in names:
            path = Path(place, name)
            if path.is_file():
                yield FileEntry(path.relative_to(root).as_posix(), path.stat().st_size)


def _resolve(address: str) -> tuple[fs.FileSystem, str]:
    if "://" not in address:
        return fs.LocalFileSystem(), str(Path(address).expanduser().absolute())
    try:
        filesystem, root = fs.FileSystem.from_uri(address)
        return filesystem, root.rstrip("/")
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass  # a scheme that pyarrow does not know, or was built without
    try:
        other, root = url_to_fs(address)
    except (ValueError, ImportError) as error:
        known = ", ".join(sorted(set(fsspec.available_protocols()))[:40])
        raise ShardError(f"{redacted(address)}: {error}; give a local path or a URI of one of: {known}.") from None
    return fs.PyFileSystem(fs.FSSpecHandler(other)), str(root).rstrip("/")


def redacted(address: str) -> str:
    """The address without `user:password@`, fit for messages and manifests."""
    return re.sub(r"(?<=://)[^/@]*@", "", address)


def content_id(data: bytes) -> bytes:
    """The id of an image: the first 16 bytes of the sha256 of its original bytes."""
    return hashlib.sha256(data).digest()[:ID_BYTES]


def is_hidden(path: str) -> bool:
    """Whether any part of a path begins with a dot, as unfinished and private files do."""
    return any(part.startswith(".") for part in path.split("/"))


def split_of(path: str) -> str:
    """The split that a file belongs to: from `train-00000-of-00004.parquet` or `train-b001-00000-of-00004.parquet`,
    `train.parquet`, or a folder `train/`; else `train`.
    """
    *folders, name = path.split("/")
    if match := _NUMBERED.match(name):
        return match["split"]
    stem = re.split(r"[.\-_]", name)[0].lower()
    return next((part for part in (stem, *(f.lower() for f in reversed(folders))) if part in SPLITS), "train")


def shard_schema(classes: Sequence[str]) -> pa.Schema:
    """Columns of a written shard, with the metadata by which `datasets.load_dataset` shows pictures and class names."""
    label = {"names": list(classes), "_type": "ClassLabel"} if classes else {"dtype": "int64", "_type": "Value"}
    features = {
        "id": {"dtype": f"fixed_size_binary[{ID_BYTES}]", "_type": "Value"},
        "image": {"_type": "Image"},
        "label": label,
        "format": {"dtype": "string", "_type": "Value"},
        "width": {"dtype": "int32", "_type": "Value"},
        "height": {"dtype": "int32", "_type": "Value"},
        "mode": {"dtype": "string", "_type": "Value"},
    }
    types = (ID, IMAGE, pa.int64(), pa.string(), pa.int32(), pa.int32(), pa.string())
    return pa.schema(
        [pa.field(name, type_) for name, type_ in zip(features, types, strict=True)],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )


def class_names(metadata: Mapping[bytes, bytes] | None) -> tuple[str, ...]:
    """Names of the classes from a schema's `huggingface` or `label_names` metadata; empty where there are none."""
    metadata = metadata or {}
    try:
        features: Any = json.loads(metadata.get(b"huggingface", b"{}"))
        names = features.get("info", {}).get("features", {}).get("label", {}).get("names")
        return tuple(str(n) for n in (names or json.loads(metadata.get(b"label_names", b"[]"))))
    except (ValueError, AttributeError, TypeError):
        return ()  # metadata of other tools is a courtesy; the rows are readable without it


@dataclass(frozen=True, slots=True)
class Footer:
    """What the end of a Parquet file says: its size in bytes, its metadata, and the digest that stands for it in a
    manifest.
    """

    size: int
    metadata: pq.FileMetaData
    digest: str


def read_footer(folder: Folder, path: str) -> Footer:
    """The footer of a shard, in one or two requests. Raises ShardError where the file is missing or its footer is torn.

    The digest is a sha256 over the relative path, the size and the footer's bytes: cheap for terabytes, and the footer
    holds every page's place and every column's extremes. Shards written here also carry a digest of ids and labels in
    it, so that any change of content changes the footer. Flipped bits inside a page are the page checksum's business.
    """

    def tail() -> tuple[int, bytes]:
        with folder.fs.open_input_file(folder.where(path)) as stream:
            size = stream.size()
            data = stream.read_at(min(TAIL, size), max(0, size - TAIL))
            length = int.from_bytes(data[-8:-4], "little") + 8
            if len(data) < length <= size:
                data = stream.read_at(length, size - length)
            return size, data[-length:]

    try:
        size, data = with_retries(tail)
    except OSError as error:
        if is_transient(error):
            raise ShardUnreachable(
                f"{folder}/{path}: cannot be read now ({error}); the storage does not answer."
            ) from None
        raise ShardError(
            f"{folder}/{path}: cannot be read ({error}); restore the file or take it out of the folder."
        ) from None
    if data[-4:] != b"PAR1" or int.from_bytes(data[-8:-4], "little") + 8 != len(data):
        raise ShardError(
            f"{folder}/{path}: no Parquet footer at the end of its {size:,} bytes; the copy was cut: fetch it again."
        )
    try:
        metadata = pq.read_metadata(pa.BufferReader(data))
    except (pa.ArrowException, OSError) as error:
        raise ShardError(f"{folder}/{path}: damaged Parquet footer ({error}); fetch the file again.") from None
    digest = hashlib.sha256(f"{path}\0{size}\0".encode() + data).hexdigest()
    return Footer(size, metadata, digest)
