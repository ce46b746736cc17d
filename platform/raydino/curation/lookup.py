"""Why: everything that a curated folder knows of one image, from its tables alone.

An image is asked for by the first digits of its id or by its path. Only ids are read until a row is found. Every table of a
curated folder has an `id` column; what else it holds is shown as it stands, so that a new column needs no change here.
"""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raydino.config import ConfigError
from raydino.curation.books import id_array, opened, paths_of, row_groups, tables
from raydino.curation.ledger import DECISIONS
from raydino.shards.manifest import FILE_NAME, Manifest, load
from raydino.shards.schema import ID_BYTES, Folder

SHOWN = 10  # ids or images listed; more are counted
LONGEST_CELL = 64  # bytes; longer ones are thumbnails and hashes, nothing to read
_HEX = re.compile(r"[0-9a-fA-F]{1,32}")
_DECIDED = frozenset({"file", "id", "kept", "keep", "reason", "evidence_id", "distance"})


@dataclass(frozen=True)
class Known:
    """What is known of one image. Fit for JSON, with ids in hexadecimal; `str` of it is for people."""

    id: str
    records: tuple[dict[str, Any], ...]
    """A row of a table each, the table as `file` beside the columns."""
    copies: tuple[dict[str, Any], ...]
    """Rows of other images that were left out because of this one, with their `path`."""
    paths: dict[str, str]
    """Paths of ids that the records name, as far as the folder knows them."""

    def __str__(self) -> str:
        lines = [self.id]
        lines += [f"  {record['file']:<28} {_sentence(record, self.paths)}" for record in self.records]
        for row in self.copies[:SHOWN]:
            lines.append(f"  {'repeated by':<28} {row['id'][:12]} ({row['path']}), {_reason(row)}")
        if len(self.copies) > SHOWN:
            lines.append(f"  {'repeated by':<28} {len(self.copies) - SHOWN:,} more")
        return "\n".join(lines)


def why(folder: str, asked: str) -> Known:
    """Everything known of the image whose id begins with the hexadecimal digits `asked`, or whose path it is or ends.

    Raises:
        ConfigError: no image or several are meant, or the folder is not curated.
        ShardError: a table cannot be read.
    """
    place = Folder(folder)
    names, manifest = tables(place), None
    if any(entry.path == FILE_NAME for entry in place.files()):  # an ingest that gave up leaves its tables only
        manifest = load(place)
    shards = [file.path for file in manifest.files] if manifest else []
    identity = _resolved(place, asked, [*names, *shards])
    records, copies = [], {}
    for path in [*names, *shards]:
        for row in _rows(place, path, identity, manifest):
            if row["id"] == identity.hex():
                records.append({"file": path, **row})
            else:
                copies[row["id"]] = row
    named = {row["evidence_id"] for row in records if row.get("evidence_id")} - {identity.hex()}
    paths = paths_of(place, named | set(copies))
    found = tuple({**copies[one], "path": paths.get(one)} for one in sorted(copies))
    return Known(identity.hex(), tuple(records), found, {one: paths[one] for one in sorted(named & set(paths))})


def _resolved(place: Folder, asked: str, names: list[str]) -> bytes:
    """The id that is meant: of that very path, else that begins so, else of a path that ends so."""
    asked = asked.strip()
    if not asked:
        raise ConfigError("image = '': give the first digits of an id, or a path.")
    by_path, by_id, by_end = (dict[str, str]() for _ in range(3))
    for name in names:
        for part in row_groups(place, name, ["id", "path"] if name == DECISIONS else ["id"]):
            ids = id_array(part["id"])
            if _HEX.fullmatch(asked):
                by_id.update((one.tobytes().hex(), "") for one in ids[_begins(ids, asked.lower())])
            if name == DECISIONS:
                by_path.update(_named(ids, part["path"], pc.call_function("equal", [part["path"], pa.scalar(asked)])))
                by_end.update(_named(ids, part["path"], _ends(part["path"], f"/{asked}")))
    meant = by_path or by_id or by_end
    if not meant:
        raise ConfigError(
            f"image = {asked!r}: {place} knows no image with such an id or path; give the first digits of an id as the report "
            f"shows it, or a path as in {DECISIONS}."
        )
    if len(meant) > 1:
        some = ", ".join(f"{one[:16]} {path}".strip() for one, path in sorted(meant.items())[:SHOWN])
        more = ", …" if len(meant) > SHOWN else ""
        raise ConfigError(
            f"image = {asked!r}: {len(meant):,} images are meant ({some}{more}); give more digits of the id."
        )
    return bytes.fromhex(next(iter(meant)))


