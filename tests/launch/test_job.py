"""`ray job submit` against a real head node with token authentication, as the README says it."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.ray, pytest.mark.slow]


def _free_ports(count: int) -> list[int]:
    """Ports outside 10002 to 19999, which Ray keeps for its workers."""
    found: list[int] = []
    for port in range(21000 + os.getpid() % 4000, 32000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise OSError("no free ports")


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A head node that asks for a token; yields the environment of somebody who has it. Ended by its process group alone."""
    folder = tmp_path_factory.mktemp("head")
    token = folder / "token"
    token.write_text("0123456789abcdef0123456789abcdef")
    token.chmod(0o600)
    port, dashboard = _free_ports(2)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_ADDRESS") and k != "PYTHONPATH"}
    environment |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=2"]
    command += [f"--port={port}", f"--dashboard-port={dashboard}"]
    command += ["--dashboard-host=127.0.0.1", "--node-ip-address=127.0.0.1", "--object-store-memory=300000000"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_for(dashboard, process, folder / "log")
        yield {**environment, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    finally:
        # Ray ends itself within half a minute of being asked to; nothing here is worth the wait
        with contextlib.suppress(ProcessLookupError):  # it did not start, which the test reports
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None, log.read_text()
        time.sleep(0.5)
    raise TimeoutError(log.read_text())


def _submit(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    """`ray job submit`, again while the head's agent, which starts jobs, is still starting itself."""
    command = [str(Path(sys.executable).with_name("ray")), "job", "submit", "--working-dir", "."]
    deadline = time.monotonic() + 120
    while True:
        done = subprocess.run(
            [*command, "--", "python", "recipes/dinov2.py", *words],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=400,
        )
        if "No available agent" not in done.stdout + done.stderr or time.monotonic() > deadline:
            return done
        time.sleep(2)


def test_job__trains_on_the_cluster_and_leaves_its_run(
    head: dict[str, str], tiny: Path, small_images: Path, storage: Path
):
    done = _submit(
        head, "--name", "job", "--config", str(tiny), "--data", str(small_images), "--cluster.storage", str(storage)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (summary,) = storage.glob("job-*/summary.json")
    assert json.loads(summary.read_text())["status"] == "finished"


def test_job__is_refused_without_the_token(head: dict[str, str], tmp_path: Path):
    wrong = tmp_path / "wrong"
    wrong.write_text("ffffffffffffffffffffffffffffffff")
    refused = _submit({**head, "RAY_AUTH_TOKEN_PATH": str(wrong)}, "--help")
    assert refused.returncode != 0
    assert "token" in (refused.stdout + refused.stderr).lower()
