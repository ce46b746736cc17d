"""Keep-masks: which rows of a split training sees, and why not the others. They lie beside the shards, which never change for it.

So one set of shards serves any number of decisions about it. A mask has the rows of its split in their order, and its digest
stands in the manifest: a run can tell that it trains on what it began with.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydino.shards.schema import ID, Folder, ShardError

_SCHEMA = pa.schema(
    [("id", ID), ("keep", pa.bool_()), ("reason", pa.string()), ("evidence_id", ID), ("distance", pa.int32())]
)


@dataclass(frozen=True)
class KeepMask:
    """Decisions on the rows of one split."""

    reason: tuple[str | None, ...]
    """Why a row is left out; None for rows that stay."""
    evidence: tuple[bytes | None, ...]
    """Id of the image that a row repeats."""
    distance: NDArray[np.int64]
    """[N] bits of 256 between the two, 0 for equal ones; of a row that leaked through a duplicate, those of the duplicate."""

    @property
    def keep(self) -> NDArray[np.bool_]:
        """bool [N]."""
        return np.array([reason is None for reason in self.reason], dtype=bool)

    @property
    def digest(self) -> str:
        """sha256 of the kept rows."""
        return hashlib.sha256(np.packbits(self.keep).tobytes() + str(len(self.reason)).encode()).hexdigest()

    def counts(self) -> dict[str, int]:
        """Rows left out, by reason."""
        return dict(sorted(Counter(reason for reason in self.reason if reason is not None).items()))


def mask_path(split: str) -> str:
    """Where the mask of a split lies in a curated folder."""
    return f"keep/{split}.parquet"


def write_mask(folder: Folder, split: str, mask: KeepMask, *, ids: Sequence[bytes]) -> None:
    """Write the mask of a split whose rows have `ids`."""
    columns = [
        pa.array(ids, ID),
        pa.array(mask.keep),
        pa.array(mask.reason, pa.string()),
        pa.array(mask.evidence, ID),
        pa.array(mask.distance, pa.int32()),
    ]
    folder.write_table(mask_path(split), pa.table(columns, schema=_SCHEMA))


def read_mask(folder: Folder, split: str, *, rows: int, digest: str) -> KeepMask:
    """Read the mask of a split. Raises ShardError if it is missing, of another number of rows or not the manifest's."""
    place = f"{folder}/{mask_path(split)}"
    try:
        table = folder.read_table(mask_path(split))
    except (OSError, pa.ArrowException) as error:
        raise ShardError(f"{place}: cannot be read ({error}); screen the folder again.") from None
    mask = KeepMask(
        tuple(table["reason"].to_pylist()),
        tuple(table["evidence_id"].to_pylist()),
        table["distance"].to_numpy().astype(np.int64),
    )
    if len(mask.reason) != rows or mask.digest != digest:
        raise ShardError(
            f"{place}: {len(mask.reason):,} rows, digest {mask.digest[:16]}…; the manifest says {rows:,} and {digest[:16]}…. "
            "Screen the folder again."
        )
    return mask