def _ends(paths: pa.ChunkedArray, end: str) -> pa.ChunkedArray:
    return pc.call_function("ends_with", [paths], pc.MatchSubstringOptions(end))


def _named(ids: NDArray[np.void], paths: pa.ChunkedArray, hit: pa.ChunkedArray) -> dict[str, str]:
    rows = np.flatnonzero(hit.fill_null(False).to_numpy())  # noqa: FBT003 pyarrow's own signature
    return {ids[row].tobytes().hex(): paths[row].as_py() for row in rows.tolist()}


def _begins(ids: NDArray[np.void], prefix: str) -> NDArray[np.bool_]:
    """bool [N], whether the hexadecimal id begins with `prefix`."""
    values = ids.view(np.uint8).reshape(-1, ID_BYTES)
    whole, odd = divmod(len(prefix), 2)
    same = (values[:, :whole] == np.frombuffer(bytes.fromhex(prefix[: 2 * whole]), np.uint8)).all(axis=1)
    return same & (values[:, whole] >> 4 == int(prefix[-1], 16)) if odd else same


def _rows(place: Folder, path: str, identity: bytes, manifest: Manifest | None) -> list[dict[str, Any]]:
    """Rows of the image, and rows that name it as evidence. Other columns are read only where there are such rows."""
    wanted, rows = np.void(identity), list[dict[str, Any]]()
    with opened(place, path) as file:
        schema = file.schema_arrow
        keys = [name for name in ("id", "evidence_id") if name in schema.names]
        readable = [field.name for field in schema if not pa.types.is_nested(field.type)]
        for group in range(file.num_row_groups):
            ids = file.read_row_group(group, columns=keys, use_threads=False)
            hits = np.flatnonzero(np.any([id_array(ids[name]) == wanted for name in keys], axis=0))
            if len(hits):
                rows += file.read_row_group(group, columns=readable).take(hits).to_pylist()
    plain = [_plain(row) for row in rows]
    for row in plain:
        if manifest and manifest.classes and row.get("label") is not None:
            row["class"] = manifest.classes[row["label"]]
    return plain


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """The row with short bytes in hexadecimal and without long ones."""
    cells = {name: cell for name, cell in row.items() if not (isinstance(cell, bytes) and len(cell) > LONGEST_CELL)}
    return {name: cell.hex() if isinstance(cell, bytes) else cell for name, cell in cells.items()}


def _reason(row: dict[str, Any]) -> str:
    """Reason and distance of a decision to leave an image out."""
    distance = row.get("distance")
    return f"{row.get('reason')}" + (f", distance {distance:g}" if distance is not None else "")


def _sentence(row: dict[str, Any], paths: dict[str, str]) -> str:
    """A record as words: the decision, then the other columns."""
    parts, kept = [], row.get("kept", row.get("keep"))
    if kept:
        parts.append("kept")
    elif kept is not None or row.get("reason"):
        parts.append(f"left out: {_reason(row)}")
    if other := row.get("evidence_id"):
        known = "the same bytes" if other == row["id"] else paths.get(other, "not an image of this folder")
        parts.append(f"repeats {other[:12]} ({known})")
    for name, cell in row.items():
        if name not in _DECIDED and cell is not None:
            parts.append(f"{name} {cell:.4g}" if isinstance(cell, float) else f"{name} {cell}")
    return ", ".join(parts)
