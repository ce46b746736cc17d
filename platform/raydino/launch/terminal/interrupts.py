"""What SIGTERM and Ctrl-C do to a command: asked once it saves and leaves, asked twice it leaves at once."""

import os
import signal
from collections.abc import Callable
from typing import Any, Self

from raydino.launch.terminal.command import say


class Interrupts:
    """For the length of a `with` block: the first signal calls `first` and says `saying`; the second ends the process."""

    def __init__(self, saying: str, first: Callable[[], object] = lambda: None) -> None:
        self._saying, self._first = saying, first
        self._before: dict[int, Any] = {}
        self.status = 0
        """Exit status that the signal asks for, 128 and its number; 0 before the first."""

    def __enter__(self) -> Self:
        for kind in (signal.SIGTERM, signal.SIGINT):
            self._before[kind] = signal.signal(kind, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for kind, handler in self._before.items():
            signal.signal(kind, handler)

    def _receive(self, number: int, _frame: object) -> None:
        if self.status:
            os._exit(self.status)
        self.status = 128 + number
        self._first()
        say(f"stopping: {self._saying}; once more to leave without it")
