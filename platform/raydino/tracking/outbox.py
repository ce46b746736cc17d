"""A run that is on its way to a tracking server: survives any outage of it, and loses nothing to it.

The spool (spool.py) is written first; a daemon thread tails it and sends what is new, so no training step waits for a
server and no queue of metrics grows in memory. How far the server has everything is a byte offset in `sent.json` beside
the spool: a resumed worker goes on from there, and `drain` does the same by hand. Points carry the time at which they
were logged, and MLflow keeps equal points once, so sending twice after a crash does no harm.
Nothing here knows MLflow; mlflow_run.py opens the server. Considered instead: MLflow's own async logging, whose queue
is lost when the process ends during an outage.
"""

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from raydino.tracking.redact import redact_text
from raydino.tracking.run import Status
from raydino.tracking.spool import METRICS_FILE, Spool, entries

if TYPE_CHECKING:
    from PIL.Image import Image

SENT_FILE = "sent.json"
MAX_POINTS = 1000  # per call, MLflow's limit
_SYSTEM_SECONDS = 10.0
_logger = logging.getLogger(__name__)


class Point(NamedTuple):
    """One value of one metric."""

    name: str
    value: float
    step: int
    time: float


class Tracker(Protocol):
    """What the thread needs of a server; each call may raise anything when the server is away."""

    run_id: str
    """The server's name for the run; the offset on disk belongs to it."""

    def points(self, points: Sequence[Point]) -> None:
        """Record at most MAX_POINTS points."""
        ...

    def picture(self, name: str, path: Path, step: int) -> None:
        """Record a picture."""
        ...

    def artifact(self, path: Path) -> None:
        """Record a file."""
        ...

    def system(self) -> dict[str, float]:
        """Figures of this machine, by metric name; empty where none can be had."""
        ...

    def status(self, status: str) -> None:
        """Set the run's status."""
        ...


