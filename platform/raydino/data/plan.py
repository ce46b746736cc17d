"""Plan: which image stands in which slot of which step, as a pure function of (row groups, keep-mask, weights, seed, step).

The epoch permutes whole row groups and cuts the rows whose turn it is (`turns.py`) into `lanes` equal stretches; inside a
lane, windows of whole groups are shuffled by row. So storage is read in large sequential pieces about once per epoch, the
global order is the same for every world size that divides `lanes`, and resuming at a step costs nothing: the step is the
only state. Considered instead: a full permutation of rows (reads a row group per row), a shuffle buffer (its content is
state, so a resume replays it), a position in an iterator (Ray Data has none).

All arrays are per row group, so ten million groups fit in memory; rows are only enumerated for the windows in use.
Lane coordinates: a lane never ends, it is one line of rows over all epochs, and step s takes its rows [s·b, (s+1)·b),
b = global_batch / lanes.
"""

import heapq
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydino.data.turns import PlanError, Rows, Turns, Weights
from raydino.keyed import generator

EPOCHS_AT_HAND = 2  # a batch never spans more than the end of one epoch and the start of the next
WINDOWS_AT_HAND = 128  # a step touches one or two windows per lane; an order of 1024 rows is 8 kB


@dataclass(frozen=True)
class Window:
    """A stretch of a lane whose rows are shuffled together."""

    epoch: int
    lane: int
    index: int
    """Number of the window within its epoch and lane."""
    begin: int
    """First row, lane coordinates."""
    end: int
    """Past the last row, lane coordinates."""

    @property
    def rows(self) -> int:
        """Rows in the window."""
        return self.end - self.begin


@dataclass(frozen=True)
class _Epoch:
    """One epoch's order of row groups, those without a row in it left out."""

    groups: Rows  # group numbers in the epoch's order
    bounds: Rows  # [groups + 1], running count of the epoch's rows


