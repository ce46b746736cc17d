"""Writing shards: original bytes as they came, page checksums on, the same input always the same file.

We drive `pyarrow.parquet.ParquetWriter` ourselves, since the row-group and file-size settings of distributed writers
have not been dependable, and a run plans its order by the row groups. Files get their final names when their number is
known.
"""

import hashlib
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from raydino.shards.manifest import ShardFile
from raydino.shards.schema import Folder, ShardError, content_id, read_footer, shard_schema

ROWS_PER_GROUP = 64  # ~7 MB of 110 kB images: one request to object storage, small enough to shuffle by groups
TARGET_BYTES = 256 << 20  # few enough files to list, small enough to fetch again after an error
LEAST_PER_GROUP, GROUPS = 8, 96
GROUP_BYTES = 256 << 20  # a row group of giant images must stay far below Arrow's 2 GiB per binary column


def rows_per_group(images: int) -> int:
    """Rows of a row group for a split of about `images` images: 64, fewer below 6,144 images, never under 8.

    An epoch is cut into equal lanes, and a row group on a cut is read by both neighbours. Beside 96 groups the 7 cuts of
    8 lanes are 7 %; 64 rows a group throughout would make it 17 % for 2,700 images.
    """
    fitting = max(1, images // GROUPS)
    return max(LEAST_PER_GROUP, min(ROWS_PER_GROUP, 2 ** (fitting.bit_length() - 1)))


class ShardWriter:
    """Writes the images of one split as `data/SPLIT-00000-of-0000N.parquet` below `folder`, those of a batch added later as
    `data/SPLIT-b001-00000-of-0000N.parquet`, which sorts behind.

    A context manager: leaving it normally finishes the files (see `files`), leaving it by an exception removes them.
    """

    def __init__(
        self,
        folder: Folder,
        split: str,
        *,
        classes: tuple[str, ...] = (),
        rows_per_group: int = ROWS_PER_GROUP,
        target_bytes: int = TARGET_BYTES,
        batch: int = 0,
    ) -> None:
        if rows_per_group <= 0 or target_bytes <= 0:
            raise ShardError(
                f"rows_per_group = {rows_per_group}, target_bytes = {target_bytes}: both must be positive."
            )
        self.folder, self.split, self.classes = folder, split, classes
        self._name = f"{split}-b{batch:03d}" if batch else split
        self.rows_per_group, self.target_bytes = rows_per_group, target_bytes
        self.files: tuple[ShardFile, ...] = ()
        """The written files; filled by `close`."""
        self._schema = shard_schema(classes)
        self._parts: list[str] = []
        self._row_groups: list[list[int]] = []
        self._writer: pq.ParquetWriter | None = None
        self._stream: pa.NativeFile | None = None
        self._content = hashlib.sha256()
        self._rows: list[dict[str, Any]] = []
        self._held = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def add(
        self, data: bytes, *, path: str, label: int | None, format: str, width: int, height: int, mode: str
    ) -> bytes:
        """Append one image (its original encoded bytes) and return its id of 16 bytes. Raises ShardError on a bad
        label.
        """
        if label is not None and not 0 <= label < (len(self.classes) or 2**63):
            raise ShardError(
                f"{path}: label = {label} is outside the {len(self.classes)} classes; leave it None or name it."
            )
        identity = content_id(data)
        self._rows.append(
            {
                "id": identity,
                "image": {"bytes": data, "path": path},
                "label": label,
                "format": format,
                "width": width,
                "height": height,
                "mode": mode,
            }
        )
        self._held += len(data)
        if len(self._rows) >= self.rows_per_group or self._held >= GROUP_BYTES:
            self._flush()
        return identity

    def close(self) -> tuple[ShardFile, ...]:
        """Finish the last file, give all files their final names and describe them. A writer without images makes no
        file.
        """
        self._flush()
        self._finish()
        total = len(self._parts)
        described = []
        for index, (part, row_groups) in enumerate(zip(self._parts, self._row_groups, strict=True)):
            path = f"data/{self._name}-{index:05d}-of-{total:05d}.parquet"
            self.folder.move(part, path)
            footer = read_footer(self.folder, path)
            described.append(
                ShardFile(
                    path=path,
                    split=self.split,
                    rows=sum(row_groups),
                    row_groups=tuple(row_groups),
                    bytes=footer.size,
                    digest=footer.digest,
                )
            )
        self._parts, self._row_groups, self.files = [], [], tuple(described)
        return self.files

    def discard(self) -> None:
        """Remove everything written since the last `close`."""
        self._rows, self._held = [], 0
        self._finish()
        for part in self._parts:
            self.folder.delete(part)
        self._parts, self._row_groups = [], []

    def _flush(self) -> None:
        if not self._rows:
            return
        writer = self._writer or self._begin()
        writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema), row_group_size=len(self._rows))
        for row in self._rows:
            self._content.update(row["id"] + str(row["label"]).encode() + b"\0")
        self._row_groups[-1].append(len(self._rows))
        self._rows, self._held = [], 0
        if self._stream is not None and self._stream.tell() >= self.target_bytes:
            self._finish()

    def _begin(self) -> pq.ParquetWriter:
        part = (
            f"data/.{self._name}-{len(self._parts):05d}.part"  # hidden: no reader takes an unfinished file for a shard
        )
        self._stream = self.folder.create(part)
        self._parts.append(part)
        self._row_groups.append([])
        self._content = hashlib.sha256()
        small = [name for name in self._schema.names if name not in ("id", "image")]
        codecs = {"image.bytes": "none", "image.path": "zstd", "id": "none"} | dict.fromkeys(small, "zstd")
        self._writer = pq.ParquetWriter(
            self._stream,
            self._schema,
            # pyarrow takes names of columns in all three; its stubs know only the short forms.
            # Encoded images do not shrink, and an uncompressed page costs no copy.
            compression=codecs,  # pyright: ignore[reportArgumentType]
            use_dictionary=["format", "mode"],  # pyright: ignore[reportArgumentType]
            # The extremes of image bytes would put whole images into the footer.
            write_statistics=["id", "image.path", *small],  # pyright: ignore[reportArgumentType]
            write_page_checksum=True,
            write_page_index=False,
        )
        return self._writer

    def _finish(self) -> None:
        if self._writer is None or self._stream is None:
            return
        self._writer.add_key_value_metadata({"raydino.content": self._content.hexdigest()})
        self._writer.close()
        self._stream.close()
        self._writer = self._stream = None
