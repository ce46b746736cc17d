"""Claims: copies and evaluation images are refused while training streams, for a folder that was never curated.

The first row that claims an image's id owns it for good, and who asks again gets the same answer. So a call that is tried
twice, a worker that starts anew and the next epoch lose nothing; a set of "ids seen" would refuse them all (Data-Juicer
#978). All ranks must ask the same claims, or copies in two ranks' lanes stay (Data-Juicer #971). After the first epoch
every id has its owner, and a claim only looks it up.

A rank asks for a window when it takes it up, in the order of the plan, not where it is read: tasks that read ahead finish
in any order, and one rank alone then repeats itself.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydino.config import ConfigError
from raydino.data.fetch import DUPLICATE, LEAKED, Met, TooManyBadImages
from raydino.data.plan import Rows

Ids = NDArray[np.bytes_]
"""S16 [N], content ids. NumPy compares them as 16 bytes; the zeros it hides at their end are the padding it compares by."""
Claim = Callable[[Ids, Rows], Rows]
"""`claim(ids, rows)`: int64 [N], the row that owns each id once these rows have claimed them; NOBODY for a forbidden id."""

NOBODY = -1
_FREE = -2
LEAST_NEW = 65_536  # claims kept in a dict (120 bytes each) before they join the sorted arrays (24 bytes each)
NEW_SHARE = (
    16  # and at least this part of those there, so that an entry is copied about 16 times in all, not once per 65,536
)
SPARE = (
    256  # rows at hand for a window that has fewer of its own: more than a lane's share of a batch, less than a window
)
LOOK_AHEAD = 8  # windows held, at most, until one has a row that may be trained on


class Claims:
    """Who owns which id: 24 bytes an image, and up to a sixteenth of them in a dict.

    Args:
        path: file that `save` writes and the next `Claims` of this path begins with; None for none.
        data: digest of the images; claims made on others are not taken up, since their rows are numbered otherwise.

    Raises:
        ConfigError: the file is there and cannot be read.
    """

    def __init__(self, path: Path | None = None, data: str = "") -> None:
        self._path, self._data, self._saved = path, data, True
        self._ids: Ids = np.empty(0, dtype="S16")  # ascending
        self._owners: Rows = np.empty(0, dtype=np.int64)
        self._new: dict[bytes, int] = {}
        if path is not None and path.exists():
            self._load(path)

    def __len__(self) -> int:
        return len(self._ids) + len(self._new)

    def claim(self, ids: Ids, rows: Rows) -> Rows:
        """The owners of `ids` after `rows` claimed them; see `Claim`."""
        places, known = self._find(ids)
        owners = np.full(len(ids), _FREE, dtype=np.int64)
        owners[known] = self._owners[places[known]]
        free = np.flatnonzero(~known)
        before = len(self._new)
        for at, identity, row in zip(free.tolist(), ids[free].tolist(), rows[free].tolist(), strict=True):
            owners[at] = self._new.setdefault(identity, row)
        self._saved = self._saved and len(self._new) == before
        if len(self._new) > max(LEAST_NEW, len(self._ids) // NEW_SHARE):
            self._merge()
        return owners

    def forbid(self, ids: Ids) -> None:
        """No row may have these ids from now on, not even one that owns them. Saved at once: a leak is not undone later."""
        self._merge()
        ids = np.unique(ids)
        places, known = self._find(ids)
        self._owners[places[known]] = NOBODY
        self._new = dict.fromkeys(ids[~known].tolist(), NOBODY)
        self._saved = False
        self.save()

    def save(self) -> None:
        """Write all claims to `path`, beside and renamed, so that nobody ever meets half of them. Raises OSError."""
        if self._path is None or self._saved:
            return
        self._merge()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_name(f".{self._path.name}.tmp")
        with temporary.open("wb") as file:
            np.savez(file, ids=self._ids, owners=self._owners, data=np.array(self._data))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)
        self._saved = True

    def _load(self, path: Path) -> None:
        try:
            with np.load(path, allow_pickle=False) as saved:
                if str(saved["data"]) == self._data:
                    self._ids, self._owners = saved["ids"], saved["owners"]
        except Exception as error:  # whatever zipfile and NumPy make of a torn file
            raise ConfigError(
                f"{path}: the claims of data.stream_dedup cannot be read ({error}); without them evaluation images could be "
                "trained on. Remove the file to have all images claimed anew."
            ) from None

    def _find(self, ids: Ids) -> tuple[Rows, NDArray[np.bool_]]:
        """Where each id stands in the sorted arrays, and whether it does."""
        if not len(self._ids):
            return np.zeros(len(ids), dtype=np.int64), np.zeros(len(ids), dtype=bool)
        places = np.searchsorted(self._ids, ids).clip(max=len(self._ids) - 1)
        return places, self._ids[places] == ids

    def _merge(self) -> None:
        """Moves the dict into the sorted arrays."""
        ids = np.array(list(self._new), dtype="S16")
        order = np.argsort(ids)
        places = np.searchsorted(self._ids, ids[order])
        self._owners = np.insert(self._owners, places, np.array(list(self._new.values()), dtype=np.int64)[order])
        self._ids = np.insert(self._ids, places, ids[order])
        self._new = {}


@dataclass(frozen=True)
class Admitted:
    """A window and which of its rows are trained on."""

    rows: pa.Table
    """The window, and after it the rows that it borrows."""
    turns: Rows | None = None
    """int64 [rows of the window]: the row of `rows` that is used at each place; None: each its own."""
    refused: Mapping[int, Met] = field(default_factory=dict)
    """What was refused, by place."""


def admit(claim: Claim, windows: Iterable[tuple[pa.Table, Rows]]) -> Iterator[Admitted]:
    """The windows of one rank, each with the numbers of its rows, with other rows in the place of those that are refused.

    The accepted rows of the window stand in, one after another, so that none stands in twice before all have. A window with
    few of its own (a folder copied into itself has many of those) borrows from those before it. Where a rank begins there are
    none yet: copies then stand in, which does no harm once, but never an evaluation image; for that it looks ahead.

    Raises:
        TooManyBadImages: a rank begins with LOOK_AHEAD windows of nothing but evaluation images.
    """
    spare: pa.Table | None = None
    waiting: list[tuple[pa.Table, Rows, Rows]] = []
    for rows, numbers in windows:
        owners = claim(ids_of(rows), numbers)
        waiting.append((rows, numbers, owners))
        spare = _set_aside(rows, numbers, owners, spare)
        if spare is not None:
            yield from [_admitted(*window, spare) for window in waiting]
            waiting.clear()
        elif len(waiting) == LOOK_AHEAD:
            break
    if waiting:
        raise TooManyBadImages(
            f"{len(waiting)} windows of data.window rows hold nothing but evaluation images, of data.stream_against or of this "
            "run; leave them out of data.path, or out of data.stream_against if they are to be trained on."
        )


def _set_aside(rows: pa.Table, numbers: Rows, owners: Rows, spare: pa.Table | None) -> pa.Table | None:
    """The last rows that were accepted, SPARE at most."""
    fresh = np.flatnonzero(owners == numbers)
    if not len(fresh) and spare is None:
        fresh = np.flatnonzero(owners != NOBODY)
    if not len(fresh):
        return spare
    taken = rows.take(fresh[-SPARE:])
    if spare is None or taken.num_rows == SPARE:
        return taken
    return pa.concat_tables(
        [taken, spare.slice(0, SPARE - taken.num_rows)]
    ).combine_chunks()  # lets go of their windows


def _admitted(rows: pa.Table, numbers: Rows, owners: Rows, spare: pa.Table) -> Admitted:
    refused = np.flatnonzero(owners != numbers)
    if not len(refused):
        return Admitted(rows)
    table, stand_ins = rows, np.flatnonzero(owners == numbers)
    if len(stand_ins) < SPARE:
        table = pa.concat_tables([rows, spare])
        stand_ins = np.arange(rows.num_rows, table.num_rows)
    turns = np.arange(len(numbers))
    # From the middle on: the row next to it would often stand in the same batch, with the same crops.
    turns[refused] = stand_ins[(np.arange(len(refused)) + len(stand_ins) // 2) % len(stand_ins)]
    reasons = {at: LEAKED if owners[at] == NOBODY else DUPLICATE for at in refused.tolist()}
    return Admitted(table, turns, {at: _met(rows, at, int(numbers[at]), why) for at, why in reasons.items()})


def ids_of(rows: pa.Table) -> Ids:
    """The column `id` of a table that `Collection.read` or `Fetch` made."""
    chunks = [chunk for chunk in rows["id"].chunks if len(chunk)]
    parts = [np.frombuffer(c.buffers()[1], dtype="S16", count=len(c), offset=16 * c.offset) for c in chunks]
    return np.concatenate([np.empty(0, dtype="S16"), *parts])


def _met(rows: pa.Table, at: int, number: int, reason: str) -> Met:
    """A refused row; by its number where it has no path, for its id does not tell it from its copies."""
    return rows["id"][at].as_py(), rows["path"][at].as_py() or f"row {number}", reason
