"""Batches of one rank, in the order of the plan.

Whole windows of encoded images come from Ray Data (stream.py); threads in the worker, each with a process beside it (cutters.py),
decode each image once and cut all its crops into the batch. Encoded bytes are 25 times smaller than their crops, so this leaves
the object store almost empty. `decode_in="cluster"` moves both into Ray's tasks, on every free CPU. Pixels are identical either
way, because every draw is keyed and a bad image's substitute depends on bytes and order alone.

The chain is requests -> read (`ray_windows`, or `local_windows` without Ray) -> arrival in order (-> claims) -> places -> threads
-> Batch. It begins at once: Ray needs seconds for its first window, and the model is built meanwhile. Every arrow is bounded, and
closing the returned stream ends all of it.
"""

import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from raydino.config import ConfigError
from raydino.data.ahead import Ahead
from raydino.data.claims import Admitted, Claim, admit
from raydino.data.crops import Cropper
from raydino.data.cutters import Cutter
from raydino.data.draws import colours_of, room
from raydino.data.fetch import Bad, BadImage, Cut, CutWindow, Fetch, Met, Read, Request, Verdicts, cut_slots, requests
from raydino.data.masks import lanes_masks
from raydino.data.plan import Plan, Rows, Window
from raydino.data.stream import ray_windows
from raydino.shards.reader import Collection
from raydino.views import Batch, Views

CROP_THREADS = "raydino-crops"
"""What the names of the threads that cut crops begin with."""
PART = 16  # images at most that a thread cuts in one go: it need not speak to its process for each


class StreamError(RuntimeError):
    """The windows did not arrive as the plan orders them."""


@dataclass(frozen=True)
class _Place:
    """Where the image of a slot lies."""

    slot: int
    rows: "pa.Table | CutWindow"
    row: int
    turns: Rows | None
    refused: Met | None
    """What lies there, if it is refused and another image fills the slot."""


@dataclass(frozen=True)
class _Held:
    """A window that has arrived, ready to be cut or copied from."""

    window: Window
    rows: "pa.Table | CutWindow"
    admitted: Admitted


@dataclass(frozen=True)
class _Cutting:
    """A batch whose images are being cut."""

    step: int
    arrays: dict[str, NDArray[Any]]
    """Crops, and what else is cut (`draws.room`)."""
    masks: "Future[NDArray[np.bool_]] | None"
    slots: list[int]
    refused: list[Bad]
    """Per slot, what was refused in it."""
    cuts: "list[Future[list[Cut]]]"
    """The images of `slots`, in parts."""


def batches(
    collection: Collection,
    plan: Plan,
    views: Views,
    *,
    seed: int,
    rank: int,
    world: int,
    start_step: int,
    steps: int,
    max_bad: float,
    on_bad: Callable[[BadImage], None],
    decode_in: Literal["worker", "cluster"] = "worker",
    threads: int = 1,
    prefetch: int = 2,
    read: Read | None = None,
    claim: Claim | None = None,
) -> "Batches":
    """The batches of `rank` for steps [start_step, start_step + steps), the first of them in the making; close it to end early.

    An undecodable image is replaced by the next decodable row of its window and reported once, through `on_bad`, in the
    consumer's thread and in slot order. Nothing here is state: the same arguments give the same batches. A `claim` is: with it,
    copies and evaluation images are replaced too (`claims.admit`) and reported, but they are not bad ones.

    Args:
        collection: where the images lie.
        plan: their order.
        views: what to cut; crops come as uint8 [V, B, C, H, W], B = global_batch / world.
        seed: seed of crops and masks.
        rank: this worker.
        world: workers; divides the plan's lanes.
        start_step: first step, 0 for a fresh run.
        steps: number of steps.
        max_bad: share of the images seen that may be undecodable, judged from 100 images on.
        on_bad: told of every undecodable image once.
        decode_in: "worker" sends encoded bytes here; "cluster" decodes and cuts in Ray tasks, which takes about 25 times
            the object store: lanes / world * window rows * bytes of all views, per worker.
        threads: decoding threads here, and processes beside them.
        prefetch: batches cut ahead.
        read: how windows are fetched; None is `ray_windows`.
        claim: asked for every window, the same by all ranks; None trains on whatever the plan orders.

    Raises:
        ConfigError: the arguments contradict each other (raised at once, the others where a batch is asked for).
        TooManyBadImages: more than `max_bad` of the images cannot be decoded.
        StreamError: the windows did not arrive as ordered.
        OSError: the storage failed for good; that is never a verdict on an image.
    """
    _check(collection, plan, views, max_bad=max_bad, threads=threads, prefetch=prefetch)
    cropper = Cropper(views, seed=seed)
    fetch = Fetch(collection, cropper if decode_in == "cluster" else None, labels=views.labels)
    span = _Span(plan, claim, rank=rank, world=world, start_step=start_step, steps=steps, cut=fetch.cropper is not None)
    cutting = _cutting(span, (read or ray_windows)(fetch, span.requests()), cropper, fetch=fetch, threads=threads)
    return Batches(cutting, Verdicts(kept=plan.kept, max_bad=max_bad, on_bad=on_bad), prefetch=prefetch)


