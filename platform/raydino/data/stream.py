"""Stream: windows of the plan fetched by Ray Data, a task each, blocks kept in order; the only part of data/ that meets Ray.

Light on purpose: Ray's tasks import what their functions come from, and four processes that import torch to read a file took
half a minute of two cores. Considered instead of tasks per window: `streaming_split` (its order depends on the number of
consumers, and it cannot start in the middle).
"""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice
from typing import Any, ClassVar

import pyarrow as pa
import ray.data

from raydino.allocator import keep_freed_memory
from raydino.data.ahead import Ahead
from raydino.data.fetch import Fetch, Readable, Request

CHUNK = 512  # windows per Ray dataset: minutes of work against a second of start-up
START_BEFORE = 32  # windows left of a dataset when the next one starts
BLOCKS_AHEAD = 2  # windows taken out of Ray before they are needed
STORE_BYTES = (
    2 * 2**30
)  # fetched ahead inside Ray per dataset: 4 s of full-size JPEG at 4300 images/s; fewer on small stores
STORE_SHARE = 0.25  # of a small store
COLLECTIONS = 2  # kept by a process that reads: two runs of a sweep may share it
READERS = 8  # tasks that fetch for one worker at once, if there are as many CPUs: each is a process, which takes two seconds of
# a core to start, and reads a thousand photographs a second
FETCH_CPUS = 0.25  # a fetch waits for storage, and must find room beside workers that hold all but one CPU
RAY_THREADS = ("iter_threaded", "StreamingExecutor")
RAY_ENDS = 5.0  # s; more than a second was not seen
SCHEDULER_REST = 0.03  # s; a look may start many tasks
READ_REST = 0.1  # s, where tasks only read, far ahead; a look costs a millisecond of the worker's lock
FIRST_LOOKS = 50  # of a dataset, after SCHEDULER_REST each: they lead to its first window
CROP_CPUS = 0.75  # both together fit into that one
CUT_BYTES = (
    32 * 2**20
)  # of encoded images for each task that cuts, and of crops for each block it gives: seconds of work


def ray_windows(fetch: Fetch, requests: Iterator[Request]) -> Generator[pa.Table, None, None]:
    """The windows, fetched by Ray Data tasks; the next dataset of `CHUNK` windows starts before the last one ends."""
    running: deque[tuple[int, Ahead[pa.Table]]] = deque()
    fetch = replace(fetch, collection=Lent(fetch.collection))

    def start() -> None:
        chunk = list(islice(requests, CHUNK))
        if chunk:
            running.append((chunk[-1].window, Ahead(_execute(fetch, chunk), depth=BLOCKS_AHEAD)))

    start()
    try:
        while running:
            last, blocks = running[0]
            for block in blocks:
                if len(running) == 1 and block["window"][0].as_py() >= last - START_BEFORE:
                    start()
                yield block
            running.popleft()
    finally:
        for _, blocks in running:
            blocks.close()
        _outlast_ray()


def _outlast_ray() -> None:
    """Wait until the threads with which Ray Data iterated have seen that it is over: one that asks Ray for something after
    `ray.shutdown()` ends the whole process."""
    begun = time.monotonic()
    while time.monotonic() - begun < RAY_ENDS:
        if not any(thread.name.startswith(RAY_THREADS) for thread in threading.enumerate()):
            return
        time.sleep(0.01)


class Lent:
    """A collection as tasks get it: by reference. A process takes it out of the object store once and keeps it, with the footers
    it has read; else every task would begin by unpickling the manifest, 0.3 s with 10,000 shards."""

    _here: ClassVar[OrderedDict[str, Readable]] = OrderedDict()  # of this process: all workers' streams share it

    def __init__(self, collection: Readable) -> None:
        self.key, self._lent = collection.key, ray.put(collection)

    def read(self, group: int) -> pa.Table:
        """As `Collection.read`."""
        if self.key not in self._here:
            pa.set_memory_pool(
                pa.system_memory_pool()
            )  # Arrow's own gives pages back however long the next window wants them
            keep_freed_memory()  # with both a task takes 0.43 ms a photograph, without 0.55
            self._here[self.key] = ray.get(self._lent)
            while len(self._here) > COLLECTIONS:
                self._here.popitem(last=False)
        return self._here[self.key].read(group)


