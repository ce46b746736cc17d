"""A whole run whose tracker is away at the start, comes, and loses its database in the middle (F14, F15)."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from outages.server import Server
from raydino.faults import Fault
from raydino.tracking.spool import METRICS_FILE, read_metrics

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.fault]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    stub = Server(tmp_path / "artifacts")
    yield stub
    stub.stop()


def test_fault_14_and_15__the_run_ends_well_and_the_tracker_has_all_of_it(shell: Any, server: Server) -> None:
    server.stop()
    # So slow that the run cannot end before the tracker came, went and came: pauses between two attempts grow to 30 s.
    shell.stage.clear(Fault("step", "sleep", seconds=4.0, times=1000))
    process = shell.start("--cluster.tracking-uri", server.uri)
    try:
        shell.stage.wait_for(lambda: len(shell.stage.steps()) >= 1)
        assert not server.runs
        server.start()
        shell.stage.wait_for(lambda: server.of("loss/total"))
        server.stop()
        server.forget()
        time.sleep(0.5)
        server.start()
        shell.stage.wait_for(lambda: server.of("loss/total"))
        shell.stage.list.write_text("[]")
        out, _ = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 0, out
    (found,) = server.runs.values()
    rows = read_metrics(shell.run_dir / METRICS_FILE)
    for name in ("loss/total", "optim/lr", "health/rankme"):
        assert server.of(name) == [(step, row[name]) for step, row in rows.items() if name in row]
    assert found["info"]["status"] == "FINISHED"
    assert json.loads((shell.run_dir / "summary.json").read_text())["mlflow_run_id"] == found["info"]["run_id"]
    assert "warning  tracking_uri = " in out and found["info"]["run_id"] in out
