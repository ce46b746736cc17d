"""The record on disk: metrics.jsonl and pictures/ in the run's directory. Complete without any tracker, and first in
line with one.

One JSON object per `log` call: `{"step": 10, "time": 1700000000.0, "loss/total": 7.3}`; lines are appended and flushed,
never rewritten. A resumed run therefore logs some steps twice, and a step may have several lines (losses, then an
evaluation); readers merge them, the last value of a name at a step wins. JSON knows no NaN: such a value is null, and
`"non_finite"` says which kind it was. A line torn by a crash is ended by the next writer and skipped by readers.
Because lines never change, a byte offset says all about what has been sent on: the tracker tails this file
(mlflow_run.py), so an outage needs no queue in memory. Considered instead: SQLite (locks on network file systems),
Parquet (no append).
"""

import json
import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raydino.tracking.run import Status

if TYPE_CHECKING:
    from PIL.Image import Image

METRICS_FILE = "metrics.jsonl"
PICTURES_FOLDER = "pictures"

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./ :-]{0,249}")  # what MLflow accepts as a metric name
_RESERVED = frozenset({"step", "time", "non_finite"})
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One line of the spool."""

    step: int
    """Training step."""
    time: float
    """Seconds since 1970."""
    metrics: dict[str, float]
    """Values by name; NaN and infinities as they were logged."""
    end: int
    """Byte offset behind the line."""


class Spool:
    """A `Run` in a directory. Only one process may write to it (rank 0)."""

    def __init__(self, run_dir: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Open (or create) the record in `run_dir`; earlier lines stay."""
        self.run_dir = Path(run_dir)
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self.path = self.run_dir / METRICS_FILE
        self._clock = clock
        self._file = self.path.open("ab", buffering=0)
        self._unwritten = bytearray()  # what a full disk did not take
        self._warned = False
        if self._file.tell() and not _ends_in_newline(self.path):
            self._append(b"\n")  # the previous process died inside a line; without this the next one would be lost too

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Append one line; on a full disk it waits in memory (about 1 kB a line) for the next call.

        Raises ValueError for a name that MLflow refuses, a reserved name or a negative step.
        """
        if step < 0:
            raise ValueError(f"step = {step}: steps count from 0")
        entry: dict[str, object] = {"step": int(step), "time": round(self._clock(), 3)}
        odd: dict[str, str] = {}
        for name, given in metrics.items():
            check_name(name)
            value = float(given)
            entry[name] = value if math.isfinite(value) else None
            if not math.isfinite(value):
                odd[name] = str(value)
        if odd:
            entry["non_finite"] = odd
        self._append(json.dumps(entry, allow_nan=False).encode() + b"\n")

    def picture(self, name: str, image: "Image", step: int) -> Path:
        """Write pictures/NAME-step-N.png and return its path. Raises ValueError for a name that MLflow would refuse."""
        check_name(name)
        self._folder().mkdir(exist_ok=True)
        path = self._folder() / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}-step-{step:07d}.png"
        try:
            image.save(path, compress_level=1)  # the loop waits for this; the default level takes four times as long
        except OSError as error:
            path.unlink(missing_ok=True)
            _logger.warning("%s was not written (%s); training goes on", path, error)
        return path

    def pictures(self) -> list[tuple[str, Path, int]]:
        """Name, file and step of the pictures on disk; a name has become that of a file, `/` being `-`."""
        return pictures_in(self._folder())

    def artifact(self, path: Path) -> None:
        """Nothing to do for a file that is on disk; raises FileNotFoundError if it is not."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"artifact {path}: there is no such file; write it before recording it")

    def close(self, status: Status) -> None:
        """Close the file; the status is the driver's to keep (summary.json)."""
        self._append(b"")
        if self._unwritten:
            _logger.error(
                "%s: the last %d bytes of the record could not be written and are lost", self.path, len(self._unwritten)
            )
        self._file.close()

    def _folder(self) -> Path:
        return self.run_dir / PICTURES_FOLDER

    def _append(self, data: bytes) -> None:
        self._unwritten += data
        try:
            while self._unwritten:
                del self._unwritten[: self._file.write(bytes(self._unwritten)) or 0]
            self._warned = False
        except OSError as error:
            if not self._warned:
                _logger.warning(
                    "%s cannot be written (%s); the record waits in memory, training goes on", self.path, error
                )
            self._warned = True


def pictures_in(folder: Path) -> list[tuple[str, Path, int]]:
    """Name, file and step of the pictures in a folder of them."""
    found = [(path, re.fullmatch(r"(.+)-step-(\d+)", path.stem)) for path in sorted(folder.glob("*.png"))]
    return [(match[1], path, int(match[2])) for path, match in found if match]


def check_name(name: str) -> None:
    """Raise ValueError if `name` cannot be the name of a metric or a picture."""
    if not _NAME.fullmatch(name) or ".." in name or "//" in name or name.endswith("/"):
        raise ValueError(
            f"metric {name!r}: use letters, digits and _ - . / : and at most 250 of them, as in 'loss/total'"
        )
    if name in _RESERVED:
        raise ValueError(
            f"metric {name!r}: the name is taken by the spool itself; put it in a group, as in 'loss/{name}'"
        )


def entries(path: Path, *, offset: int = 0) -> Iterator[Entry]:
    """The complete lines from byte `offset` on; a last line without its newline is left for later, a torn one is
    skipped.
    """
    position, torn = offset, 0
    with Path(path).open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                break
            position += len(line)
            entry = _parse(line, end=position)
            if entry is not None:
                yield entry
            elif line.strip():
                torn += 1
    if torn:
        _logger.warning("%s: skipped %d torn line(s), left by a process that died while writing", path, torn)


def read_metrics(path: Path) -> dict[int, dict[str, float]]:
    """All metrics by step, ascending; the last value of a name at a step wins. A missing file is an empty record."""
    merged: dict[int, dict[str, float]] = {}
    if not Path(path).exists():
        return merged
    for entry in entries(path):
        merged.setdefault(entry.step, {}).update(entry.metrics)
    return dict(sorted(merged.items()))


def _parse(line: bytes, *, end: int) -> Entry | None:
    try:
        data = json.loads(line)
        step, moment, odd = data.pop("step"), data.pop("time"), data.pop("non_finite", {})
        metrics = {name: float(odd.get(name, "nan") if value is None else value) for name, value in data.items()}
        return Entry(step=int(step), time=float(moment), metrics=metrics, end=end)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _ends_in_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"
