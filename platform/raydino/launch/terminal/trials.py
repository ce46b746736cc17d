"""What the person at the terminal sees of a sweep: a live table of its trials, or a line for each evaluation elsewhere.

Read from the trials' records, so it costs them nothing.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from raydino.tracking.run import RANKME
from raydino.tracking.spool import METRICS_FILE, entries

if TYPE_CHECKING:
    from raydino.launch.trials.board import Board
    from raydino.launch.trials.trial import Trial

SHOWN = 30  # rows of a table that fits on a screen: those that run, and the last that ended


@dataclass
class _Line:
    """What is known of a trial."""

    offset: int = 0
    step: int = 0
    judged: int = -1
    value: float = math.nan
    state: str = "starting"


class TrialsTable:
    """Shows a board. A context manager; call `update` now and then."""

    def __init__(self, settings: Mapping[str, str], objective: str, *, console: Console | None = None) -> None:
        self._settings, self._objective = settings, objective
        self._console = console or Console()
        self._lines: dict[str, _Line] = {}
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def name(self, trial: str, settings: str) -> None:
        """What a trial sets, for its row."""
        self._settings = {**self._settings, trial: settings}

    def update(self, board: "Board") -> None:
        """Show what has happened since the last call."""
        for trial in board.snapshot():
            self._follow(trial, board.run_dir(trial))
        for name, result in list(board.results.items()):
            if self._lines.setdefault(name, _Line()).state not in (result.status, result.reason):
                self._follow(result.trial, result.run_dir, say=self._lines[name].offset > 0)  # not what was said before
                line = self._lines[name]
                line.state = result.reason or result.status
                self._say(f"{name}  {self._settings.get(name, '')}  {line.value:.4f}  {line.state}")
        if self._live:
            self._live.update(self._table(board), refresh=True)

    def _follow(self, trial: "Trial", run_dir: Path, *, say: bool = True) -> None:
        line = self._lines.setdefault(trial.name, _Line())
        if not (run_dir / METRICS_FILE).exists():
            return
        for entry in entries(run_dir / METRICS_FILE, offset=line.offset):
            line.offset, line.step, line.state = entry.end, entry.step, "training"
            if RANKME in entry.metrics and self._objective in entry.metrics:
                line.judged, line.value = entry.step, entry.metrics[self._objective]
                if say:
                    self._say(f"{trial.name}  step {entry.step}/{trial.last_step}  {self._objective} {line.value:.4f}")

    def _say(self, text: str) -> None:
        if self._live is None:
            print(text, flush=True)

    def _table(self, board: "Board") -> Table:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for column in ("trial", "sets", "step", self._objective, "state"):
            table.add_column(column, overflow="fold")
        running = {trial.name: trial for trial in board.snapshot()}
        ended = [name for name in self._lines if name not in running]
        shown = [*ended[-max(0, SHOWN - len(running)) :], *running]
        for name in sorted(shown):
            line = self._lines.get(name, _Line())
            steps = (
                (running.get(name) or board.results[name].trial).last_step
                if name in running or name in board.results
                else 0
            )
            value = "" if math.isnan(line.value) else f"{line.value:.4f}"
            table.add_row(name, self._settings.get(name, ""), f"{line.step}/{steps}", value, line.state)
        return table