class Plan:
    """The order of a run.

    Args:
        row_groups: rows of each row group, in storage order.
        seed: seed of the order.
        global_batch: images per step over all workers; a multiple of `lanes`.
        lanes: independent stretches of an epoch; the world size must divide it.
        window: least rows shuffled together; rounded up to whole row groups.
        keep: bool [rows], False for rows that must not be seen; None keeps all.
        weights: [rows], in (0, 1]: the share of epochs in which a row is seen; None is 1 for all (see `Turns`).

    Raises:
        PlanError: the settings contradict each other, or an epoch has fewer rows than a global batch holds.
    """

    def __init__(
        self,
        row_groups: Sequence[int] | Rows,
        *,
        seed: int,
        global_batch: int,
        lanes: int,
        window: int,
        keep: NDArray[np.bool_] | None = None,
        weights: Weights | None = None,
    ) -> None:
        self.seed, self.global_batch, self.lanes, self.window = seed, global_batch, lanes, window
        self.row_groups: Rows = np.asarray(row_groups, dtype=np.int64).reshape(-1)
        self._check()
        self._turns = Turns(self.row_groups, seed=seed, keep=keep, weights=weights)
        self.kept = self._turns.kept
        """Rows that are not masked out."""
        self.rows_per_epoch = self._turns.per_epoch
        """Rows of an epoch: those kept or, with weights, the sum of their weights."""
        if self.rows_per_epoch < global_batch:
            weighed = "" if weights is None else f" with {self.rows_per_epoch:,} in an epoch"
            remedy = "loosen the keep-mask" if weights is None else "balance to a larger target"
            raise PlanError(
                f"{self.kept:,} rows are kept of {self.rows:,}{weighed}, fewer than global_batch = {global_batch}; "
                f"lower global_batch to {max(lanes, self.rows_per_epoch // lanes * lanes)} or less, or {remedy}."
            )
        self.per_lane = global_batch // lanes
        """Rows a lane gives to each step."""
        self.steps_per_epoch = self.rows_per_epoch // global_batch
        """Steps in an epoch."""
        self._make_caches()

    @property
    def rows(self) -> int:
        """Rows in storage, kept or not."""
        return int(self._turns.starts[-1])

    @property
    def dropped_per_epoch(self) -> int:
        """Rows of an epoch that are left out because they do not fill a batch; others in every epoch."""
        return self.rows_per_epoch - self.steps_per_epoch * self.global_batch

    def slots(self, step: int) -> Rows:
        """int64 [global_batch]: the row of each slot of `step`, counted over all row groups in storage order."""
        return self.rank_slots(step, rank=0, world=1)

    def rank_slots(self, step: int, *, rank: int, world: int) -> Rows:
        """int64 [global_batch / world]: the rows of a rank's slots (slot ≡ rank mod world), by ascending slot."""
        owned = self.owned_lanes(rank=rank, world=world)
        if step < 0:
            raise PlanError(f"step = {step}; steps count from 0.")
        return np.stack([self._lane_rows(lane, step) for lane in owned], axis=1).reshape(-1)

    def owned_lanes(self, *, rank: int, world: int) -> range:
        """The lanes of a rank, ascending. Raises PlanError if `world` does not divide the lanes."""
        if world < 1 or self.lanes % world:
            allowed = ", ".join(str(n) for n in range(1, self.lanes + 1) if self.lanes % n == 0)
            raise PlanError(f"{world} workers cannot share lanes = {self.lanes} evenly; use one of {allowed} workers.")
        if not 0 <= rank < world:
            raise PlanError(f"rank = {rank} of {world} workers; ranks run from 0 to {world - 1}.")
        return range(rank, self.lanes, world)

    def windows(self, *, rank: int, world: int, start_step: int, steps: int) -> Iterator[Window]:
        """The windows a rank needs for steps [start_step, start_step + steps), by step of first need, then lane."""
        if start_step < 0 or steps < 0:
            raise PlanError(f"start_step = {start_step}, steps = {steps}; neither can be negative.")
        lines = [self._line(lane, start_step, start_step + steps) for lane in self.owned_lanes(rank=rank, world=world)]
        needed = heapq.merge(*lines, key=lambda window: (max(window.begin // self.per_lane, start_step), window.lane))
        return iter(needed)

    def window_rows(self, window: Window) -> Rows:
        """int64 [window.rows]: global row numbers in the order in which they are used."""
        return self._rows_of(window)[0]

    def window_order(self, window: Window) -> Rows:
        """int64 [window.rows]: the same rows as places in the table of the window's groups, one after another."""
        return self._rows_of(window)[1]

    def window_groups(self, window: Window) -> Rows:
        """Row groups that hold the window's rows, in the epoch's order; neighbour lanes may share the outer ones."""
        epoch = self._epoch(window.epoch)
        first, last = self._group_span(epoch, *self._in_epoch(window))
        return epoch.groups[first:last]

    def read_amplification(self, epoch: int) -> float:
        """Rows read in `epoch`, groups that two lanes share counted twice, over the rows used in it; 1 is ideal."""
        order = self._epoch(epoch)
        read = np.concatenate([[0], np.cumsum(self.row_groups[order.groups])])
        lane_rows = self.steps_per_epoch * self.per_lane
        spans = [self._group_span(order, lane * lane_rows, (lane + 1) * lane_rows) for lane in range(self.lanes)]
        return float(sum(read[last] - read[first] for first, last in spans)) / (self.lanes * lane_rows)

    def _check(self) -> None:
        for name in ("global_batch", "lanes", "window"):
            if getattr(self, name) < 1:
                raise PlanError(f"{name} = {getattr(self, name)}; it must be at least 1.")
        if self.global_batch % self.lanes:
            near = max(self.lanes, round(self.global_batch / self.lanes) * self.lanes)
            raise PlanError(
                f"global_batch = {self.global_batch} is not a multiple of lanes = {self.lanes}; use {near}."
            )
        if (self.row_groups < 0).any():
            raise PlanError(f"row_groups: group {int(np.argmax(self.row_groups < 0))} has a negative number of rows.")

    def _make_caches(self) -> None:
        self._lock = threading.RLock()  # the feeder and the consumer ask for the same epoch at the same time
        self._epoch = lru_cache(EPOCHS_AT_HAND)(self._make_epoch)
        self._cuts = lru_cache(EPOCHS_AT_HAND * self.lanes)(self._make_cuts)
        self._rows_of = lru_cache(max(WINDOWS_AT_HAND, 4 * self.lanes))(self._make_rows)

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: value for name, value in vars(self).items() if name not in ("_lock", "_epoch", "_cuts", "_rows_of")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._make_caches()

    def _make_epoch(self, epoch: int) -> _Epoch:
        with self._lock:
            groups = generator(self.seed, "groups", epoch).permutation(len(self.row_groups))
            counts = self._turns.counts(epoch)
            groups = groups[counts[groups] > 0]
            return _Epoch(groups, np.concatenate([[0], np.cumsum(counts[groups])]))

    def _make_cuts(self, epoch: int, lane: int) -> Rows:
        """Window edges of a lane over the epoch's rows: each window takes whole pieces until it has enough."""
        with self._lock:
            bounds, lane_rows = self._epoch(epoch).bounds, self.steps_per_epoch * self.per_lane
            begin, end = lane * lane_rows, (lane + 1) * lane_rows
            first, last = np.searchsorted(bounds, begin, side="right"), np.searchsorted(bounds, end, side="left")
            edges = np.concatenate([[begin], bounds[first:last], [end]])
            reach = np.searchsorted(edges, edges + self.window, side="left").clip(max=len(edges) - 1).tolist()
            taken = [0]
            while taken[-1] < len(edges) - 1:
                taken.append(reach[taken[-1]])
            return edges[taken]

    def _make_rows(self, window: Window) -> tuple[Rows, Rows]:
        order = self._epoch(window.epoch)
        begin, end = self._in_epoch(window)
        first, last = self._group_span(order, begin, end)
        rows, places, read = [], [], 0
        for number in range(first, last):
            group = int(order.groups[number])
            piece = slice(max(0, begin - int(order.bounds[number])), end - int(order.bounds[number]))
            inside = self._turns.inside(window.epoch, group)[piece]
            rows.append(self._turns.starts[group] + inside)
            places.append(read + inside)
            read += int(self.row_groups[group])
        shuffle = generator(self.seed, "rows", window.epoch, window.lane, window.index).permutation(window.rows)
        return np.concatenate(rows)[shuffle], np.concatenate(places)[shuffle]

    def _group_span(self, order: _Epoch, begin: int, end: int) -> tuple[int, int]:
        """Places, in the epoch's order, of the groups that hold rows [begin, end)."""
        first = int(np.searchsorted(order.bounds, begin, side="right")) - 1
        return first, int(np.searchsorted(order.bounds, end, side="left"))

    def _in_epoch(self, window: Window) -> tuple[int, int]:
        """A window's stretch counted over the rows of its epoch."""
        lane_rows = self.steps_per_epoch * self.per_lane
        shift = (window.lane - window.epoch) * lane_rows
        return window.begin + shift, window.end + shift

    def _line(self, lane: int, first_step: int, end_step: int) -> Iterator[Window]:
        """The windows of a lane that steps [first_step, end_step) touch, over as many epochs as that takes."""
        if first_step >= end_step:
            return
        lane_rows = self.steps_per_epoch * self.per_lane
        start, stop = first_step * self.per_lane, end_step * self.per_lane
        for epoch in range(start // lane_rows, (stop - 1) // lane_rows + 1):
            cuts = self._cuts(epoch, lane) + (epoch - lane) * lane_rows
            first = max(0, int(np.searchsorted(cuts, start, side="right")) - 1)
            for index, (begin, end) in enumerate(pairwise(cuts[first:]), start=first):
                if begin >= stop:
                    return
                yield Window(epoch, lane, index, int(begin), int(end))

    def _lane_rows(self, lane: int, step: int) -> Rows:
        """int64 [per_lane]: what a lane gives to `step`."""
        begin = step * self.per_lane
        parts = [
            self.window_rows(window)[max(0, begin - window.begin) : begin + self.per_lane - window.begin]
            for window in self._line(lane, step, step + 1)
        ]
        return np.concatenate(parts)
