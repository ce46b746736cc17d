"""Our side: what the screening of a curated folder makes of copies and of pictures that only look alike.

Everything goes through the doors a user's images go through: files in a Parquet folder, decoded as training decodes them.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from copies.photos import Pictures
from raydino.curation.components import groups
from raydino.curation.duplicates import Edges, between, within
from raydino.curation.features import Features, features
from raydino.curation.judge import best_copy_rank
from raydino.curation.table import Table
from raydino.data.decode import decode
from raydino.shards.reader import open_collection

Columns = TypeVar("Columns")
UNSEEN = 40.0  # dB, from where on a recompressed photograph is usually not told from its original


def known(files: Sequence[bytes]) -> Features:
    """The features of encoded images."""
    with tempfile.TemporaryDirectory() as scratch:
        image = [{"bytes": data, "path": f"{number}"} for number, data in enumerate(files)]
        pq.write_table(pa.table({"image": image}), Path(scratch) / "test-00000.parquet", row_group_size=64)
        collection = open_collection(scratch)
        return features(collection, "test", keep_in=None, threads=1, progress=lambda *_: None)


def joined(one: Columns, other: Columns) -> Columns:
    """Two sets of columns as one: arrays and tuples of rows behind each other."""
    changes: dict[str, Any] = {}
    for field in fields(one):  # pyright: ignore[reportArgumentType]
        first, second = getattr(one, field.name), getattr(other, field.name)
        if isinstance(one, Table) and field.name == "bordered":  # numbers of rows of `pictures`
            second = np.where(second >= 0, second + len(one.pictures), -1)
        if is_dataclass(first):
            changes[field.name] = joined(first, second)
        elif isinstance(first, np.ndarray):
            changes[field.name] = np.concatenate([first, second])
        elif isinstance(first, dict):
            changes[field.name] = {key: np.concatenate([first[key], second[key]]) for key in first}
        elif isinstance(first, tuple):
            changes[field.name] = first + second
    return replace(one, **changes)  # pyright: ignore[reportType]


def outcome(
    originals: Features, copies: Features, group: np.ndarray, *, files: tuple[Sequence[bytes], Sequence[bytes]]
) -> dict[str, float]:
    """Row i of `copies` is a copy of row i of `originals`, as are their `files`; rows of one `group` [N] show the same picture.

    `found`: share that pairs with its original; `equal`: share with equal pixels; `original`: share where the original is
    preferred to the copy; `unharmed`: share where it is, or where the copy shows the same to the eye; `pairs`, `false`: pairs of
    an original and any copy, and those of different pictures; `equal_false`: those of equal pixels.
    """
    met = between(originals.table, copies.table)
    right, false = met.first == met.second, group[met.first] != group[met.second]
    count = len(group)
    rank = best_copy_rank(joined(originals, copies), met.first, met.second + count)
    same_pixels = originals.table.pixels[:, None] == copies.table.pixels[None]
    own = rank[:count] < rank[count:]
    unharmed = [kept or unchanged(*pair) for kept, *pair in zip(own.tolist(), *files, strict=True)]
    return {
        "found": len(set(met.first[right].tolist())) / count,
        "equal": float(same_pixels.diagonal().mean()),
        "original": float(own.mean()),
        "unharmed": float(np.mean(unharmed)),
        "pairs": len(met),
        "false": int(false.sum()),
        "equal_false": int((same_pixels & (group[:, None] != group[None])).sum()),
    }


def unchanged(original: bytes, copy: bytes) -> bool:
    """Whether a copy has the original's size and differs by a peak signal-to-noise ratio of UNSEEN or more."""
    one, other = (decode(data, channels=3).astype(np.float32) for data in (original, copy))
    if one.shape != other.shape:
        return False
    return float(((one - other) ** 2).mean()) <= 255**2 / 10 ** (UNSEEN / 10)


def removed(pictures: Pictures) -> dict[str, Any]:
    """Of pictures that are all different but for known twins: pairs of different ones, and the share that would be removed."""
    found = known(pictures.files)
    group = np.array(pictures.groups)
    met = within(found.table)
    kept = groups(met.first, met.second, best_copy_rank(found, met.first, met.second))
    wrong = ~kept.kept & (group[kept.representative] != group)
    return {
        "set": pictures.name,
        "pictures": len(pictures),
        "false": int((group[met.first] != group[met.second]).sum()),
        "over_removal": float(wrong.mean()),
        "examples": _examples(met, group),
    }


def _examples(met: Edges, group: np.ndarray) -> list[list[str | int]]:
    """At most ten, the nearest first: to be looked at."""
    rows = sorted(zip(met.distance.tolist(), group[met.first].tolist(), group[met.second].tolist(), strict=True))
    return [[first, second, bits] for bits, first, second in rows if first != second][:10]
