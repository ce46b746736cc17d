"""A living run's figures as gauges of Ray, which Prometheus reads and dashboards/ shows; the record is metrics.jsonl and MLflow.

The training only puts numbers into a dictionary. A thread hands them to Ray again and again, because Ray forgets a gauge that
nobody has set for two of its report intervals (20 s): so the figures of a run that has ended, or whose process has died, are gone
as soon, and a run that hangs goes on showing when its last step was. Ray's counters stay for ever, so there are none here.
"""

import logging
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from raydino.launch.job import QUARANTINE, TRIALS, Job
from raydino.tracking.opening import Opening
from raydino.tracking.outbox import unsent
from raydino.tracking.run import (
    DATA_QUARANTINED,
    RUN_DISK_FREE,
    RUN_DISK_SIZE,
    TRACKER_BACKLOG,
    TRACKER_BEHIND,
    prometheus_name,
)

RAYS_PREFIX = "ray_"  # put before every name by Ray
REPORT_MS = float(os.environ.get("RAY_metrics_report_interval_ms", 10_000))  # noqa: SIM112 Ray's own setting, and its default
EVERY = min(5.0, REPORT_MS / 2000)  # s between two times that a gauge is set
LOOK = 5.0  # s between two looks at the run's folder
log = logging.getLogger(__name__)


class Gauges:
    """The gauges of one run, or one sweep, for as long as a `with` block lasts. Nothing here waits, and nothing here raises."""

    def __init__(
        self, run: str, trial: str = "", *, look: Callable[[], Mapping[str, float]] = dict, on: bool = True
    ) -> None:
        """`look` finds out what nobody tells, in a thread of its own: it may wait for storage. Off, `set` changes nothing."""
        self._tags = {"run": run, "trial": trial}
        self._values: dict[str, float] = {}
        self._gauges: dict[str, Any] = {}
        self._look, self._on, self._ended = look, on, threading.Event()

    @classmethod
    def of_run(cls, job: Job, *, on: bool) -> Self:
        """Those of a run, or of a trial: a run in the folder of a sweep."""
        folder = job.run_dir
        is_trial = folder.parent.name == TRIALS
        run, trial = (folder.parent.parent.name, folder.name) if is_trial else (folder.name, "")
        return cls(run, trial, look=Folder(job), on=on)

    def __enter__(self) -> Self:
        if self._on:
            self._repeat(self._hand_over, every=EVERY)
            self._repeat(lambda: self.set(self._look()), every=LOOK)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()

    def set(self, metrics: Mapping[str, float]) -> None:
        """Show these values from now on, by metric name."""
        self._values.update(metrics)

    def _hand_over(self) -> None:
        from ray.util.metrics import Gauge  # in the thread: not before the first step is on its way

        for name, value in list(self._values.items()):
            if name not in self._gauges:
                exported = prometheus_name(name).removeprefix(RAYS_PREFIX)
                self._gauges[name] = Gauge(exported, name, tag_keys=("run", "trial"))
            self._gauges[name].set(float(value), tags=self._tags)

    def _repeat(self, work: Callable[[], None], *, every: float) -> None:
        def thread() -> None:
            said = False
            while True:
                try:
                    work()
                except Exception as error:  # whatever happens to what is shown, the training goes on
                    if not said:
                        log.warning("dashboards do not see all of %s (%s: %s)", self._tags, type(error).__name__, error)
                    said = True
                if self._ended.wait(every):
                    return

        threading.Thread(target=thread, name="gauges", daemon=True).start()


class Folder:
    """What a run's folder tells: images in quarantine, room on its storage, and what the tracker has yet to take."""

    def __init__(self, job: Job) -> None:
        self._run_dir, self._read, self._bad = job.run_dir, 0, 0
        self._tracked = job.mlflow_run_id is not None or Opening.load(job.run_dir) is not None

    def __call__(self) -> dict[str, float]:
        """The figures by metric name. Raises OSError where the storage does not answer."""
        disk = shutil.disk_usage(self._run_dir)
        bad = self._quarantined()
        found: dict[str, float] = {RUN_DISK_FREE: disk.free, RUN_DISK_SIZE: disk.total, DATA_QUARANTINED: bad}
        if self._tracked:
            backlog, behind = unsent(self._run_dir)
            found |= {TRACKER_BACKLOG: backlog, TRACKER_BEHIND: behind}
        return found

    def _quarantined(self) -> int:
        path = self._run_dir / QUARANTINE
        if path.exists():
            with path.open("rb") as table:
                table.seek(self._read)
                new = table.read()
            self._read, self._bad = self._read + len(new), self._bad + new.count(b"\n")
        return self._bad
