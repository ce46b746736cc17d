"""A worker that no longer gets anywhere ends itself, so that Ray replaces it, and all ranks leave their stacks behind first.

Ray asks a process whether it lives from another thread than the one that trains, so a training that hangs in a collective, a lock
or a dead file system is never noticed by it. Here the training loop gives a sign of life every step; a thread in each worker
looks at the clock. Ranks ask each other for their stacks through files in the run's folder, because a rank that hangs answers
nothing else. A thread that keeps Python's lock for itself stops this thread, too: then a timer of faulthandler, which needs no
lock, ends the process.
"""

import faulthandler
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FOLDER = "stacks"
"""Folder in the run's folder."""
HUNG = 75  # exit status of a worker that ended itself, EX_TEMPFAIL: another try may succeed
PATIENCE = (
    4.0  # times as long for first steps (compilers, first reads) and for what is no step: evaluations, joining a save
)
LOOK = (0.2, 5.0)  # s, least and most between two looks at the clock; the most that detection comes late
LAST_RESORT = 10.0  # s after the thread should have acted

log = logging.getLogger(__name__)


class Watchdog:
    """Watches the training of one rank inside a `with` block; `timeout` seconds without `beat`, 0 for no watch."""

    def __init__(self, folder: Path, *, rank: int, timeout: float, end: Callable[[int], object] = os._exit) -> None:
        self._folder, self._rank, self._timeout, self._end = folder, rank, timeout, end
        self._look = min(max(timeout / 20, LOOK[0]), LOOK[1])
        self._step, self._allowed, self._beat = 0, timeout * PATIENCE, time.monotonic()
        self._over = threading.Event()
        self._known: set[str] = set()
        self._thread = threading.Thread(target=self._watch, name="raydino-watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        if self._timeout:
            self._folder.mkdir(exist_ok=True)
            self._known = self._requests()  # of attempts before
            self._timer_file = (self._folder / f".timer-rank{self._rank}.txt").open("w")
            self._beat = time.monotonic()
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()
            self._timer_file.close()
            Path(self._timer_file.name).unlink(missing_ok=True)  # written to only if it ends the process
            with suppress(OSError):  # something to read is in it, or another rank is at work
                self._folder.rmdir()

    def beat(self, step: int) -> None:
        """The training has finished `step` steps."""
        self._step, self._beat, self._allowed = step, time.monotonic(), self._timeout

    @contextmanager
    def patience(self, *, first: bool = False) -> Iterator[None]:
        """Allow for more time: what happens inside is no step, or if `first` the one after it is the first."""
        self._allowed, self._beat = self._timeout * PATIENCE, time.monotonic()
        try:
            yield
        finally:
            self._allowed, self._beat = self._timeout * (PATIENCE if first else 1), time.monotonic()

    def _watch(self) -> None:
        while True:
            left = self._allowed - (time.monotonic() - self._beat)
            faulthandler.dump_traceback_later(max(left, 0) + LAST_RESORT, exit=True, file=self._timer_file)
            if self._over.wait(self._look):
                return
            for incident in sorted(self._requests() - self._known):
                self._known.add(incident)
                self._dump(incident)
            if time.monotonic() - self._beat > self._allowed:
                self._give_up()
                return

    def _give_up(self) -> None:
        waited = time.monotonic() - self._beat
        log.error(
            "rank %d: nothing after step %d for %.0f s (cluster.hang_timeout); its stacks are in %s, and it ends so that "
            "Ray starts it again",
            *(self._rank, self._step, waited, self._folder),
        )
        incident = f"step{self._step}-rank{self._rank}-{os.getpid()}"
        self._known.add(incident)
        self._dump(incident)
        (self._folder / f"{incident}.request").touch()
        time.sleep(2 * self._look)  # the others have looked by then
        self._end(HUNG)

    def _dump(self, incident: str) -> None:
        """The stacks of all threads of this process; a rank that waits for the one that hangs shows where."""
        with (self._folder / f"{incident}.of-rank{self._rank}.txt").open("w") as file:
            waited = time.monotonic() - self._beat
            file.write(
                f"rank {self._rank}, process {os.getpid()}, {self._step} steps finished, the last {waited:.1f} s ago\n"
            )
            file.flush()
            faulthandler.dump_traceback(file=file, all_threads=True)

    def _requests(self) -> set[str]:
        return {path.stem for path in self._folder.glob("*.request")}
