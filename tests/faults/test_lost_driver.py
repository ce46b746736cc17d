"""The driver is killed, stopped and started twice: the run's folder stays one run, and it goes on where it was."""

import json
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from raydino.faults import Fault
from raydino.launch.lock import LOCK
from raydino.train.checkpoint import committed
from raydino.train.verify import damage

pytestmark = [pytest.mark.fault, pytest.mark.ray, pytest.mark.slow]
LIMIT = 300  # seconds
SLOW = Fault("step", "sleep", seconds=0.5, times=1000)  # time to strike between two steps


def test_fault_5_and_6__the_driver_is_killed_and_ray_has_lost_its_own_record(
    shell: Any, undisturbed: Any, kill_all: Callable[..., None]
):
    """All processes die at once. What Ray wrote down of the run is cut in half: every attempt has a name of its own, so it is
    never read."""
    shell.stage.clear(SLOW)
    first = shell.start()
    shell.stage.wait_for(lambda: 4 in shell.stage.steps())
    kill_all(first)
    snapshots = list(shell.run_dir.glob("ray/*/checkpoint_manager_snapshot.json"))
    for path in snapshots:
        path.write_text(path.read_text()[: path.stat().st_size // 2])
    for path in shell.run_dir.glob("ray/*"):
        assert path.name.startswith("attempt-")
    shell.stage.list.write_text("[]")
    before = json.loads((shell.run_dir / "run.json").read_text())
    second = shell.start("--resume", "auto")
    output, _ = second.communicate(timeout=LIMIT)
    assert second.returncode == 0, output
    assert "took over the lock" in output
    begins = [line["begin"] for line in shell.stage.begins()]
    assert len(begins) == 2 and begins[1] >= 3
    assert shell.stage.order() == undisturbed.order()
    assert shell.stage.steps() == undisturbed.steps()
    after = json.loads((shell.run_dir / "run.json").read_text())
    assert before["mlflow_run_id"] == after["mlflow_run_id"] is not None
    assert not (shell.run_dir / LOCK).exists()


def test_fault_21_and_25__a_second_driver_is_refused_and_the_second_interrupt_leaves_at_once(shell: Any):
    shell.stage.clear(Fault("step", "sleep", seconds=0.5, times=8), Fault("step", "hang", step=8, times=9))
    process = shell.start()
    shell.stage.wait_for(lambda: 6 in shell.stage.steps())
    second = shell.start("--resume", "auto")
    output, _ = second.communicate(timeout=LIMIT)
    assert second.returncode == 2 and f"in use by pid {process.pid} on " in output
    shell.stage.wait_for(lambda: 7 in shell.stage.steps())
    time.sleep(1)  # it hangs in step 8 now, so no checkpoint can come of the first signal
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 130
    output = process.stdout.read() if process.stdout else ""
    assert "once more to leave without it" in output
    newest = committed(shell.run_dir / "checkpoints")[0]
    assert newest.name == "step-00000006" and damage(newest) is None
