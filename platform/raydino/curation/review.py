"""Review: which pairs people should look at, and what their answers say about the precision of a threshold.

Far from a threshold every pair is plain, so those close to it are shown, some from either side. Someone writes `yes` or `no` into
the column `same` of the table; `judged` counts, and `wilson` says between which shares the truth lies.
"""

import csv
import io
from collections import defaultdict
from collections.abc import Sequence
from heapq import nsmallest
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raydino.config import ConfigError
from raydino.curation.report import ShownPair, Unit
from raydino.keyed import key64

NEAR = {"bits": 8.0, "cosine": 0.05}
"""How far from a threshold pairs are drawn: about a sixth of the radius in bits, a tenth of the usual cosines (0.45 to 0.75)."""
Z = 1.959963984540054  # the standard normal lies within ±Z with probability 0.95
CELL = 240  # characters; of a longer path the end tells images apart, and the id is there anyway
COLUMNS = (
    "pair", "tier", "with_set", "value", "unit", "joined", "same", "first_id", "second_id", "first_path", "second_path",
)  # fmt: skip
_ANSWERS = {"yes": True, "no": False, "": None}


def stratified(
    values: ArrayLike, threshold: float, *, each: int, keys: Sequence[bytes], unit: Unit, seed: int = 0
) -> NDArray[np.int64]:
    """Indices into `values` [N] of up to `each` values close to `threshold` on either side of it, in ascending order of value.

    Which ones is decided by `keys` [N] (such as the two ids of a pair) and `seed`, so the order of the input does not matter.
    Bits join up to the threshold, cosines from it on; the threshold itself is on that side.
    """
    value = np.asarray(values, dtype=float)
    joined = value <= threshold if unit == "bits" else value >= threshold
    near = np.abs(value - threshold) <= NEAR[unit] + 1e-9  # .45 is not exactly .05 below .5
    drawn: list[int] = []
    for side in (joined, ~joined):
        rows = np.flatnonzero(near & side).tolist()
        drawn += nsmallest(each, rows, key=lambda row: (key64(seed, "pair", keys[row]), keys[row]))
    return np.array(sorted(drawn, key=lambda row: (value[row], keys[row])), dtype=np.int64)


def wilson(right: int, total: int) -> tuple[float, float]:
    """The shares between which the true one lies with 95 % confidence, where `right` of `total` were (Wilson, 1927).

    The two roots p of (right/total - p)² = Z² p (1 - p) / total; 0 and 1 where nothing was looked at.

    Raises:
        ValueError: `right` is not between 0 and `total`.
    """
    if not 0 <= right <= total:
        raise ValueError(f"right = {right}: must be between 0 and total = {total}")
    if not total:
        return 0.0, 1.0
    share, spread = right / total, Z * Z / total
    middle = share + spread / 2
    reach = (spread * (share * (1 - share) + spread / 4)) ** 0.5
    # at 0 and 1 an end is exact, which rounding would miss
    low = (middle - reach) / (1 + spread) if right else 0.0
    high = (middle + reach) / (1 + spread) if right < total else 1.0
    return low, high


def label_table(pairs: Sequence[ShownPair]) -> str:
    """CSV of the pairs, numbered from 1 as on the page, with an empty column `same` for people to fill."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for number, pair in enumerate(pairs, 1):
        writer.writerow(
            [
                *(number, _inert(pair.tier), _inert(pair.with_set), f"{pair.value:g}", pair.unit),
                *("yes" if pair.accepted else "no", "", pair.first.id.hex(), pair.second.id.hex()),
                *(_inert(pair.first.path), _inert(pair.second.path)),
            ]
        )
    return out.getvalue()


def judged(table: str) -> dict[tuple[str, str, Literal["joined", "apart"]], tuple[int, int]]:
    """From a filled table: by tier, set and side of the threshold how many pairs show the same picture, and how many were judged.

    `wilson` of a joined entry is the precision close to the threshold; of one kept apart, the share that are copies after all.

    Raises:
        ConfigError: a column is missing, or an answer is neither yes nor no.
    """
    reader = csv.DictReader(io.StringIO(table))
    if missing := [name for name in ("tier", "with_set", "joined", "same") if name not in (reader.fieldnames or ())]:
        raise ConfigError(f"labels: no column {missing[0]!r} in {reader.fieldnames}; keep the first line of the table.")
    counts: dict[tuple[str, str, Literal["joined", "apart"]], tuple[int, int]] = defaultdict(lambda: (0, 0))
    for line, row in enumerate(reader, 2):
        answer = (row["same"] or "").strip().lower()
        if answer not in _ANSWERS:
            raise ConfigError(f"labels: same = {answer!r} in row {line}; write yes or no, or leave it empty.")
        if (same := _ANSWERS[answer]) is not None:
            side = (row["tier"], row["with_set"], "joined" if row["joined"] == "yes" else "apart")
            right, total = counts[side]
            counts[side] = right + same, total + 1
    return dict(sorted(counts.items()))


def _inert(cell: str) -> str:
    """The end of a cell; a spreadsheet takes one that begins like these for a formula, and paths come from strangers."""
    cell = cell if len(cell) <= CELL else f"…{cell[1 - CELL :]}"
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell
