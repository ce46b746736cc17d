"""Where the work of curation is done: in threads here, or in tasks of a Ray cluster. The outcome is the same, byte for byte.

Work is cut into numbered pieces whose number does not depend on who does them; a piece gives tables, and they come back in the
order of the pieces. So neither the machines, nor their number, nor tasks that die and run again can be seen in the result.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pyarrow as pa

Piece = Callable[[int], Iterator[pa.Table]]
"""Does the piece with this number."""
Spread = Callable[[Piece, int], Iterator[pa.Table]]
"""Does pieces 0 to n - 1 and yields their tables, in order."""
AHEAD = 2  # pieces in flight for each thread
STORE_SHARE = 0.25  # of Ray's object store for tables that wait to be taken


def here(threads: int) -> Spread:
    """In threads of this process: what is slow, decoding and comparing, releases Python's lock."""

    def run(piece: Piece, count: int) -> Iterator[pa.Table]:
        with ThreadPoolExecutor(threads, thread_name_prefix="raydino-curation") as pool:
            waiting: deque[Future[list[pa.Table]]] = deque()
            for number in range(count):
                waiting.append(pool.submit(lambda number=number: list(piece(number))))
                if len(waiting) >= AHEAD * threads:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()

    return run


def on_ray() -> Spread:
    """In tasks of the Ray cluster that is connected (`ray.init`), one CPU each, through Ray Data."""
    import ray

    def run(piece: Piece, count: int) -> Iterator[pa.Table]:
        shared = ray.put(piece)  # once for each node, not for each task
        numbers = ray.data.range(count, override_num_blocks=count)
        context: Any = numbers.context  # this dataset's own copy
        context.execution_options.preserve_order = True
        store = int(STORE_SHARE * ray.cluster_resources().get("object_store_memory", 2**30))
        limits = context.execution_options.resource_limits
        context.execution_options.resource_limits = limits.copy(object_store_memory=store)
        context.execution_no_progress_timeout_s = -1  # it also counts pauses of the consumer
        context.target_max_block_size = None  # a table stays one block
        context.enable_progress_bars = context.print_on_execution_start = False

        def do(batch: pa.Table) -> Iterator[pa.Table]:
            for number in batch["id"].to_pylist():
                yield from _held(shared)(number)

        done = numbers.map_batches(do, batch_size=None, batch_format="pyarrow", num_cpus=1)
        yield from done.iter_batches(batch_size=None, batch_format="pyarrow")

    return run


_HELD: dict[str, Piece] = {}


def _held(shared: Any) -> Piece:
    """The piece in this worker, taken out of the store once: what it builds on its first call, such as an index, stays."""
    import ray

    key = shared.hex()
    if key not in _HELD:
        _HELD.clear()
        _HELD[key] = ray.get(shared)
    return _HELD[key]
