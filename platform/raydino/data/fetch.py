"""Fetch: one window of the plan as a table, read and perhaps cut, wherever that runs: a Ray task, a thread, a test.

It holds what must not depend on the place: rows in the order of use, the verdict on an undecodable image, and its
substitute, the next decodable row of the same window. Both follow from bytes and order alone, so replaying a step
meets the same images.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import pyarrow as pa

from raydino.data.decode import Undecodable, decode
from raydino.data.plan import Plan
from raydino.shards.reader import Collection

if TYPE_CHECKING:
    from raydino.data.crops import Cropper, Pixels

CLOSE_SECONDS = 10.0  # a thread that waits for a dead cluster is left behind (it is a daemon) rather than waited for
LEAST_SEEN = 100  # images before the share of bad ones is judged

T = TypeVar("T")
Bad = list[tuple[bytes, str, str]]
"""Undecodable images met on the way to a decodable one: id, path, reason."""
BAD_TYPE = pa.list_(pa.struct([("id", pa.binary()), ("path", pa.string()), ("reason", pa.string())]))


class TooManyBadImages(RuntimeError):
    """More images cannot be decoded than the run accepts."""


@dataclass(frozen=True)
class BadImage:
    """An image that cannot be decoded, and where it was met first."""

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
    """Undecodable images met before it."""


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


@dataclass(frozen=True)
class Fetch:
    """Reads a window; with a cropper it decodes and cuts as well. Runs in a Ray task or in a thread."""

    collection: Collection
    cropper: "Cropper | None"
    labels: bool = False

    def __call__(self, request: Request) -> pa.Table:
        """The rows in order of use: columns window, place, id, then bytes and path, or bad and one per crop group."""
        groups, order = (np.frombuffer(part, dtype=np.int64) for part in (request.groups, request.order))
        wanted = ["id", "bytes", "path"] + ["label"] * self.labels
        read = pa.concat_tables([self.collection.read(int(group)).select(wanted) for group in groups])
        rows = read.take(order).combine_chunks()
        columns: Mapping[str, Any] = {name: rows[name] for name in rows.column_names}
        if self.cropper is not None:
            columns = _cut_rows(rows, self.cropper, epoch=request.epoch)
        return pa.table({"window": np.full(len(order), request.window), "place": order, **columns})


Read = Callable[[Fetch, Iterator[Request]], Generator[pa.Table, None, None]]
"""How windows are fetched: yields their tables in the order of the requests, a window as one table or several."""


def local_windows(fetch: Fetch, requests: Iterator[Request]) -> Generator[pa.Table, None, None]:
    """The windows, read one after another in this process, without Ray."""
    yield from map(fetch, requests)


def fetch_row(batch: pa.Table, *, fetch: Fetch) -> pa.Table:
    """`fetch` for a request that comes as a table of one row."""
    return fetch(Request(**batch.to_pylist()[0]))


def cut_slot(rows: pa.Table, place: int, cropper: "Cropper", *, epoch: int, out: "Mapping[str, Pixels]") -> Cut:
    """Cuts the image at `place` of a window, or the next decodable one, into `out`; what was cut, and the bad ones met.

    Raises:
        TooManyBadImages: no image of the window can be decoded.
    """
    met: Bad = []
    for ahead in range(rows.num_rows):
        at = (place + ahead) % rows.num_rows
        sample = rows["id"][at].as_py()
        try:
            image = decode(rows["bytes"][at].as_py())
        except Undecodable as error:
            met.append((sample, rows["path"][at].as_py() or "", error.reason))
            continue
        cropper.cut(image, epoch=epoch, sample=sample, out=out)
        return Cut(sample, _label(rows, at), met)
    first = f"{met[0][1] or met[0][0].hex()}: {met[0][2]}"
    raise TooManyBadImages(
        f"none of the {len(met)} images of a window can be decoded (the first, {first}); check the shards."
    )


def ready_slot(rows: pa.Table, place: int, *, out: "Mapping[str, Pixels]") -> Cut:
    """The same for a window that was cut where it was read: copies its crops into `out`."""
    for name, crops in out.items():
        if crops.size:
            packed = rows[_column(name)][place].as_buffer()
            crops[...] = np.frombuffer(packed, dtype=np.uint8).reshape(crops.shape)
    met = [(bad["id"], bad["path"], bad["reason"]) for bad in rows["bad"][place].as_py()]
    return Cut(rows["id"][place].as_py(), _label(rows, place), met)


def _label(rows: pa.Table, place: int) -> int | None:
    """The label of a row: None where labels were not asked for, -1 where the image has none."""
    if "label" not in rows.column_names:
        return None
    label = rows["label"][place].as_py()
    return -1 if label is None else label


def _cut_rows(rows: pa.Table, cropper: "Cropper", *, epoch: int) -> dict[str, Any]:
    """`cut_slot` of every row, as columns id, bad and, per crop group, its pixels as binary of one width."""
    crops = {
        name: np.empty((rows.num_rows, group.count, 3, group.size, group.size), dtype=np.uint8)
        for name, group in cropper.views.crops.items()
    }
    samples, labels, bad = [], [], []
    for place in range(rows.num_rows):
        out = {name: array[place] for name, array in crops.items()}
        cut = cut_slot(rows, place, cropper, epoch=epoch, out=out)
        samples.append(cut.sample)
        labels.append(cut.label)
        bad.append([{"id": sample, "path": path, "reason": reason} for sample, path, reason in cut.met])
    packed = {
        _column(name): pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(array[0].size), len(array), [None, pa.py_buffer(array.reshape(-1))]
        )
        for name, array in crops.items()
        if array.size
    }
    known = {"label": pa.array(labels, type=pa.int64())} if "label" in rows.column_names else {}
    return {"id": pa.array(samples, type=pa.binary()), "bad": pa.array(bad, type=BAD_TYPE), **known, **packed}


def _column(group: str) -> str:
    return f"crops/{group}"


class Verdicts:
    """Counts the undecodable images of this rank and tells of each once."""

    def __init__(self, *, kept: int, max_bad: float, on_bad: Callable[[BadImage], None]) -> None:
        self._kept, self._max_bad, self._on_bad = kept, max_bad, on_bad
        self._slots, self._bad = 0, set[tuple[bytes, str]]()

    def note(self, step: int, slot: int, met: Bad) -> None:
        """Takes in one slot. Raises TooManyBadImages."""
        self._slots += 1
        for sample, path, reason in met:
            # The path too: one placeholder stored a thousand times is a thousand bad images.
            if (sample, path) not in self._bad:
                self._bad.add((sample, path))
                self._on_bad(BadImage(sample, path, reason, step, slot))
        # Within an epoch every slot is another row, so no set of all ids is needed to count distinct images.
        seen = min(self._slots, self._kept)
        if seen >= min(LEAST_SEEN, self._kept) and len(self._bad) > self._max_bad * seen:
            raise TooManyBadImages(
                f"{len(self._bad)} of {seen} images cannot be decoded by step {step}, more than max_bad = "
                f"{self._max_bad}; see the quarantine table, validate the images with curation, or raise max_bad."
            )


class Ahead(Generic[T]):
    """Runs a generator in a thread of its own, up to `depth` items ahead; its exceptions surface in the consumer."""

    def __init__(self, source: Generator[T, None, None], *, depth: int) -> None:
        self._items: deque[T] = deque()
        self._depth, self._closed, self._ended = depth, False, False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, args=(source,), name="raydino-stream", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._ended)
            if self._items:
                self._changed.notify_all()
                return self._items.popleft()
        if self._error is not None:
            raise self._error
        raise StopIteration

    def close(self) -> None:
        """Ends the generator, in its own thread, at its next item."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()
        self._thread.join(CLOSE_SECONDS)

    def _run(self, source: Generator[T, None, None]) -> None:
        try:
            with closing(source):
                for item in source:
                    with self._changed:
                        self._changed.wait_for(lambda: self._closed or len(self._items) < self._depth)
                        if self._closed:
                            return
                        self._items.append(item)
                        self._changed.notify_all()
        except BaseException as error:
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()
