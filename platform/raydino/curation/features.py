"""Features: the fingerprints of a collection as a table beside its shards, computed once and read again for other thresholds."""

import contextlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib import metadata

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydino.curation.fingerprint import KEYS, SPEC, THUMB, Fingerprint, fingerprint
from raydino.curation.table import Table, numbered
from raydino.data.decode import ImageHeader, Undecodable, decode, header
from raydino.shards.manifest import Manifest
from raydino.shards.reader import Collection
from raydino.shards.schema import ID, Folder, content_id

STAMP = b"raydino.fingerprint"
BEFORE = b"raydino.fingerprint.before"
"""Of a table that has grown: how many rows it had, and their stamp. Until the grown manifest is written, those are the table."""
VERSIONS = {name: metadata.version(name) for name in ("pillow", "simplejpeg", "opencv-python-headless", "numpy")}
"""What decodes and resizes; with another version all is computed again."""
SCORES = ("mean", "std", "entropy", "sharpness", "fineness", "colours", "inside")
SCHEMA = pa.schema(
    [
        ("id", ID),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("bytes", pa.int64()),
        ("pixels", pa.binary(16)),
        ("hashes", pa.binary(len(KEYS) * 32)),
        ("thumb", pa.binary(THUMB * THUMB)),
        ("picture", pa.binary()),
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
    sides: NDArray[np.int64]
    """[N, 2] shorter and longer side, pixels."""
    size: NDArray[np.int64]
    """[N] bytes of the encoded image."""
    scores: dict[str, NDArray[np.float32]]
    """[N] each, the scores of the fingerprint by name."""

    @property
    def area(self) -> NDArray[np.int64]:
        """[N] pixels."""
        return self.sides.prod(axis=1)


def features_path(split: str) -> str:
    """Where the features of a split lie in a curated folder."""
    return f"features/{split}.parquet"


def features_stamp(manifest: Manifest) -> str:
    """What a table of features must bear under `STAMP` to be those of a manifest's images, as this software computes them."""
    return f"{SPEC}:{SCORES}:{VERSIONS}:{manifest.files_digest}"


def known_rows(marks: Mapping[bytes, bytes] | None, stamp: str, rows: int) -> int | None:
    """How many of the first rows of a table with these marks and `rows` are the features that `stamp` asks for; None: it has
    others.
    """
    marks = marks or {}
    if marks.get(STAMP, b"").decode() == stamp:
        return rows
    before, _, earlier = marks.get(BEFORE, b"").decode().partition(" ")
    return int(before) if earlier == stamp else None


def features(
    collection: Collection, name: str, *, keep_in: Folder | None, threads: int, progress: Progress
) -> Features:
    """The features of a collection; from `keep_in` if they lie there, else computed and, where it is given, kept there."""
    path, stamp = features_path(name), features_stamp(collection.manifest)
    if keep_in is not None and any(entry.path == path for entry in keep_in.files()):
        with contextlib.suppress(OSError, pa.ArrowException):  # damaged: computed again
            known = keep_in.read_table(path)
            if (rows := known_rows(known.schema.metadata, stamp, len(known))) is not None:
                return _loaded(known.slice(0, rows), name)
    parts = []
    with ThreadPoolExecutor(threads, thread_name_prefix="raydino-fingerprints") as pool:
        for group in range(len(collection.row_groups)):
            data = collection.read(group)["bytes"].to_pylist()
            parts.append(pa.Table.from_pylist([row for _, row in pool.map(measured, data)], schema=SCHEMA))
            progress(f"fingerprints of {name}", sum(len(part) for part in parts), len(collection))
    table = pa.concat_tables(parts).replace_schema_metadata({STAMP: stamp})
    if keep_in is not None:
        keep_in.write_table(path, table)
    return _loaded(table, name)


def measured(data: bytes) -> tuple[ImageHeader | Undecodable, dict[str, object]]:
    """The verdict on an image and its features, of one decode.

    What cannot be decoded equals only itself, and so does a TIFF of several pages, which may be channels.
    """
    identity, found = content_id(data), replace(_BLANK, pixels=content_id(data))
    width = height = 0
    try:
        verdict: ImageHeader | Undecodable = header(data)
        image = decode(data)
        height, width = image.shape[:2]
        found = fingerprint(image)
        if verdict.format == "TIFF" and verdict.frames > 1:
            found = replace(found, pixels=identity, comparable=False)
    except Undecodable as error:
        verdict = error
    return verdict, {"id": identity, "width": width, "height": height, "bytes": len(data), **_columns(found)}


def _columns(found: Fingerprint) -> dict[str, object]:
    return {
        "pixels": found.pixels,
        "hashes": found.hashes.tobytes(),
        "thumb": found.thumb.tobytes(),
        "picture": None if found.picture is None else found.picture.tobytes(),
        "comparable": found.comparable,
        **{name: getattr(found, name) for name in SCORES},
    }


def _loaded(table: pa.Table, name: str) -> Features:
    def column(key: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        return np.frombuffer(b"".join(table[key].drop_null().to_pylist()), np.uint8).reshape(-1, *shape)

    whole = Table(
        pixels=column("pixels", (16,)).view("V16").reshape(-1),
        hashes=column("hashes", (len(KEYS), 32)),
        thumbs=column("thumb", (THUMB, THUMB)),
        pictures=column("picture", (THUMB, THUMB)),
        bordered=numbered(table["picture"].is_valid().to_numpy()),
        comparable=table["comparable"].to_numpy(),
    )
    sides = np.sort(np.stack([table["width"].to_numpy(), table["height"].to_numpy()], axis=1), axis=1).astype(np.int64)
    size = table["bytes"].to_numpy().astype(np.int64)
    scores = {key: table[key].to_numpy() for key in SCORES}
    return Features(name, tuple(table["id"].to_pylist()), whole, sides, size, scores)
