"""One driver per run's folder: a lock file with its owner in it, kept warm by a heartbeat.

Two drivers on one folder would write one metrics.jsonl and sweep each other's checkpoints. The file is created with O_EXCL,
which every shared file system honours; flock is not used, since Lustre and mounted buckets have none. Whether its owner lives is
asked of the process table where that can be seen from here, and else of the heartbeat: its age is the difference of two times
of the file server, so clocks of two machines are never compared, and a heartbeat is called dead only after watching it rest.
An owner that was only paused, and whose lock was taken over meanwhile, finds a foreign token at its next beat and leaves.
"""

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from raydino.config import ConfigError

LOCK = "LOCK"
"""File in the run's folder, while a driver has it."""
BEAT = 1.5  # seconds between two heartbeats; the watching below must see one and still answer within 5 s
WATCH = 2.5 * BEAT  # seconds that a heartbeat of suspicious age is watched before it is called dead
STALE = 60.0  # seconds: a file server that hangs for less, or a machine that swaps, is no death

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Owner:
    """The driver that holds a lock."""

    token: str
    """Drawn for this lock; equal tokens are the same holder."""
    host: str
    pid: int
    since: str
    """When it took the lock, by its own clock, for people."""
    place: str
    """Where `pid` means this process: the kernel's boot id and the PID namespace. Host names are shared by containers."""
    born: str
    """Start of the process in ticks since boot: a pid that is used again has another."""

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host} since {self.since}"


class Lock:
    """A lock that this process holds, until `release`."""

    def __init__(self, path: Path, owner: Owner) -> None:
        self._path, self.owner = path, owner
        self._ended = threading.Event()
        self.lost = False
        """Another driver has the folder now, or its file system refuses us."""
        self._thread = threading.Thread(target=self._beat, name="run-lock", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Give the folder back; nothing is removed that belongs to another."""
        self._ended.set()
        self._thread.join()
        if _owner(self._path) == self.owner:
            self._path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            try:
                if not self._path.exists():  # removed by hand: the run goes on, so it is held again
                    _create(self._path, self.owner)
                if _owner(self._path) not in (self.owner, None):
                    self.lost = True
                    return
                os.utime(self._path)
            except OSError as error:  # the file server is away; whoever takes over shows at the next beat
                log.debug("no heartbeat at %s (%s)", self._path, error)


@contextlib.contextmanager
def run_lock(run_dir: Path) -> Iterator[Lock]:
    """Hold a run's folder, which is made if it is not there. Raises ConfigError naming the owner if another driver holds it.

    A lock whose owner is dead is taken over with a warning.
    """
    run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    path, mine = run_dir / LOCK, _myself()
    while not _create(path, mine):
        _take_away(path, refuse_if_held(run_dir))
    lock = Lock(path, mine)
    try:
        yield lock
    finally:
        lock.release()


def refuse_if_held(run_dir: Path) -> Owner | None:
    """Raise ConfigError if a living driver holds the folder; returns the dead one that does, if its file names one.

    Takes up to `WATCH` seconds, most times none.
    """
    path = run_dir / LOCK
    owner = _owner(path)
    with contextlib.suppress(FileNotFoundError):  # released meanwhile
        if _lives(path, owner):
            raise ConfigError(
                f"{run_dir} is in use by {owner or 'a driver that is just starting'}; wait for it or stop it, or give another "
                f"--name. If that process is dead for sure, remove {path}."
            )
    return owner


def _create(path: Path, owner: Owner) -> bool:
    """Make the lock file; False if there is one."""
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        return False
    with os.fdopen(handle, "w") as file:
        file.write(json.dumps(asdict(owner)))
    return True


def _take_away(path: Path, dead: Owner | None) -> None:
    """Remove the lock of a dead owner. Whoever wants to must have the guard first, or the second of two who saw the same dead
    owner would remove the lock of the first."""
    guard = path.with_name(f".{LOCK}.guard")
    try:
        os.close(os.open(guard, os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        time.sleep(BEAT / 10)
        with contextlib.suppress(FileNotFoundError):
            if _age(guard) >= STALE:  # its maker died between two lines
                guard.unlink()
        return
    try:
        # A young file without a name is being written.
        if path.exists() and _owner(path) == dead and (dead is not None or _age(path) >= STALE):
            path.unlink()
            gone = dead or "its file names none"
            log.warning("%s: took over the lock of a driver that is gone (%s)", path.parent, gone)
    except FileNotFoundError:
        pass
    finally:
        guard.unlink(missing_ok=True)


def _lives(path: Path, owner: Owner | None) -> bool:
    """Whether the owner of a lock file is alive. Raises FileNotFoundError when the file has gone."""
    if owner is not None and owner.place == _place():
        return _born(owner.pid) == owner.born
    if _age(path) < STALE:
        return True
    beat = _beat_and_now(path)[0]
    deadline = time.monotonic() + WATCH
    while time.monotonic() < deadline:  # a clock that was set would make an old one of a heart that beats
        time.sleep(BEAT / 10)
        if _beat_and_now(path)[0] != beat:
            return True
    return False


def _age(path: Path) -> float:
    """Seconds since the last heartbeat, or until it where a clock was set."""
    beat, now = _beat_and_now(path)
    return abs(now - beat)


def _beat_and_now(path: Path) -> tuple[float, float]:
    """Times of the last heartbeat and of now, both by the clock of the file server."""
    with path.open("rb") as file:  # opened, because NFS asks its server again only then
        beat = os.fstat(file.fileno()).st_mtime
    probe = path.with_name(f".{LOCK}.{secrets.token_hex(4)}")
    probe.touch(exist_ok=False)
    try:
        return beat, probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _owner(path: Path) -> Owner | None:
    """Who a lock file names; None if it is not there, or its maker died before a word was in it."""
    try:
        return Owner(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _myself() -> Owner:
    since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    return Owner(secrets.token_hex(8), socket.gethostname(), os.getpid(), since, _place(), _born(os.getpid()) or "")


def _place() -> str:
    """Names the process table that this process sees; one of its own kind where there is no /proc."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return f"unknown {secrets.token_hex(8)}"


def _born(pid: int) -> str | None:
    """Start time of a process, ticks since boot; None if it is gone or only its parent has not noticed yet."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else fields[19]
