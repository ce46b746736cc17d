"""Reading shards, ours or anybody's: a curated folder by its manifest, or any Hugging Face style Parquet folder
directly.

The unit of reading is the row group, since the order of a run is planned by row groups: one is read in one request,
checked, and brought to one form whatever the file looked like. A `Collection` is an address and a manifest; it holds no
open file, so it travels to remote tasks as it is and any thread may use it.
"""

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import accumulate

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raydino.shards.columns import check_columns, clean_labels, image_parts
from raydino.shards.keep import Kept, masked, over_files, read_kept
from raydino.shards.manifest import FILE_NAME, Manifest, ShardFile, load
from raydino.shards.retries import is_transient, with_retries
from raydino.shards.schema import (
    ID,
    Folder,
    Footer,
    ShardError,
    ShardUnreachable,
    class_names,
    content_id,
    is_hidden,
    read_footer,
    split_of,
)

FOOTERS_KEPT = 64  # per process and collection; ~100 kB each
OPENERS = 16  # files opened at once for their footers or labels: object storage answers in ~50 ms
_READ = pa.schema([("id", ID), ("bytes", pa.binary()), ("path", pa.string()), ("label", pa.int64())])


class Collection:
    """Images of one or all splits of a folder, by row group. Rows are numbered in the order of the manifest's files."""

    def __init__(self, folder: Folder, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self._footers: OrderedDict[str, Footer] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type["Collection"], tuple[Folder, Manifest]]:
        return Collection, (self.folder, self.manifest)

    def __len__(self) -> int:
        return self.manifest.rows

    def part(self, split: str, *, mask: str = "") -> "Collection":
        """The images of one split, with the keep-masks of the screening `mask`. Raises ShardError as `open_collection`."""
        manifest = masked(self.folder, self.manifest, mask) if mask else self.manifest
        return _opened(self.folder, manifest.of_split(split))

    @property
    def key(self) -> str:
        """Stands for all that can be read here."""
        return f"{self.folder} {self.manifest.files_digest}"

    @cached_property
    def row_groups(self) -> tuple[int, ...]:
        """Rows of every row group, in order."""
        return tuple(rows for file in self.manifest.files for rows in file.row_groups)

    @cached_property
    def _group_ends(self) -> list[int]:
        return list(accumulate(len(file.row_groups) for file in self.manifest.files))

    def read(self, group: int) -> pa.Table:
        """Row group `group` as columns id: binary(16), bytes: binary, path: string, label: int64 (null where there is
        none).

        Page checksums are verified where the file has them; transient read errors are tried again. The id is computed
        from the bytes where the file has none. Raises ShardError naming shard, row group and remedy.
        """
        file, local = self._place(group)
        columns = self._columns(file)
        known = columns.get("id") == ID  # another type is some other tool's id, not a hash of the content
        wanted = ["image"] + ["id"] * known + ["label"] * ("label" in columns)
        table = self._read_columns(file, local, wanted)
        where = f"{self.folder}/{file.path}, row group {local}"
        data, paths = image_parts(table.column("image").combine_chunks(), where)
        if known:
            ids = table.column("id").combine_chunks()
        else:
            ids = pa.array([content_id(value.as_buffer()) for value in data], type=ID)
        labels = clean_labels(table.column("label")) if "label" in columns else pa.nulls(len(data), pa.int64())
        return pa.table([ids, data, paths, labels], schema=_READ)

    @cached_property
    def columns(self) -> frozenset[str]:
        """Names of the columns, as the first file has them."""
        return frozenset(self._columns(self.manifest.files[0]))

    def column(self, group: int, name: str) -> pa.ChunkedArray:
        """Column `name` of row group `group` as the file has it, for what only some evaluations want (masks, depth, poses).

        Raises ShardError where the file has none or cannot be read.
        """
        file, local = self._place(group)
        if name not in (known := self._columns(file)):
            raise ShardError(
                f"{self.folder}/{file.path}: no column {name!r} in {sorted(known)}; give a folder that has it."
            )
        return self._read_columns(file, local, [name]).column(name)

    def labels(self) -> np.ndarray:
        """Labels of all rows, int64 [rows], -1 where there is none. Reads nothing but the label column."""
        with ThreadPoolExecutor(OPENERS) as pool:
            return np.concatenate([np.empty(0, dtype=np.int64), *pool.map(self._labels, self.manifest.files)])

    def _labels(self, file: ShardFile) -> np.ndarray:
        """int64 [rows of the file]."""
        if "label" not in self._columns(file):
            return np.full(file.rows, -1, dtype=np.int64)
        columns = (self._read_columns(file, local, ["label"]).column("label") for local in range(len(file.row_groups)))
        return np.concatenate([clean_labels(column).fill_null(-1).to_numpy() for column in columns])

    def keep(self) -> np.ndarray | None:
        """bool [rows], False for rows that curation left out of training; None where no split here has a keep-mask.

        Raises ShardError if a mask is missing or not the one of the manifest.
        """
        if not self.manifest.keep:
            return None
        return over_files(self.manifest, {split: kept.keep for split, kept in self._kept.items()}, fill=True)

    def weights(self) -> np.ndarray | None:
        """float32 [rows], the share of epochs in which a row is seen; None where it is 1 for all. Raises as `keep` does."""
        parts = {split: kept.weights for split, kept in self._kept.items() if kept.weights is not None}
        return over_files(self.manifest, parts, fill=np.float32(1)) if parts else None

    @cached_property
    def _kept(self) -> dict[str, Kept]:
        return read_kept(self.folder, self.manifest)

    def rows(self, indices: np.ndarray) -> pa.Table:
        """The rows with these numbers, in the order asked (repeats allowed), as `read` gives them; each row group read
        once.

        Raises IndexError for a number outside [0, rows).
        """
        asked = np.asarray(indices, dtype=np.int64).ravel()
        if len(asked) and (asked.min() < 0 or asked.max() >= len(self)):
            raise IndexError(f"rows {asked.min()} to {asked.max()} asked for, the collection has {len(self)}")
        ends = np.cumsum(self.row_groups, dtype=np.int64)
        groups = np.searchsorted(ends, asked, side="right")
        order = np.argsort(groups, kind="stable")
        tables = [_READ.empty_table()]
        for group in np.unique(groups):
            start = ends[group] - self.row_groups[group]
            tables.append(self.read(int(group)).take(asked[groups == group] - start))
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return pa.concat_tables(tables).take(back)

    def _place(self, group: int) -> tuple[ShardFile, int]:
        if not 0 <= group < len(self.row_groups):
            raise IndexError(f"row group {group} asked for, the collection has {len(self.row_groups)}")
        index = bisect_right(self._group_ends, group)
        return self.manifest.files[index], group - (self._group_ends[index - 1] if index else 0)

    def _footer(self, file: ShardFile) -> Footer:
        with self._lock:
            if file.path in self._footers:
                self._footers.move_to_end(file.path)
                return self._footers[file.path]
        footer = read_footer(self.folder, file.path)
        if footer.digest != file.digest:
            raise ShardError(
                f"{self.folder}/{file.path}: changed since the manifest: digest {footer.digest[:16]}…, "
                f"{footer.size:,} bytes; "
                f"the manifest says {file.digest[:16]}…, {file.bytes:,} bytes. Restore the file or curate again."
            )
        with self._lock:
            self._footers[file.path] = footer
            if len(self._footers) > FOOTERS_KEPT:
                self._footers.popitem(last=False)
        return footer

    def _columns(self, file: ShardFile) -> dict[str, pa.DataType]:
        schema = self._footer(file).metadata.schema.to_arrow_schema()
        check_columns(schema, f"{self.folder}/{file.path}")
        return {field.name: field.type for field in schema}

    def _read_columns(self, file: ShardFile, local: int, columns: list[str]) -> pa.Table:
        metadata = self._footer(file).metadata

        def read() -> pa.Table:
            with self.folder.fs.open_input_file(self.folder.where(file.path)) as stream:
                parquet = pq.ParquetFile(
                    stream, metadata=metadata, page_checksum_verification=True, pre_buffer=len(columns) > 1
                )
                return parquet.read_row_group(local, columns=columns, use_threads=False)

        try:
            return with_retries(read)
        except (OSError, pa.ArrowException) as error:
            where = f"{self.folder}/{file.path}, row group {local}"
            if is_transient(error):
                raise ShardUnreachable(f"{where}: cannot be read now ({error}); the storage does not answer.") from None
            raise ShardError(f"{where}: cannot be read ({error}); fetch the shard again from its source.") from None


