"""Faults on purpose: tests/faults asks a real run to break at a named site, on one rank, at one step.

Faults are data: RAYDINO_FAULTS names a JSON file with a list of `Fault`s. Without that variable, so outside of tests,
`reach` does nothing and costs a comparison. A fault strikes `times` times over all processes and restarts of a run, counted by
empty files beside the list, so that a worker that was killed is not killed again when it comes back to the same step.
"""

import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

LIST = os.environ.get("RAYDINO_FAULTS", "")

Action = Literal["kill", "freeze", "hang", "raise", "exhaust", "sleep", "poison"]


class InjectedError(RuntimeError):
    """What the action `raise` raises."""


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong."""

    site: str
    """Where: the name given to `reach`."""
    action: Action
    """kill: SIGKILL; freeze: SIGSTOP; hang: sleep for ever; raise: InjectedError; exhaust: MemoryError; sleep: `seconds`;
    poison: `reach` says True."""
    rank: int | None = None
    """On which rank; None: whichever gets there."""
    step: int | None = None
    """At which step (from 0), for the site `fetch` at which window of a stream; None: any."""
    times: int = 1
    """How often it strikes over all processes of the run."""
    seconds: float = 0.0
    """For `sleep`."""


def reach(site: str, *, step: int, rank: int = 0) -> bool:
    """Pass a place where a fault may strike; True if the caller is to spoil what it has in hand (action `poison`)."""
    if not LIST:
        return False
    path = Path(LIST)
    faults = [Fault(**entry) for entry in json.loads(path.read_text())]
    poisoned = False
    for number, fault in enumerate(faults):
        if _meant(fault, site, step, rank) and _first(path, number, fault):
            poisoned |= _strike(fault)
    return poisoned


def _meant(fault: Fault, site: str, step: int, rank: int) -> bool:
    return fault.site == site and fault.rank in (None, rank) and fault.step in (None, step)


def _first(path: Path, number: int, fault: Fault) -> bool:
    """Take one of the fault's strikes; False if all are spent."""
    for strike in range(fault.times):
        try:
            path.with_name(f"{path.name}.{number}.{strike}").touch(exist_ok=False)
        except FileExistsError:
            continue
        return True
    return False


def _strike(fault: Fault) -> bool:
    if fault.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault.action == "freeze":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault.action == "raise":
        raise InjectedError(f"injected at {fault.site}")
    elif fault.action == "exhaust":
        raise MemoryError(f"injected at {fault.site}")
    elif fault.action in ("hang", "sleep"):
        time.sleep(fault.seconds if fault.action == "sleep" else 10**6)
    return fault.action == "poison"