def _check(collection: Collection, plan: Plan, views: Views, *, max_bad: float, threads: int, prefetch: int) -> None:
    if not np.array_equal(plan.row_groups, collection.row_groups):
        raise ConfigError(
            f"the plan orders {plan.rows:,} rows in {len(plan.row_groups):,} row groups, the collection has "
            f"{sum(collection.row_groups):,} in {len(collection.row_groups):,}; make the plan from this collection."
        )
    for name, value, least in (("threads", threads, 1), ("prefetch", prefetch, 1)):
        if value < least:
            raise ConfigError(f"{name} = {value}; it must be at least {least}.")
    if not 0 <= max_bad <= 1:
        raise ConfigError(f"max_bad = {max_bad}; it is a share, so between 0 and 1.")
    if views.masks is not None and ("global" not in views.crops or min(views.grid) < 1):
        raise ConfigError(
            f"masks need a crop group 'global' of at least patch_size = {views.patch_size} pixels; "
            f"the groups are {', '.join(views.crops)}."
        )


class _Span:
    """The steps of one rank: which windows they need, and where in them each slot lies."""

    def __init__(
        self, plan: Plan, claim: Claim | None, *, rank: int, world: int, start_step: int, steps: int, cut: bool
    ) -> None:
        self.plan, self.steps, self._cut = plan, range(start_step, start_step + steps), cut
        self.owned = plan.owned_lanes(rank=rank, world=world)
        self._rank, self._world, self._claim = rank, world, claim

    def requests(self) -> Iterator[Request]:
        """What to fetch, in order of first need."""
        steps = self.steps
        return requests(self.plan, rank=self._rank, world=self._world, start_step=steps.start, steps=len(steps))

    def places(self, tables: Iterator[pa.Table]) -> Iterator[tuple[int, list[_Place]]]:
        """Each step with its slots, ascending. A lane holds the windows its current step needs, and no others."""
        arrived, share = self._held(self._arrived(tables)), self.plan.per_lane
        hands: dict[int, deque[_Held]] = {lane: deque() for lane in self.owned}
        for step in self.steps:
            for hand in hands.values():
                while hand and hand[0].window.end <= step * share:
                    hand.popleft()
            for hand in hands.values():
                while not hand or hand[-1].window.end < (step + 1) * share:
                    held = next(arrived)
                    hands[held.window.lane].append(held)
            yield step, [self._place(hands[lane], lane, step, turn) for turn in range(share) for lane in self.owned]

    def _place(self, hand: deque[_Held], lane: int, step: int, turn: int) -> _Place:
        at = step * self.plan.per_lane + turn
        held = next(held for held in hand if at < held.window.end)
        row, slot = at - held.window.begin, turn * self.plan.lanes + lane
        return _Place(slot, held.rows, row, held.admitted.turns, held.admitted.refused.get(row))

    def _windows(self) -> Iterator[Window]:
        return self.plan.windows(rank=self._rank, world=self._world, start_step=self.steps.start, steps=len(self.steps))

    def _held(self, arrived: Iterator[tuple[pa.Table, Rows]]) -> Iterator[_Held]:
        admitted = (Admitted(rows) for rows, _ in arrived) if self._claim is None else admit(self._claim, arrived)
        for window, rows in zip(self._windows(), admitted, strict=False):
            yield _Held(window, CutWindow(rows.rows) if self._cut else rows.rows, rows)

    def _arrived(self, tables: Iterator[pa.Table]) -> Iterator[tuple[pa.Table, Rows]]:
        """Whole windows and the numbers of their rows, each compared with the plan: an order only nearly right would never be
        noticed later."""
        for number, window in enumerate(self._windows()):
            parts: list[pa.Table] = []
            while sum(part.num_rows for part in parts) < window.rows:
                part = next(tables, None)
                if part is None:
                    raise StreamError(f"the windows ended before number {number}; the data pipeline stopped early.")
                parts.append(part)
            rows = pa.concat_tables(parts)
            same = np.array_equal(rows["place"].to_numpy(), self.plan.window_order(window))
            if not same or (rows["window"].to_numpy() != number).any():
                raise StreamError(f"window {number} (of lane {window.lane}) did not arrive in the order of the plan.")
            yield rows, self.plan.window_rows(window)


