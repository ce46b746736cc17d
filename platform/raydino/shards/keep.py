"""Keep-masks: which rows of a split training sees and how often, and why not the others.

They lie beside the shards, which never change for them: one set of shards serves any number of decisions about it. A mask has
the rows of its split in their order, and its digest stands in the manifest: a run can tell that it trains on what it began
with.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydino.shards.manifest import Manifest
from raydino.shards.schema import ID, Folder, ShardError

ALL = "all"  # in place of a mask's name: every image
_SCHEMA = pa.schema(
    [("id", ID), ("keep", pa.bool_()), ("reason", pa.string()), ("evidence_id", ID), ("distance", pa.float32())]
)
_WEIGHTED = _SCHEMA.append(pa.field("weight", pa.float32()))


@dataclass(frozen=True)
class KeepMask:
    """Decisions on the rows of one split."""

    reason: tuple[str | None, ...]
    """Why a row is left out; None for rows that stay."""
    evidence: tuple[bytes | None, ...]
    """Id of the image that a row repeats."""
    distance: NDArray[np.float32]
    """[N] bits of 256 between the two, 0 for equal ones, or 1 - cosine where descriptors met (the reason says so); of a row
    that leaked through a duplicate, those of the duplicate."""
    weight: NDArray[np.float32] | None = None
    """[N], in (0, 1]: the share of epochs in which a row is seen; it means nothing for rows left out. None is 1 for all."""

    @property
    def keep(self) -> NDArray[np.bool_]:
        """bool [N]."""
        return np.array([reason is None for reason in self.reason], dtype=bool)

    @property
    def digest(self) -> str:
        """sha256 of the kept rows and, unless all are 1, their weights."""
        return _digest(self.keep, self.weights)

    @property
    def weights(self) -> NDArray[np.float32] | None:
        """[N], `weight` with 1 for rows left out; None where that is 1 for all."""
        return None if self.weight is None else _weights(self.keep, self.weight)

    def counts(self) -> dict[str, int]:
        """Rows left out, by reason."""
        return dict(sorted(Counter(reason for reason in self.reason if reason is not None).items()))


def mask_path(split: str, name: str = "") -> str:
    """Where the mask of a split lies in a curated folder; of several, one by `name`."""
    return f"keep/{name}/{split}.parquet" if name else f"keep/{split}.parquet"


def write_mask(folder: Folder, split: str, mask: KeepMask, *, ids: Sequence[bytes], name: str = "") -> None:
    """Write the mask of a split whose rows have `ids`. Raises ShardError if a weight is not in (0, 1]."""
    weights = mask.weights
    if weights is not None and not ((weights > 0) & (weights <= 1)).all():
        row = int(np.argmin((weights > 0) & (weights <= 1)))
        raise ShardError(
            f"{folder}/{mask_path(split)}: row {row} has weight {weights[row]}; give more than 0 and at most 1, "
            "and a reason to rows that are never to be seen."
        )
    columns = [
        pa.array(ids, ID),
        pa.array(mask.keep),
        pa.array(mask.reason, pa.string()),
        pa.array(mask.evidence, ID),
        pa.array(mask.distance, pa.float32()),
    ]
    if weights is None:  # no column, so files without weights are as they always were
        folder.write_table(mask_path(split, name), pa.table(columns, schema=_SCHEMA))
    else:
        folder.write_table(mask_path(split, name), pa.table([*columns, pa.array(weights)], schema=_WEIGHTED))


def read_mask(folder: Folder, split: str, *, rows: int, digest: str | None, name: str = "") -> KeepMask:
    """Read the mask of a split. Raises ShardError if it is missing, of another number of rows or not of `digest`, the manifest's;
    None asks for no digest.
    """
    place = f"{folder}/{mask_path(split, name)}"
    try:
        table = folder.read_table(mask_path(split, name))
    except (OSError, pa.ArrowException) as error:
        raise ShardError(f"{place}: cannot be read ({error}); screen the folder again.") from None
    mask = KeepMask(
        tuple(table["reason"].to_pylist()),
        tuple(table["evidence_id"].to_pylist()),
        table["distance"].to_numpy().astype(np.float32),
        table["weight"].to_numpy() if "weight" in table.column_names else None,
    )
    _check_digest(place, len(mask.reason), mask.digest, rows=rows, digest=digest)
    return mask


def _check_digest(place: str, found: int, its: str, *, rows: int, digest: str | None) -> None:
    if found != rows or (digest is not None and its != digest):
        said = f"{rows:,}" + (f" and {digest[:16]}…" if digest is not None else "")
        raise ShardError(
            f"{place}: {found:,} rows, digest {its[:16]}…; the manifest says {said}. Screen the folder again."
        )


def _digest(keep: NDArray[np.bool_], weights: NDArray[np.float32] | None) -> str:
    data = np.packbits(keep).tobytes() + str(len(keep)).encode()
    if weights is not None:
        data += weights.astype("<f4").tobytes()
    return hashlib.sha256(data).hexdigest()


def _weights(keep: NDArray[np.bool_], weight: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """[N], `weight` with 1 for rows left out; None where that is 1 for all."""
    weights = np.where(keep, weight, 1).astype(np.float32)
    return None if (weights == 1).all() else weights


@dataclass(frozen=True)
class Kept:
    """What training needs of a mask: a byte a row, not the reasons, which take a hundred."""

    keep: NDArray[np.bool_]
    """bool [N]."""
    weights: NDArray[np.float32] | None
    """[N], 1 for rows left out; None where that is 1 for all."""


def read_kept(folder: Folder, manifest: Manifest) -> dict[str, Kept]:
    """The masks of the splits of `manifest` that have one, without their reasons. Raises ShardError like `read_mask`."""
    found = {}
    for split, digest in manifest.keep.items():
        path, rows = mask_path(split, manifest.mask), manifest.of_split(split).rows
        try:
            table = folder.read_table(path, ["keep", "weight"])  # a column that is not there is left out
            keep = table["keep"].to_numpy()
        except (OSError, KeyError, pa.ArrowException) as error:
            raise ShardError(f"{folder}/{path}: cannot be read ({error}); screen the folder again.") from None
        weights = _weights(keep, table["weight"].to_numpy()) if "weight" in table.column_names else None
        _check_digest(f"{folder}/{path}", len(keep), _digest(keep, weights), rows=rows, digest=digest)
        found[split] = Kept(keep, weights)
    return found


def over_files(manifest: Manifest, parts: Mapping[str, NDArray[Any]], *, fill: Any) -> NDArray[Any]:
    """[rows], values of the rows of all files, from those of each split's rows in `parts`; `fill` for other splits."""
    taken, values = dict.fromkeys(parts, 0), []
    for file in manifest.files:
        if file.split in parts:
            start = taken[file.split]
            values.append(parts[file.split][start : start + file.rows])
            taken[file.split] = start + file.rows
        else:
            values.append(np.full(file.rows, fill))
    return np.concatenate(values)


def masked(folder: Folder, manifest: Manifest, name: str) -> Manifest:
    """The manifest with the keep-masks of the screening `name`, or with none for ALL. Raises ShardError if there are none."""
    found = {}
    for split in manifest.splits if name != ALL else ():
        if any(entry.path == mask_path(split, name) for entry in folder.files()):
            rows = manifest.of_split(split).rows
            found[split] = read_mask(folder, split, rows=rows, digest=None, name=name).digest
    if name != ALL and not found:
        raise ShardError(
            f"{folder}: there is no keep/{name}/; screen it with --name {name}, or name another screening."
        )
    return manifest.model_copy(update={"keep": found, "mask": name if found else ""})