def prepare_readers() -> None:
    """Have the processes started that `ray_windows` will read in: worthwhile where other seconds pass before it is called."""
    load = ray.remote(num_cpus=FETCH_CPUS, max_retries=0)(_load)
    for _ in range(_readers()):
        load.remote()


def _load() -> None:
    """What importing this module loads is what reading needs."""


def _readers() -> int:
    return max(1, min(READERS, int(ray.cluster_resources().get("CPU", 1))))


def _execute(fetch: Fetch, chunk: Sequence[Request]) -> Generator[pa.Table, None, None]:
    """One Ray dataset: a task per window reads it, further tasks cut it in parts where that is asked for; blocks in order."""
    source = ray.data.from_items([asdict(request) for request in chunk], override_num_blocks=len(chunk))
    context = source.context  # this dataset's own copy
    options = context.execution_options
    options.preserve_order = True
    store = STORE_SHARE * ray.cluster_resources().get("object_store_memory", STORE_BYTES)
    ahead = store if fetch.cropper else min(STORE_BYTES, store)
    options.resource_limits = options.resource_limits.copy(object_store_memory=ahead)
    context.execution_no_progress_timeout_s = -1  # it also counts pauses of the consumer, such as a long evaluation
    context.target_max_block_size = CUT_BYTES if fetch.cropper else None  # None: a window stays one block
    context.enable_progress_bars = context.print_on_execution_start = False
    context.custom_execution_callback_classes = [Pace if fetch.cropper else ReadPace]  # pyright: ignore[reportAttributeAccessIssue] the base is private to Ray
    readers = ray.data.TaskPoolStrategy(size=_readers())
    windows = source.map_batches(
        fetch.asked, batch_size=1, batch_format="pyarrow", num_cpus=FETCH_CPUS, compute=readers
    )
    if fetch.cropper:
        windows = windows.map_batches(fetch.cut, batch_size=None, batch_format="pyarrow", num_cpus=CROP_CPUS)
    blocks: Any = iter(windows.iter_batches(batch_size=None, batch_format="pyarrow"))
    try:
        # Cut windows stay in the store, and are copied from into the batch: they are many times larger.
        yield from blocks if fetch.cropper else map(_own, blocks)
    finally:
        blocks.close()  # shuts the executor down at once, not when the iterator is collected


def _own(block: pa.Table) -> pa.Table:
    """A copy outside of the object store. A window stays until its last row was used, one in every lane: the default's 8 of 1024
    photographs are 900 MB, and from a smaller store Ray writes them to the disk and reads them back, 15 times the work of this.
    """
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, block.schema) as writer:
        writer.write_table(block)
    return pa.ipc.open_stream(sink.getvalue()).read_all()


class Pace:
    """An execution callback that lets Ray Data's scheduler rest between two looks at its tasks.

    Its loop waits for tasks that run, but not for room in its output: with blocks ready that may not be taken out yet it spins,
    in a thread of the training worker. Measured on two cores, photographs of 15 kB: 29 to 48 images/s so, 73 to 114 with rests.
    """

    rest = SCHEDULER_REST

    def __init__(self) -> None:
        self._looks = 0

    def before_execution_starts(self, executor: Any) -> None:
        """Nothing to prepare."""

    def on_execution_step(self, executor: Any) -> None:
        """Rest. Ray calls it after every look."""
        self._looks += 1
        time.sleep(self.rest if self._looks > FIRST_LOOKS else SCHEDULER_REST)

    def after_execution_succeeds(self, executor: Any) -> None:
        """Nothing to end."""

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        """Nothing to end."""


class ReadPace(Pace):
    """Longer rests, where tasks only read."""

    rest = READ_REST