def open_collection(path: str, *, split: str | None = None, mask: str = "") -> Collection:
    """Open a curated folder (by its manifest.json) or any Hugging Face style Parquet folder, local or by URI; `split`
    None keeps all splits. `mask` names a screening of it (see `masked`).

    Without a manifest, splits come from file names (`train-00000-of-00004.parquet`) or sub-folders, else all is
    `train`; only footers are read, so the digests stand for path, size and footer of each file and repeated images go
    unnoticed. Raises ShardError where there is no such folder or split, or a shard cannot be used.
    """
    folder = Folder(path)
    names = folder.files()
    if any(entry.path == FILE_NAME for entry in names):
        manifest = load(folder)
        _check_sizes(folder, manifest, {entry.path: entry.size for entry in names})
    else:
        shards = [entry.path for entry in names if entry.path.endswith(".parquet") and not is_hidden(entry.path)]
        if not shards:
            raise ShardError(
                f"{folder}: no such folder, or neither manifest.json nor Parquet files in it; give a curated folder, or curate "
                "the images first (recipes/curate.py --source PATH --out NEW) and give NEW."
            )
        manifest = _describe(folder, shards)
    if mask:
        manifest = masked(folder, manifest, mask)
    return _opened(folder, manifest if split is None else manifest.of_split(split))


