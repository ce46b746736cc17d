"""Reading the books of a curated folder: its tables by row group and column, so that a folder of any size can be asked."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raydino.config import ConfigError
from raydino.curation.ledger import DECISIONS, QUARANTINE
from raydino.shards.schema import ID_BYTES, Folder, ShardError


def tables(place: Folder) -> list[str]:
    """Tables of a curated folder: decisions, quarantine, keep-masks, features. Raises ConfigError for another folder."""
    names = [entry.path for entry in place.files() if entry.path.endswith(".parquet")]
    if DECISIONS not in names:
        raise ConfigError(f"folder = {place}: no {DECISIONS}; give a folder written by curation.")
    more = [name for part in (QUARANTINE, "keep/", "features/") for name in names if name.startswith(part)]
    return [DECISIONS, *more]


@contextmanager
def opened(place: Folder, path: str) -> Iterator[pq.ParquetFile]:
    """A table to read from, page checksums verified. Raises ShardError if it cannot be read."""
    try:
        with place.fs.open_input_file(place.where(path)) as stream:
            yield pq.ParquetFile(stream, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise ShardError(f"{place}/{path}: cannot be read ({error}); curate again.") from None


def row_groups(place: Folder, path: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Those of the columns that a table has, row group by row group."""
    with opened(place, path) as file:
        present = [name for name in columns if name in file.schema_arrow.names]
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns=present, use_threads=False)


def id_array(column: pa.ChunkedArray) -> NDArray[np.void]:
    """[N] of 16 bytes; zeros where there is none."""
    filled = column.fill_null(bytes(ID_BYTES)) if column.null_count else column
    parts = [np.empty(0, "V16")]
    for chunk in filled.chunks:
        if len(chunk):
            parts.append(np.frombuffer(chunk.buffers()[1], "V16")[chunk.offset : chunk.offset + len(chunk)])
    return np.concatenate(parts)


def paths_of(place: Folder, ids: Iterable[str]) -> dict[str, str]:
    """The first path of each id, ids in hexadecimal, as far as the decisions know them."""
    wanted = np.array([np.void(bytes.fromhex(one)) for one in sorted(set(ids))], "V16")
    found: dict[str, str] = {}
    if not len(wanted):
        return found
    for part in row_groups(place, DECISIONS, ["id", "path"]):
        keys = id_array(part["id"])
        hits = np.flatnonzero(np.isin(keys, wanted))
        for row, name in zip(hits, part["path"].take(hits).to_pylist(), strict=True):
            found.setdefault(keys[row].tobytes().hex(), name)
    return found
