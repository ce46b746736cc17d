"""The watchdog: a training that hangs is ended with the stacks of all ranks written, one that is merely slow is not."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from raydino.launch.workers import watchdog
from raydino.launch.workers.watchdog import HUNG, Watchdog

PLATFORM = Path(__file__).resolve().parents[3] / "platform"


def wait_until(condition) -> bool:
    """Whether it came true within a minute."""
    end = time.monotonic() + 60
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def stacks(folder: Path) -> dict[str, str]:
    """What each rank left, by the end of the file's name."""
    return {path.name.split(".")[-2]: path.read_text() for path in folder.glob("*.of-rank*.txt")}


def a_place_to_hang(over: threading.Event) -> None:
    over.wait()


def test_watchdog__the_stacks_of_every_rank_are_written_before_the_one_that_hangs_ends(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(watchdog, "LOOK", (0.05, 0.05))
    monkeypatch.setattr(watchdog, "PATIENCE", 1.0)
    ended, seen, over = [], [], threading.Event()

    def end(status: int) -> None:
        ended.append(status)
        seen.extend(stacks(tmp_path / "stacks"))

    hangs = threading.Thread(target=a_place_to_hang, args=(over,))
    hangs.start()
    (tmp_path / "stacks").mkdir()
    (tmp_path / "stacks" / "step1-rank1-99.request").touch()  # of an attempt before: nobody answers
    with (
        Watchdog(tmp_path / "stacks", rank=0, timeout=1000, end=lambda _: ended.append(0)),
        Watchdog(tmp_path / "stacks", rank=1, timeout=0.5, end=end) as hanging,
    ):
        hanging.beat(7)
        assert wait_until(lambda: ended)
    over.set()
    hangs.join()
    assert ended == [HUNG]
    assert sorted(seen) == ["of-rank0", "of-rank1"]
    for rank in (0, 1):
        assert "a_place_to_hang" in stacks(tmp_path / "stacks")[f"of-rank{rank}"]
    assert "7 steps finished" in stacks(tmp_path / "stacks")["of-rank1"]
    assert not list((tmp_path / "stacks").glob("step1-*.txt"))


def test_watchdog__signs_of_life_and_patience_keep_a_slow_one_alive(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(watchdog, "LOOK", (0.05, 0.05))
    ended = []
    with Watchdog(tmp_path / "stacks", rank=0, timeout=2.0, end=ended.append) as dog:
        time.sleep(3.0)  # before the first step
        for step in range(5):
            dog.beat(step)
            time.sleep(0.6)
        with dog.patience():
            time.sleep(3.0)
        time.sleep(0.5)
    assert not ended and not list(tmp_path.iterdir())
    assert not [thread for thread in threading.enumerate() if thread.name == "raydino-watchdog"]


def test_watchdog__zero_is_off(tmp_path: Path):
    with Watchdog(tmp_path / "stacks", rank=0, timeout=0) as dog, dog.patience():
        dog.beat(1)
    assert not (tmp_path / "stacks").exists()


HANG = """
import ctypes, sys, time
from pathlib import Path
from raydino.launch.workers import watchdog
watchdog.PATIENCE, watchdog.LAST_RESORT = 1.0, 1.0
def keeps_the_lock():
    ctypes.PyDLL(None).sleep(60)  # PyDLL: Python's lock is kept
def lets_go():
    time.sleep(60)
with watchdog.Watchdog(Path(sys.argv[1]), rank=0, timeout=1.0) as dog:
    dog.beat(3)
    globals()[sys.argv[2]]()
"""


def hang(folder: Path, how: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", HANG, str(folder), how],
        env={**os.environ, "PYTHONPATH": str(PLATFORM)},
        capture_output=True,
        text=True,
        timeout=50,
    )


def test_watchdog__a_process_that_hangs_ends_itself(tmp_path: Path):
    assert hang(tmp_path / "stacks", "lets_go").returncode == HUNG
    assert "lets_go" in stacks(tmp_path / "stacks")["of-rank0"]


def test_watchdog__a_process_whose_thread_keeps_pythons_lock_ends_too(tmp_path: Path):
    assert hang(tmp_path / "stacks", "keeps_the_lock").returncode == 1  # faulthandler's own
    assert "keeps_the_lock" in (tmp_path / "stacks" / ".timer-rank0.txt").read_text()
