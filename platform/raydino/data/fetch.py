"""Fetch: one window of the plan as a table, read and perhaps cut, wherever that runs: a Ray task, a thread, a test.

It holds what must not depend on the place: rows in the order of use, the verdict on an undecodable image, and its
substitute, the next decodable row of the same window. Both follow from bytes and order alone, so replaying a step
meets the same images.
"""

from bisect import bisect_right
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydino import faults
from raydino.data.draws import room
from raydino.data.plan import Plan, Rows

if TYPE_CHECKING:
    from raydino.data.crops import Cropper, Encoded, Pixels

LEAST_SEEN = 100  # images before the share of bad ones is judged
DUPLICATE, LEAKED = (
    "duplicate",
    "leaked",
)  # reasons to refuse an image that says nothing against its bytes (data/claims.py)

Met = tuple[bytes, str, str]
"""An image that could not be used: id, path, reason."""
Bad = list[Met]
"""Images that could not be used, met on the way to one that could."""


class TooManyBadImages(RuntimeError):
    """More images cannot be decoded than the run accepts."""


@dataclass(frozen=True)
class BadImage:
    """An image that cannot be decoded or was refused, and where it was met first."""

    id: bytes
    path: str
    reason: str
    step: int
    slot: int
    """Slot of the global batch."""


@dataclass(frozen=True)
class Cut:
    """The image that filled a slot."""

    sample: bytes
    label: int | None
    """None where labels were not asked for, -1 where the image has none."""
    met: Bad
    """Images met before it that could not be decoded."""


@dataclass(frozen=True)
class Request:
    """A window to fetch, as plain data that is cheap to send."""

    window: int
    """Running number within this stream."""
    epoch: int
    groups: bytes
    """int64 row groups."""
    order: bytes
    """int64 places in the table of those groups, in the order of use."""


def requests(plan: Plan, *, rank: int, world: int, start_step: int, steps: int) -> Iterator[Request]:
    """What a rank fetches for steps [start_step, start_step + steps), in order of first need."""
    windows = plan.windows(rank=rank, world=world, start_step=start_step, steps=steps)
    for number, window in enumerate(windows):
        groups, order = plan.window_groups(window), plan.window_order(window)
        yield Request(number, window.epoch, groups.tobytes(), order.tobytes())


class Readable(Protocol):
    """What a window is read from: a `Collection`, or what stands for one."""

    @property
    def key(self) -> str:
        """The same for the same row groups, wherever they are read."""
        ...

    def read(self, group: int) -> pa.Table:
        """Row group `group` as columns id, bytes, path, label."""
        ...


@dataclass(frozen=True)
class Fetch:
    """Reads a window; with a cropper it decodes and cuts as well. Runs in Ray tasks or in a thread."""

    collection: Readable
    cropper: "Cropper | None"
    labels: bool = False

    def __call__(self, request: Request) -> pa.Table:
        """What the consumer gets: `read`, and `cut` if there is a cropper."""
        rows = self.read(request)
        return rows if self.cropper is None else self.cut(rows)

    def read(self, request: Request) -> pa.Table:
        """The rows of a window in the order of use: columns window, epoch, place, id, path, bytes, and label if asked for."""
        faults.reach("fetch", step=request.window)
        groups, order = (np.frombuffer(part, dtype=np.int64) for part in (request.groups, request.order))
        wanted = ["id", "path", "bytes"] + ["label"] * self.labels
        read = pa.concat_tables([self.collection.read(int(group)).select(wanted) for group in groups])
        rows = read.take(order).combine_chunks()
        about = {"window": request.window, "epoch": request.epoch}
        same = {name: np.full(len(order), value) for name, value in about.items()}
        return pa.table({**same, "place": order, **{name: rows[name] for name in rows.column_names}})

    def asked(self, request: pa.Table) -> pa.Table:
        """`read` for a request that comes as a table of one row, as it does in a Ray task."""
        return self.read(Request(**request.to_pylist()[0]))

    def cut(self, rows: pa.Table) -> pa.Table:
        """Rows as `read` gives them, or some of them, cut.

        For `bytes` come `bad`, the reason why an image cannot be decoded (else null), and whatever is cut (`draws.room`) as
        binary of one width, zeros for a bad image.
        """
        assert self.cropper is not None
        views = self.cropper.views
        crops = {name: np.zeros((rows.num_rows, *one.shape), dtype=one.dtype) for name, one in room(views).items()}
        images = zip(*(rows[name].to_pylist() for name in ("epoch", "id", "bytes")), strict=True)
        out = [{name: array[row] for name, array in crops.items()} for row in range(rows.num_rows)]
        reasons = self.cropper.cut_encoded(list(images), out=out)
        packed = {
            _column(name): pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(array[0].nbytes), len(array), [None, pa.py_buffer(array.reshape(-1))]
            )
            for name, array in crops.items()
            if array.size
        }
        kept = {name: rows[name] for name in rows.column_names if name != "bytes"}
        return pa.table({**kept, "bad": pa.array(reasons, type=pa.string()), **packed})


