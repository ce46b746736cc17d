"""One driver per run's folder. Another host is another process table, so both are played by changing what `_place` says."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from raydino.config import ConfigError
from raydino.launch import lock as module
from raydino.launch.lock import LOCK, Owner, refuse_if_held, run_lock
from raydino.recipe import Recipe


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "BEAT", 0.05)
    monkeypatch.setattr(module, "WATCH", 0.5)


def left_behind(run_dir: Path, **changes: str | int) -> Owner:
    """A lock file whose holder does nothing any more."""
    owner = replace(module._myself(), host="elsewhere", **changes)
    assert module._create(run_dir / LOCK, owner)
    return owner


def aged(run_dir: Path, seconds: float) -> None:
    path = run_dir / LOCK
    os.utime(path, (path.stat().st_mtime - seconds,) * 2)


def eventually(true: Callable[[], bool]) -> bool:
    ticks = threading.Event()
    return any(true() or ticks.wait(0.02) for _ in range(500))


def test_run_lock__the_second_is_refused_by_name_and_the_folder_is_free_afterwards(tmp_path: Path):
    run_dir = tmp_path / "new" / "run"
    with run_lock(run_dir) as held:
        with pytest.raises(ConfigError) as error, run_lock(run_dir):
            pass
        for word in (
            str(run_dir),
            f"pid {os.getpid()}",
            held.owner.host,
            held.owner.since,
            "--name",
            str(run_dir / LOCK),
        ):
            assert word in str(error.value)
        assert [path.name for path in run_dir.iterdir()] == [LOCK]
    refuse_if_held(run_dir)
    assert not list(run_dir.iterdir())
    with run_lock(run_dir):
        pass


def test_run_lock__another_process_is_refused_while_this_one_lives_and_takes_over_when_it_was_killed(tmp_path: Path):
    code = "import sys\nfrom pathlib import Path\nfrom raydino.launch.lock import run_lock\nwith run_lock(Path(sys.argv[1])):\n"
    code += "    print('held', flush=True)\n    sys.stdin.read()\n"
    environment = {**os.environ, "PYTHONPATH": str(Path(module.__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        env=environment,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    with pytest.raises(ConfigError, match=f"pid {process.pid} "), run_lock(tmp_path):
        pass
    process.kill()
    process.communicate()
    assert (tmp_path / LOCK).exists()
    with run_lock(tmp_path) as held:
        assert held.owner.pid == os.getpid()


def test_run_lock__a_process_number_that_is_used_again_is_no_owner(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    gone = left_behind(tmp_path, born="17")
    with run_lock(tmp_path):
        assert str(gone) in caplog.text and "took over" in caplog.text


@pytest.mark.parametrize("age", [1.0, -1.0])
def test_run_lock__of_another_host_is_believed_while_its_heartbeat_is_young(tmp_path: Path, age: float):
    left_behind(tmp_path, place="another kernel", pid=1)
    aged(tmp_path, age)
    with pytest.raises(ConfigError, match="elsewhere"), run_lock(tmp_path):
        pass


@pytest.mark.parametrize("age", [100.0, -4000.0])  # also a clock that was set back by an hour
def test_run_lock__of_another_host_is_taken_over_when_its_heart_rests(tmp_path: Path, age: float):
    left_behind(tmp_path, place="another kernel")
    aged(tmp_path, age)
    with run_lock(tmp_path) as held:
        assert module._owner(tmp_path / LOCK) == held.owner


def test_run_lock__a_heart_that_beats_lives_whatever_its_clock_says(tmp_path: Path):
    left_behind(tmp_path, place="another kernel")
    ended = threading.Event()

    def beat() -> None:
        number = 0
        while not ended.wait(0.05):
            number += 1
            os.utime(tmp_path / LOCK, (number, number))  # 1970

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(ConfigError, match="elsewhere"), run_lock(tmp_path):
            pass
    finally:
        ended.set()
        thread.join()


def test_run_lock__a_file_without_a_name_is_somebody_starting_until_it_is_old(tmp_path: Path):
    (tmp_path / LOCK).touch()
    with pytest.raises(ConfigError, match="just starting"), run_lock(tmp_path):
        pass
    aged(tmp_path, 100)
    with run_lock(tmp_path):
        pass


def test_lock__keeps_its_heartbeat_and_comes_back_when_removed_by_hand(tmp_path: Path):
    with run_lock(tmp_path) as held:
        aged(tmp_path, 1000)
        before = (tmp_path / LOCK).stat().st_mtime
        assert eventually(lambda: (tmp_path / LOCK).stat().st_mtime > before + 900)
        (tmp_path / LOCK).unlink()
        assert eventually(lambda: module._owner(tmp_path / LOCK) == held.owner)
        assert not held.lost


def test_lock__a_paused_owner_finds_that_it_was_taken_over_and_leaves_the_other_alone(tmp_path: Path):
    with run_lock(tmp_path) as held:
        (tmp_path / "other").mkdir()
        other = left_behind(tmp_path / "other")
        (tmp_path / "other" / LOCK).replace(tmp_path / LOCK)
        assert eventually(lambda: held.lost)
    assert module._owner(tmp_path / LOCK) == other


def test_run_lock__of_many_who_find_a_dead_owner_one_gets_the_folder(tmp_path: Path):
    for round_ in range(10):
        run_dir = tmp_path / str(round_)
        run_dir.mkdir()
        left_behind(run_dir, born="17")
        start, ended, held, refused = threading.Barrier(8), threading.Barrier(8), [], []

        def try_it(run_dir=run_dir, start=start, ended=ended, held=held, refused=refused) -> None:
            start.wait()
            try:
                with run_lock(run_dir) as lock:
                    ended.wait()
                    held.append(lock.lost)
            except ConfigError:
                refused.append(True)
                ended.wait()

        threads = [threading.Thread(target=try_it) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (held, len(refused)) == ([False], 7)
        assert not list(run_dir.iterdir())


def test_run_lock__a_command_is_refused_before_anything_slow_is_imported(tmp_path: Path):
    script = tmp_path / "train.py"
    script.write_text(
        "import sys\nfrom raydino.launch.driver import main\nfrom raydino.recipe import Recipe\n"
        "try:\n    main(Recipe(name='held'), {}, description='Train.')\n"
        "finally:\n    print([m for m in ('torch', 'ray', 'mlflow') if m in sys.modules])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(module.__file__).parents[2])}
    words = ["--cluster.storage", str(tmp_path), "--resume", "auto"]
    with run_lock(tmp_path / Recipe(name="held").id):
        done = subprocess.run(
            [sys.executable, str(script), *words], env=environment, capture_output=True, text=True, timeout=60
        )
    assert (done.returncode, done.stdout) == (2, "[]\n")
    assert f"in use by pid {os.getpid()} on " in done.stderr