class Outbox:
    """A `Run` recorded in a spool and, by a daemon thread, by a tracker. Only one process of a run has one (rank 0)."""

    def __init__(
        self,
        spool: Spool,
        *,
        connect: Callable[[], Tracker],
        retry: tuple[float, float] = (1.0, 30.0),
        patience: float = 30.0,
    ) -> None:
        """Start sending what `spool` holds beyond the last acknowledged byte.

        Args:
            spool: The record on disk, open for writing.
            connect: Opens the run at the server; called in the thread, and again after a failure. Where it comes back with
                another `run_id`, since the server forgot the one before, the new run gets the whole record, pictures too.
            retry: First and longest pause between attempts in an outage, seconds.
            patience: Seconds that `close` waits for the server.
        """
        self._spool, self._connect, self._retry, self._patience = spool, connect, retry, patience
        self._files: deque[tuple[str, Path, int]] = deque()  # name ("" for an artifact), path, step
        self._system: deque[Point] = deque(maxlen=10_000)  # the one thing not on disk, so bounded
        self._tracker: Tracker | None = None
        self._step, self._sampled, self._deadline = 0, float("-inf"), float("inf")
        self._status: Status | None = None
        self._delivered = self._warned = False
        self._wake, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="outbox", daemon=True)
        self._thread.start()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Append to the spool and wake the thread. Raises ValueError as `Spool.log` does."""
        self._spool.log(metrics, step)
        self._step = step
        self._wake.set()

    def picture(self, name: str, image: "Image", step: int) -> Path:
        """Write the picture beside the spool and send it when the server is there; returns its file."""
        path = self._spool.picture(name, image, step)
        self._files.append((name, path, step))
        self._wake.set()
        return path

    def artifact(self, path: Path) -> None:
        """Send a file, which must stay where it is. Raises FileNotFoundError if it is not there."""
        self._spool.artifact(path)
        self._files.append(("", Path(path), 0))
        self._wake.set()

    def close(self, status: Status) -> None:
        """Send what is left and set the run's status; waits at most `patience` seconds, then says where the record
        lies.
        """
        self._status, self._deadline = status, time.monotonic() + self._patience
        self._closing.set()
        self._wake.set()
        self._thread.join(self._patience)
        self._spool.close(status)
        if not self._delivered:
            _logger.warning(
                "the tracker did not take everything; the record is complete in %s (pictures beside it): "
                "send its metrics with raydino.tracking.mlflow_run.replay once the tracker is back",
                self._spool.path,
            )

    def _work(self) -> None:
        pause = 0.0
        while not self._delivered:
            if not self._closing.is_set():
                self._wake.wait(_SYSTEM_SECONDS)
                self._wake.clear()
            closing = self._closing.is_set()  # read before sending: only then is "all sent" the whole record
            try:
                self._send(closing=closing)
                self._delivered, self._warned, pause = closing, False, 0.0
            except Exception as error:  # whatever happens to the record, the training goes on
                self._tracker = None
                pause = min(max(self._retry[0], 2 * pause), self._retry[1])
                self._warn(error)
                if not closing:
                    self._closing.wait(pause)
                    self._wake.set()  # the lines that failed are still there to send
                elif time.monotonic() + pause < self._deadline:
                    time.sleep(pause)
                else:
                    return

    def _send(self, *, closing: bool) -> None:
        if self._tracker is None:
            self._tracker = self._connect()
            self._tracker.status("RUNNING")  # a resumed run was FAILED or KILLED
            if recorded_run(self._spool.run_dir) not in (None, self._tracker.run_id):
                waiting = {path for _, path, _ in self._files}
                self._files.extendleft(found for found in self._spool.pictures() if found[1] not in waiting)
            _acknowledge(
                self._spool.run_dir,
                self._tracker.run_id,
                acknowledged(self._spool.run_dir, run_id=self._tracker.run_id),
            )
        if time.monotonic() - self._sampled >= _SYSTEM_SECONDS:
            self._sampled, now = time.monotonic(), time.time()
            self._system.extend(Point(name, value, self._step, now) for name, value in self._tracker.system().items())
        drain(self._spool.run_dir, self._tracker)
        while self._system:
            some = list(self._system)[:MAX_POINTS]
            self._tracker.points(some)
            for _ in some:
                self._system.popleft()
        while self._files:
            name, path, step = self._files[0]
            if not path.exists():
                _logger.warning("%s was removed before the tracker took it", path)
            elif name:
                self._tracker.picture(name, path, step)
            else:
                self._tracker.artifact(path)
            self._files.popleft()
        if closing and self._status is not None:
            self._tracker.status(self._status)

    def _warn(self, error: Exception) -> None:
        if not self._warned:  # once per outage
            lines = redact_text(str(error)).splitlines() or [""]
            _logger.warning(
                "the tracker does not answer (%s: %.200s); training goes on and %s keeps the record",
                type(error).__name__,
                lines[0],
                self._spool.path,
            )
        self._warned = True


def acknowledged(run_dir: Path, *, run_id: str) -> int:
    """Bytes of the spool that the server has for this run id; for another run id, none of them."""
    try:
        state = json.loads((run_dir / SENT_FILE).read_text())
        return int(state["bytes"]) if state["run_id"] == run_id else 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def recorded_run(run_dir: Path) -> str | None:
    """The server's name of the run whose record was last sent from this folder; None where none was."""
    try:
        return str(json.loads((run_dir / SENT_FILE).read_text())["run_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def unsent(run_dir: Path) -> tuple[int, float]:
    """Bytes of the record that the tracker has not acknowledged, and seconds since the oldest of them was logged."""
    record, run_id = run_dir / METRICS_FILE, recorded_run(run_dir)
    offset = 0 if run_id is None else acknowledged(run_dir, run_id=run_id)
    oldest = next(entries(record, offset=offset), None) if record.exists() else None
    return (0, 0.0) if oldest is None else (record.stat().st_size - offset, max(0.0, time.time() - oldest.time))


def _acknowledge(run_dir: Path, run_id: str, upto: int) -> None:
    temporary = run_dir / f"{SENT_FILE}.tmp"
    temporary.write_text(json.dumps({"run_id": run_id, "bytes": upto}))
    temporary.replace(run_dir / SENT_FILE)


def drain(run_dir: Path, tracker: Tracker) -> int:
    """Send the spool from the acknowledged byte on, at most MAX_POINTS a call, and acknowledge each call on disk.

    Returns the number of points sent. Raises what the tracker raises; what it took before that is acknowledged.
    """
    sent = 0

    def send(batch: list[Point], upto: int) -> None:
        for start in range(0, len(batch), MAX_POINTS):
            tracker.points(batch[start : start + MAX_POINTS])
        _acknowledge(run_dir, tracker.run_id, upto)

    offset = acknowledged(run_dir, run_id=tracker.run_id)
    batch: list[Point] = []
    start = offset
    for entry in entries(run_dir / METRICS_FILE, offset=offset):
        if batch and len(batch) + len(entry.metrics) > MAX_POINTS:
            send(batch, offset)
            sent += len(batch)
            batch = []
        batch += [Point(name, value, entry.step, entry.time) for name, value in entry.metrics.items()]
        offset = entry.end
    if offset > start:
        send(batch, offset)
    return sent + len(batch)
