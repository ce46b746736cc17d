"""What the person at the terminal sees while a run goes on: read from the run's record, so it costs the workers nothing.

On a terminal one live line (rich); elsewhere a plain line per entry, at most one every few seconds.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from raydino.tracking.run import DATA_WAIT, IMAGES_PER_S, KNN_TOP1, LOSS_GROUP, LOSS_TOTAL, STEP_SECONDS
from raydino.tracking.spool import METRICS_FILE, entries

PLAIN_EVERY = 5.0  # seconds between plain lines; evaluations are always shown


class Watch:
    """Follows a run's metrics.jsonl from its present end. A context manager; call `update` now and then.

    `advise` is asked about every line of figures but the first, which holds the start, until it has something to say: once.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        steps: int,
        console: Console | None = None,
        advise: Callable[[dict[str, float]], str] = lambda _: "",
    ) -> None:
        self._advise: Callable[[dict[str, float]], str] | None = advise
        self._lines = 0  # of figures
        self._path, self._steps = run_dir / METRICS_FILE, steps
        self._offset = self._path.stat().st_size if self._path.exists() else 0
        self._console = console or Console()
        self._live = self._console.is_terminal
        self._said, self._knn = 0.0, ""
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total} steps"),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            console=self._console,
            disable=not self._live,
        )
        self._task = self._bar.add_task("starting workers", total=steps, figures="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.update()
        self._bar.stop()

    def update(self) -> None:
        """Show what has been recorded since the last call."""
        if not self._path.exists():
            return
        for entry in entries(self._path, offset=self._offset):
            self._offset = entry.end
            self._show(entry.step, entry.metrics)

    def _show(self, step: int, metrics: dict[str, float]) -> None:
        if KNN_TOP1 in metrics:
            self._knn = f"k-NN {metrics[KNN_TOP1]:.3f}"
        judged = LOSS_TOTAL not in metrics
        if judged and KNN_TOP1 not in metrics:  # what a save took, or an evaluation without labels
            return
        figures = self._knn if judged else " · ".join(filter(None, [figures_of(step, self._steps, metrics), self._knn]))
        if self._live:
            self._bar.update(self._task, description="training", completed=step, figures=figures)
        elif figures and (judged or step == self._steps or time.monotonic() - self._said >= PLAIN_EVERY):
            print(f"step {step}/{self._steps}  {figures}", flush=True, file=sys.stdout)
            self._said = time.monotonic()
        if not judged:
            self._lines += 1
            if self._lines > 1 and self._advise is not None and (advice := self._advise(metrics)):
                self._advise = None
                self._console.print(f"warning  step {step}: {advice}", soft_wrap=True, highlight=False, markup=False)


def figures_of(step: int, steps: int, metrics: dict[str, float]) -> str:
    """Losses, images/s, share of time waiting for data and time left, of one log entry."""
    prefix = f"{LOSS_GROUP}/"
    parts = [f"loss {metrics[LOSS_TOTAL]:.3f}"]
    named = {k.removeprefix(prefix): v for k, v in metrics.items() if k.startswith(prefix) and k != LOSS_TOTAL}
    if named:
        parts[0] += " (" + " ".join(f"{name} {value:.3f}" for name, value in named.items()) + ")"
    if IMAGES_PER_S in metrics:
        parts.append(f"{metrics[IMAGES_PER_S]:.0f} img/s")
        parts.append(f"wait {metrics[DATA_WAIT]:.0%}")
        left = round(metrics[STEP_SECONDS] * (steps - step))
        parts.append(f"ETA {left // 3600}:{left // 60 % 60:02}:{left % 60:02}")
    return " · ".join(parts)
