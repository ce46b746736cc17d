"""Turns: which rows are in which epoch, as a pure function of (row groups, keep-mask, weights, seed, epoch).

Without weights every kept row is in every epoch. With them a row of weight w is in a share w of the epochs, by systematic
sampling: the kept rows lie on a line, each as a stretch as long as its weight, and epoch e takes the rows whose stretch holds
one of the marks u_e, u_e + 1, u_e + 2, … No weight is above 1, so no row is taken twice, and every epoch has the same number
of rows, the length of the line. From epoch to epoch the marks move on by the golden ratio, so a row comes round at intervals
of at most three lengths (three-gap theorem); with independent draws one row in twenty of weight 0.1 would still be unseen
after 28 epochs.

Inside a row group the rows lie in a keyed order that stays the same: in storage order, with a left and a right picture of
each scene and all weights 1/2, an epoch would hold the left ones only. The line is known at the edges of groups, so as for
the rest of the order all arrays are per row group, but for the mask and the weights themselves. It is measured in whole
units: no sum rounds.
"""

import numpy as np
from numpy.typing import NDArray

from raydino.config import ConfigError
from raydino.keyed import generator, key64

Rows = NDArray[np.int64]
Weights = NDArray[np.float32] | NDArray[np.float64]

UNIT = 1 << 30  # of weight 1; int64 then holds the weights of 8 · 10⁹ rows, each to 10⁻⁹
STRIDE = 663_608_941  # UNIT over the golden ratio: of all numbers the hardest to come near by fractions, so marks stay spread
BLOCK = 1 << 14  # row groups summed at once: about 10⁶ rows, 8 MB


class PlanError(ConfigError):
    """An order that cannot be made from the given rows, batch, lanes and workers."""


class Turns:
    """Which rows are in which epoch.

    Args:
        row_groups: int64 [groups], rows of each row group, in storage order.
        seed: seed of the order.
        keep: bool [rows], False for rows that must not be seen; None keeps all.
        weights: [rows], in (0, 1]: the share of epochs in which a row is seen; None is 1 for all. Those of rows that are not
            kept mean nothing. All are scaled down by one factor, above 1 - 1 / sum, so that the kept ones add up to an integer.

    Raises:
        PlanError: the mask or the weights are of another length, or a weight is out of range.
    """

    def __init__(
        self,
        row_groups: Rows,
        *,
        seed: int,
        keep: NDArray[np.bool_] | None = None,
        weights: Weights | None = None,
    ) -> None:
        self._seed, self._keep, self._weights = seed, keep, weights
        self.starts: Rows = np.concatenate([[0], np.cumsum(row_groups)])
        """[groups + 1], first row of each group."""
        self._check()
        self._kept = row_groups if keep is None else _group_sums(keep, self.starts)
        self.kept = int(self._kept.sum())
        """Rows that are not masked out."""
        self.per_epoch = self.kept
        """Rows of an epoch, the same for all."""
        if weights is not None:
            self._sums = self._summed()
            self.per_epoch, self._excess = divmod(int(self._sums[-1]), UNIT)

    def counts(self, epoch: int) -> Rows:
        """int64 [groups]: rows of each row group that are in `epoch`."""
        return self._kept if self._weights is None else np.diff(self._marks(self._sums, epoch))

    def inside(self, epoch: int, group: int) -> Rows:
        """Rows of a group that are in `epoch`, counted from the group's first, ascending."""
        stretch = slice(self.starts[group], self.starts[group + 1])
        kept = np.arange(stretch.stop - stretch.start) if self._keep is None else np.flatnonzero(self._keep[stretch])
        if self._weights is None:
            return kept
        order = kept[generator(self._seed, "turns", group).permutation(len(kept))]
        units = _units(self._weights[stretch][order])
        edges = self._sums[group] + np.concatenate([[0], np.cumsum(units)])
        return np.sort(order[np.diff(self._marks(edges, epoch)) > 0])

    def _marks(self, line: Rows, epoch: int) -> Rows:
        """Marks of `epoch` up to each point of the line, which is shrunk to a whole number of them."""
        if self._excess:  # in float64 the product is off by 2⁻²¹ at most, and the ends are met exactly
            line = line - np.rint(line * (self._excess / int(self._sums[-1]))).astype(np.int64)
        return (line + (key64(self._seed, "turns") + epoch * STRIDE) % UNIT) // UNIT

    def _summed(self) -> Rows:
        """[groups + 1], running sum of the kept rows' weights at the edges of the groups."""
        assert self._weights is not None
        sums = np.zeros_like(self.starts)
        for first in range(0, len(self.starts) - 1, BLOCK):
            edges = self.starts[first : first + BLOCK + 1]
            units = _units(self._weights[edges[0] : edges[-1]])
            if self._keep is not None:
                units *= self._keep[edges[0] : edges[-1]]
            sums[first + 1 : first + len(edges)] = _group_sums(units, edges - edges[0])
        return np.cumsum(sums)

    def _check(self) -> None:
        rows = int(self.starts[-1])
        if self._keep is not None and (self._keep.dtype != np.bool_ or self._keep.shape != (rows,)):
            raise PlanError(
                f"keep is {self._keep.dtype} {list(self._keep.shape)} for {rows:,} rows; it must be bool [{rows}], "
                "made from the same shards."
            )
        if self._weights is None:
            return
        if self._weights.dtype.kind != "f" or self._weights.shape != (rows,):
            raise PlanError(
                f"weights are {self._weights.dtype} {list(self._weights.shape)} for {rows:,} rows; they must be floating-point "
                f"[{rows}], made from the same shards."
            )
        bad = ~((self._weights > 0) & (self._weights <= 1))  # NaN too
        if self._keep is not None:
            bad &= self._keep
        if bad.any():
            row = int(np.argmax(bad))
            raise PlanError(
                f"weights: row {row} has weight {self._weights[row]}; give more than 0 and at most 1, the share of epochs in "
                "which it is seen. Rows never to be seen belong into the keep-mask."
            )


def _units(weights: Weights) -> Rows:
    return np.maximum(np.rint(weights.astype(np.float64) * UNIT), 1).astype(np.int64)


def _group_sums(values: NDArray[np.bool_] | Rows, starts: Rows) -> Rows:
    """int64 [groups]: sums of the values of each group."""
    sums = np.zeros(len(starts) - 1, dtype=np.int64)
    filled = np.diff(starts) > 0  # reduceat gives an element, not a zero, for an empty stretch
    if filled.any():
        sums[filled] = np.add.reduceat(values, starts[:-1][filled], dtype=np.int64)
    return sums