Read = Callable[[Fetch, Iterator[Request]], Generator[pa.Table, None, None]]
"""How windows are fetched: yields their tables in the order of the requests, a window as one table or several."""


def local_windows(fetch: Fetch, requests: Iterator[Request]) -> Generator[pa.Table, None, None]:
    """The windows, read one after another in this process, without Ray."""
    yield from map(fetch, requests)


class Cuts(Protocol):
    """What cuts encoded images: a `Cropper`, or a `Cutter` with its process."""

    def cut_encoded(
        self, images: "Sequence[Encoded]", *, out: Sequence[Mapping[str, NDArray[Any]]]
    ) -> list[str | None]:
        """As `Cropper.cut_encoded`."""
        ...


def cut_slots(
    places: Sequence[tuple[pa.Table, int, Rows | None]], cuts: Cuts, *, out: Sequence[Mapping[str, NDArray[Any]]]
) -> list[Cut]:
    """Cuts the image at each place, or the next decodable one of its window, into `out`; what was cut, and the bad ones met.

    A place is a window as `Fetch.read` gives it, a place there, and the row that is used at each of its places, where that is
    not the place itself (`claims.Admitted`).

    Raises:
        TooManyBadImages: no image of a window can be decoded.
    """
    rows = [_from(at, window.num_rows, turns) for window, at, turns in places]
    met: list[Bad] = [[] for _ in places]
    found: dict[int, Cut] = {}
    while left := [slot for slot in range(len(places)) if slot not in found]:
        tried = [_image(places[slot][0], rows[slot], met[slot]) for slot in left]
        reasons = cuts.cut_encoded([encoded for encoded, _, _ in tried], out=[out[slot] for slot in left])
        for slot, ((_, sample, _), path, label), reason in zip(left, tried, reasons, strict=True):
            if reason is None:
                found[slot] = Cut(sample, label, met[slot])
            else:
                met[slot].append((sample, path, reason))
    return [found[slot] for slot in range(len(places))]


def _image(window: pa.Table, rows: Iterator[int], met: Bad) -> "tuple[Encoded, str, int | None]":
    """The next image of a window: what is cut, its path, its label."""
    at = next(rows, None)
    if at is None:
        raise _none_decodable(met)
    epoch, sample, data, path = (window[name][at].as_py() for name in ("epoch", "id", "bytes", "path"))
    return (
        (epoch, sample, data),
        path or "",
        _label(window["label"][at].as_py()) if "label" in window.column_names else None,
    )


