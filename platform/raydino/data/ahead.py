"""Ahead: a generator runs in a thread of its own, some items before they are asked for."""

import threading
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Generic, TypeVar

CLOSE_SECONDS = 10.0  # a thread that waits for a dead cluster is left behind (it is a daemon) rather than waited for

T = TypeVar("T")


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
            self._changed.wait_for(lambda: self._items or self._ended or self._closed)
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