def _cutting(
    span: _Span, tables: Generator[pa.Table, None, None], cropper: Cropper, *, fetch: Fetch, threads: int
) -> Generator[_Cutting, None, None]:
    """Hands every slot to a thread as soon as its window is there."""
    views, cutters = cropper.views, SimpleQueue[Cutter]()
    with ExitStack() as ends:
        ends.enter_context(closing(tables))
        for _ in range(threads):
            cutters.put(ends.enter_context(closing(Cutter(cropper, images=PART))))
        pool = ends.enter_context(ThreadPoolExecutor(threads, thread_name_prefix=CROP_THREADS))
        for step, places in span.places(tables):
            arrays = room(views, len(places))
            out = [{name: array[:, column] for name, array in arrays.items()} for column in range(len(places))]
            if fetch.cropper is None:
                size = min(PART, -(-len(places) // threads))
                begins = range(0, len(places), size)
                cuts = [pool.submit(_cut_part, places[at : at + size], cutters, out[at : at + size]) for at in begins]
            else:  # copies only: handing them over one by one would take longer
                cuts = [pool.submit(_copy_all, places, out)]
            masks = None if views.masks is None else pool.submit(_masks, views, span, seed=cropper.seed, step=step)
            refused = [[] if place.refused is None else [place.refused] for place in places]
            yield _Cutting(step, arrays, masks, [place.slot for place in places], refused, cuts)


def _cut_part(places: list[_Place], cutters: SimpleQueue[Cutter], out: list[dict[str, NDArray[Any]]]) -> list[Cut]:
    assert all(isinstance(place.rows, pa.Table) for place in places)
    cutter = cutters.get()
    try:
        return cut_slots([(place.rows, place.row, place.turns) for place in places], cutter, out=out)
    finally:
        cutters.put(cutter)


def _copy_all(places: list[_Place], out: list[dict[str, NDArray[Any]]]) -> list[Cut]:
    cuts = []
    for place, into in zip(places, out, strict=True):
        assert isinstance(place.rows, CutWindow)
        cuts.append(place.rows.copy(place.row, into, turns=place.turns))
    return cuts


def _masks(views: Views, span: _Span, *, seed: int, step: int) -> NDArray[np.bool_]:
    """bool [V, B, P], images in slot order."""
    assert views.masks is not None
    count, images = views.crops["global"].count, span.plan.per_lane
    return lanes_masks(views.masks, grid=views.grid, seed=seed, step=step, lanes=span.owned, images=images, views=count)


class Batches(Iterator[Batch]):
    """Batches whose images threads are cutting, `prefetch` of them ahead, from now on; dropped or closed, all of that ends."""

    def __init__(self, cutting: Generator[_Cutting, None, None], verdicts: Verdicts, *, prefetch: int) -> None:
        self._ready, self._verdicts = Ahead(cutting, depth=prefetch), verdicts
        self.starved = 0.0
        """Seconds that the consumer has waited for windows; the rest of its waiting was for crops being cut."""
        self._end = weakref.finalize(self, self._ready.close)
        self._end.atexit = False  # a daemon's threads end with the process, and Ray may be gone by then

    def __next__(self) -> Batch:
        asked = time.perf_counter()
        try:
            cut = next(self._ready)  # it is there as soon as its windows are, its images still being cut
            self.starved += time.perf_counter() - asked
            return self._made(cut)
        except BaseException:  # the end of the steps among them
            self.close()
            raise

    def close(self) -> None:
        """End it all."""
        self._end()

    def _made(self, cut: _Cutting) -> Batch:
        images = [image for part in cut.cuts for image in part.result()]
        for slot, refused, image in zip(cut.slots, cut.refused, images, strict=True):
            self._verdicts.note(cut.step, slot, refused + image.met)
        labels = [image.label for image in images if image.label is not None]
        tensors = {name: torch.from_numpy(array) for name, array in cut.arrays.items()}
        colours = {name: tensors.pop(colours_of(name)) for name in list(tensors) if colours_of(name) in tensors}
        return Batch(
            crops=tensors,
            masks=None if cut.masks is None else torch.from_numpy(cut.masks.result()),
            ids=tuple(image.sample for image in images),
            step=cut.step,
            labels=torch.tensor(labels) if labels else None,
            colours=colours or None,
        )
