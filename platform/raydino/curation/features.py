"""Features: the fingerprints of a collection as a table beside its shards, computed once and read again for other thresholds."""

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib import metadata

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydino.curation.duplicates import Table
from raydino.curation.fingerprint import KEYS, SPEC, THUMB, Fingerprint, fingerprint
from raydino.data.decode import Undecodable, decode, header
from raydino.shards.reader import Collection
from raydino.shards.schema import ID, Folder, content_id

STAMP = b"raydino.fingerprint"
VERSIONS = {name: metadata.version(name) for name in ("pillow", "opencv-python-headless", "numpy")}
"""What decodes and resizes; with another version all is computed again."""
SCORES = ("mean", "std", "entropy", "sharpness")
_SCHEMA = pa.schema(
    [
        ("id", ID),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("bytes", pa.int64()),
        ("pixels", pa.binary(16)),
        ("hashes", pa.binary(len(KEYS) * 32)),
        ("thumb", pa.binary(THUMB * THUMB)),
        ("comparable", pa.bool_()),
        *((name, pa.float32()) for name in SCORES),
    ]
)
_BLANK = fingerprint(np.zeros((8, 8, 3), np.uint8))  # as flat as that, it is not compared
Progress = Callable[[str, int, int], None]
"""Told of a stage, images done and images in all."""


@dataclass(frozen=True)
class Features:
    """What is known of the images of one split or collection, in its row order."""

    name: str
    """Where they come from, for reports."""
    ids: tuple[bytes, ...]
    table: Table
    area: NDArray[np.int64]
    """[N] pixels."""
    size: NDArray[np.int64]
    """[N] bytes of the encoded image."""


def features(
    collection: Collection, name: str, *, keep_in: Folder | None, threads: int, progress: Progress
) -> Features:
    """The features of a collection; from `keep_in` if they lie there, else computed and, where it is given, kept there."""
    path, stamp = f"features/{name}.parquet", f"{SPEC}:{VERSIONS}:{collection.manifest.files_digest}"
    if keep_in is not None and any(entry.path == path for entry in keep_in.files()):
        with contextlib.suppress(OSError, pa.ArrowException):  # damaged: computed again
            known = keep_in.read_table(path)
            if (known.schema.metadata or {}).get(STAMP, b"").decode() == stamp:
                return _loaded(known, name)
    parts = []
    with ThreadPoolExecutor(threads, thread_name_prefix="raydino-fingerprints") as pool:
        for group in range(len(collection.row_groups)):
            data = collection.read(group)["bytes"].to_pylist()
            parts.append(pa.Table.from_pylist(list(pool.map(_row, data)), schema=_SCHEMA))
            progress(f"fingerprints of {name}", sum(len(part) for part in parts), len(collection))
    table = pa.concat_tables(parts).replace_schema_metadata({STAMP: stamp})
    if keep_in is not None:
        keep_in.write_table(path, table)
    return _loaded(table, name)


def _row(data: bytes) -> dict[str, object]:
    """An image's features. One that cannot be decoded, or is a TIFF of several pages, equals only itself."""
    identity, found = content_id(data), None
    width = height = 0
    try:
        about = header(data)
        several = about.format == "TIFF" and about.frames > 1  # pages may be channels
        image = decode(data)
        height, width = image.shape[:2]
        found = fingerprint(image)
        if several:
            found = replace(found, pixels=identity, comparable=False)
    except Undecodable:  # training meets and counts it
        found = replace(_BLANK, pixels=identity)
    return {"id": identity, "width": width, "height": height, "bytes": len(data), **_columns(found)}


def _columns(found: Fingerprint) -> dict[str, object]:
    return {
        "pixels": found.pixels,
        "hashes": found.hashes.tobytes(),
        "thumb": found.thumb.tobytes(),
        "comparable": found.comparable,
        **{name: getattr(found, name) for name in SCORES},
    }


def _loaded(table: pa.Table, name: str) -> Features:
    def column(key: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        return np.frombuffer(b"".join(table[key].to_pylist()), np.uint8).reshape(len(table), *shape)

    pixels = np.frombuffer(b"".join(table["pixels"].to_pylist()), dtype="V16")
    whole = Table(
        pixels,
        column("hashes", (len(KEYS), 32)),
        column("thumb", (THUMB, THUMB)),
        np.asarray(table["comparable"].to_pylist(), bool),
    )
    area = table["width"].to_numpy().astype(np.int64) * table["height"].to_numpy()
    return Features(name, tuple(table["id"].to_pylist()), whole, area, table["bytes"].to_numpy().astype(np.int64))