def _opened(folder: Folder, manifest: Manifest) -> Collection:
    if not manifest.rows:
        raise ShardError(f"{folder}: 0 images in {len(manifest.files)} files; give a folder with images.")
    return Collection(folder, manifest)


def _check_sizes(folder: Folder, manifest: Manifest, sizes: Mapping[str, int]) -> None:
    """Refuse a folder that lost or changed a shard before a run is planned on it; the listing tells at no cost.

    What keeps its size is told from the manifest's by its footer when it is read first.
    """
    missing = [file.path for file in manifest.files if file.path not in sizes]
    if missing:
        raise ShardError(
            f"{folder}: {len(missing):,} of {len(manifest.files):,} shards of the manifest are not there (the first, "
            f"{missing[0]}); restore them or curate again."
        )
    for file in manifest.files:
        if sizes[file.path] != file.bytes:
            raise ShardError(
                f"{folder}/{file.path}: changed since the manifest: {sizes[file.path]:,} bytes; the manifest says "
                f"{file.bytes:,}. Restore the file or curate again."
            )


def _describe(folder: Folder, paths: Sequence[str]) -> Manifest:
    """The manifest of a folder that has none."""
    with ThreadPoolExecutor(OPENERS) as pool:
        footers = list(pool.map(lambda path: read_footer(folder, path), paths))
    files, named, labelled = [], {}, False
    for path, footer in zip(paths, footers, strict=True):
        schema = footer.metadata.schema.to_arrow_schema()
        check_columns(schema, f"{folder}/{path}")
        if classes := class_names(schema.metadata):
            named.setdefault(classes, path)
        labelled = labelled or _has_labels(footer.metadata, schema)
        groups = tuple(footer.metadata.row_group(g).num_rows for g in range(footer.metadata.num_row_groups))
        files.append(
            ShardFile(
                path=path,
                split=split_of(path),
                rows=sum(groups),
                row_groups=groups,
                bytes=footer.size,
                digest=footer.digest,
            )
        )
    if len(named) > 1:
        (one, first), (other, second) = list(named.items())[:2]
        raise ShardError(
            f"{folder}: {first} names {len(one)} classes and {second} names {len(other)} others; "
            "label numbers would mean different things: keep the shards of one data set per folder."
        )
    return Manifest(files=tuple(files), classes=next(iter(named), ()), labelled=labelled)


def _has_labels(metadata: pq.FileMetaData, schema: pa.Schema) -> bool:
    """Whether the label column, if any, holds more than nulls, as far as the footer tells."""
    if "label" not in schema.names or pa.types.is_null(schema.field("label").type):
        return False
    leaf = [metadata.schema.column(i).path for i in range(metadata.num_columns)].index("label")
    statistics = [metadata.row_group(g).column(leaf).statistics for g in range(metadata.num_row_groups)]
    return any(s is None or not s.has_null_count or s.num_values > 0 for s in statistics)
