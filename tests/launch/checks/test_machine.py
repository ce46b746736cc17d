"""What a machine says of itself."""

from raydino.launch.checks.machine import this_machine


def test_this_machine__agrees_with_the_interpreter(monkeypatch):
    import os
    import sys

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3")
    machine = this_machine()
    assert machine.gpus == 2
    assert machine.python == sys.version_info[:2]
    assert 1 <= machine.cpus <= os.cpu_count()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert this_machine().gpus == 0
