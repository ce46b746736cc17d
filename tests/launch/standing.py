"""A Ray cluster of real `ray start` processes on this machine that asks for a token, for what is submitted to it from outside."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from ray._common.utils import reset_ray_address
from ray._private.utils import read_ray_address

ROOT = Path(__file__).resolve().parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
LIMIT = 240.0  # seconds for a node to come


class StandingRay:
    """A head node and whatever is added to it. Each node is a process group of its own, so that one can be lost."""

    def __init__(self, folder: Path, *, head_cpus: int, environment: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        token = folder / "token"
        token.write_text("0123456789abcdef0123456789abcdef")
        token.chmod(0o600)
        self.port, dashboard = _free_ports(2)
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("RAY_ADDRESS") and k != "PYTHONPATH"}
        self.environment = {
            **inherited,
            **(environment or {}),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        }
        self.nodes: list[subprocess.Popen[bytes]] = []
        self.folders: list[str] = []
        try:
            head = ["--head", f"--port={self.port}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"]
            self._start(*head, cpus=head_cpus)
            self._wait_for(lambda: _answers(dashboard))
        except BaseException:
            self.end()
            raise

    def add_node(self, *, cpus: int) -> subprocess.Popen[bytes]:
        """Another machine, to Ray, once it has joined. It has a folder of its own, as machines do: in a shared one, each node
        unpacks the job's package over that of the others, while they import from it."""
        folder = tempfile.mkdtemp(prefix="ray-")  # a short name: sockets lie in it
        self.folders.append(folder)
        address = [f"--address=127.0.0.1:{self.port}", f"--temp-dir={folder}"]
        return self._start(*address, cpus=cpus)

    def submit(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """`ray job submit -- python recipes/dinov2.py WORDS`, again while the head's agent, which starts it, is starting."""
        deadline = time.monotonic() + LIMIT
        while True:
            done = subprocess.run(
                [RAY, "job", "submit", "--working-dir", ".", "--", "python", "recipes/dinov2.py", *words],
                cwd=ROOT,
                env={**self.environment, **environment},
                capture_output=True,
                text=True,
                timeout=500,
            )
            if "No available agent" not in done.stdout + done.stderr or time.monotonic() > deadline:
                return done
            time.sleep(2)

    def lose(self, node: subprocess.Popen[bytes]) -> None:
        """A node is gone from one moment to the next. Ray ends itself within half a minute of being asked to; that would be a
        machine that is switched off, and nothing here is worth the wait."""
        with contextlib.suppress(ProcessLookupError):  # it did not start, which the test reports
            os.killpg(node.pid, signal.SIGKILL)
        node.wait()

    def end(self) -> None:
        """Stop what was started here, and nothing else."""
        for node in reversed(self.nodes):
            self.lose(node)
        for folder in self.folders:
            shutil.rmtree(folder, ignore_errors=True)
        # Killed, Ray leaves its address for others to find.
        if (read_ray_address(None) or "").endswith(f":{self.port}"):
            reset_ray_address()

    def _start(self, *words: str, cpus: int) -> subprocess.Popen[bytes]:
        command = [RAY, "start", "--block", f"--num-cpus={cpus}", "--node-ip-address=127.0.0.1", *words]
        # A port of its own for the agent, which takes the jobs: another Ray of this machine may have the usual one.
        command += ["--object-store-memory=300000000", "--dashboard-agent-listen-port=0"]
        with self._log(len(self.nodes)).open("w") as log:
            node = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log, start_new_session=True)
        self.nodes.append(node)
        self._wait_for(lambda: "Ray runtime started" in self._log(len(self.nodes) - 1).read_text())
        return node

    def _log(self, number: int) -> Path:
        return self.folder / f"node-{number}.log"

    def _wait_for(self, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LIMIT
        while not true():
            said = self._log(len(self.nodes) - 1).read_text()
            assert self.nodes[-1].poll() is None, said
            if time.monotonic() > deadline:
                raise TimeoutError(said)
            time.sleep(0.5)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


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
