"""Streams of batches one after the other: a curriculum changes the size of crops, and what cuts them begins anew there."""

from collections.abc import Callable, Iterator

from raydino.data.batches import Batches
from raydino.views import Batch


class Phases(Iterator[Batch]):
    """The first of `streams` is taken, and so begun, at once, each of the others when the one before has ended. Batches come as
    `finish` makes them."""

    def __init__(self, streams: Iterator[Batches], finish: Callable[[Batch], Batch] = lambda batch: batch) -> None:
        self._streams, self._finish = streams, finish
        self._now = next(streams, None)
        self._starved = 0.0

    @property
    def starved(self) -> float:
        """Seconds that the consumer has waited for windows (`Batches.starved`), over all of them."""
        return self._starved + (self._now.starved if self._now is not None else 0.0)

    def __next__(self) -> Batch:
        while self._now is not None:
            if (batch := next(self._now, None)) is not None:
                return self._finish(batch)
            self._starved += self._now.starved
            self._now = next(self._streams, None)
        raise StopIteration

    def close(self) -> None:
        """End the one that runs; the others have not begun."""
        if self._now is not None:
            self._now.close()