class CutWindow:
    """A window that was cut where it was read (`Fetch.cut`), ready to be copied into batches.

    `copy` does for a place what `cut_slots` does, with the same pixels: an image's crops are keyed by its own id, so those of a
    substitute are the ones cut for its own place.
    """

    def __init__(self, rows: pa.Table) -> None:
        self._ids: list[bytes] = rows["id"].to_pylist()
        self._paths: list[str | None] = rows["path"].to_pylist()
        self._bad: list[str | None] = rows["bad"].to_pylist()
        self._labels: list[int | None] | None = rows["label"].to_pylist() if "label" in rows.column_names else None
        self._parts: dict[str, list[Pixels]] = {}
        for name in rows.column_names:
            if name.startswith(_column("")):
                self._parts[name.removeprefix(_column(""))] = [_rows_of(chunk) for chunk in rows[name].chunks]
        lengths = [len(part) for part in next(iter(self._parts.values()), [])]
        self._ends = np.cumsum(lengths).tolist()

    def copy(self, place: int, out: Mapping[str, NDArray[Any]], *, turns: Rows | None = None) -> Cut:
        """Copies what was cut at `place`, or at the next decodable image, into `out`. Raises TooManyBadImages."""
        met: Bad = []
        for at in _from(place, len(self._ids), turns):
            reason = self._bad[at]
            if reason is not None:
                met.append((self._ids[at], self._paths[at] or "", reason))
                continue
            part = bisect_right(self._ends, at)
            row = at - (self._ends[part - 1] if part else 0)
            for name, chunks in self._parts.items():
                out[name][...] = chunks[part][row].view(out[name].dtype).reshape(out[name].shape)
            return Cut(self._ids[at], None if self._labels is None else _label(self._labels[at]), met)
        raise _none_decodable(met)


def _from(place: int, rows: int, turns: Rows | None) -> Iterator[int]:
    """The rows of a window from `place` on, and around its end."""
    count = rows if turns is None else len(turns)
    for ahead in range(count):
        at = (place + ahead) % count
        yield at if turns is None else int(turns[at])


def _rows_of(chunk: pa.FixedSizeBinaryArray) -> "Pixels":
    """uint8 [rows, bytes] over the memory of a column's chunk."""
    width = chunk.type.byte_width
    whole = np.frombuffer(chunk.buffers()[1], dtype=np.uint8)
    return whole[chunk.offset * width : (chunk.offset + len(chunk)) * width].reshape(len(chunk), width)


def _none_decodable(met: Bad) -> TooManyBadImages:
    first = f"{ascii(met[0][1]) if met[0][1] else met[0][0].hex()}: {met[0][2]}"  # a path may hold line breaks
    return TooManyBadImages(
        f"none of the {len(met)} images of a window can be decoded (the first, {first}); check the shards."
    )


def _label(label: int | None) -> int:
    """The label of a row that was asked for it: -1 where the image has none."""
    return -1 if label is None else label


def _column(group: str) -> str:
    return f"crops/{group}"


class Verdicts:
    """Tells once of each image of this rank that cannot be used, and counts the undecodable ones."""

    def __init__(self, *, kept: int, max_bad: float, on_bad: Callable[[BadImage], None]) -> None:
        self._kept, self._max_bad, self._on_bad = kept, max_bad, on_bad
        self._slots, self._bad, self._refused = 0, set[tuple[bytes, str]](), set[tuple[bytes, str]]()

    def note(self, step: int, slot: int, met: Bad) -> None:
        """Takes in one slot. Raises TooManyBadImages."""
        self._slots += 1
        for sample, path, reason in met:
            # The path too: one placeholder stored a thousand times is a thousand bad images.
            told = self._refused if reason in (DUPLICATE, LEAKED) else self._bad
            if (sample, path) not in told:
                told.add((sample, path))
                self._on_bad(BadImage(sample, path, reason, step, slot))
        # Within an epoch every slot is another row, so no set of all ids is needed to count distinct images.
        # (With weights some come again before others come at all, so that more bad ones pass.)
        seen = min(self._slots, self._kept)
        if seen >= min(LEAST_SEEN, self._kept) and len(self._bad) > self._max_bad * seen:
            raise TooManyBadImages(
                f"{len(self._bad)} of {seen} images cannot be decoded by step {step}, more than max_bad = "
                f"{self._max_bad}; see the quarantine table, validate the images with curation, or raise max_bad."
            )
