"""A Ray that a run starts, before a stranger (F30): without the token a second process gets nothing, and nothing else listens."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.ray, pytest.mark.fault]

OWNER = """
import os, stat, sys
sys.path.insert(0, sys.argv[1])
from raydino.launch.cluster import ClusterConfig
from raydino.launch.engine.connect import start_ray
import psutil
with start_ray(ClusterConfig(object_store_mb=100)):
    import ray
    address = ray.get_runtime_context().gcs_address
    token = os.environ.get("RAY_AUTH_TOKEN_PATH") or os.path.expanduser("~/.ray/auth_token")
    ours = [psutil.Process(), *psutil.Process().children(recursive=True)]
    names = sorted({p.name() for p in ours for c in p.net_connections("tcp") if c.status == "LISTEN"})
    print("ready", address, oct(stat.S_IMODE(os.stat(token).st_mode)), *names, sep="|", flush=True)
    sys.stdin.readline()
"""
STRANGER = """
import sys
import ray
try:
    ray.init(address=sys.argv[1], include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    print("joined", ray.cluster_resources())
except BaseException as error:
    print("refused", " ".join(f"{type(error).__name__}: {error}".split()))
"""
DOCUMENTED = ("gcs_server", "raylet", "ray::", "python", "log_monitor", "dashboard", "runtime_env", "plasma")


def _stranger(address: str, home: Path, **environment: str) -> str:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    command = [sys.executable, "-W", "ignore", "-c", STRANGER, address]
    found = subprocess.run(
        command,
        env={**clean, "HOME": str(home), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    said = [line for line in found.stdout.splitlines() if line.startswith(("joined", "refused"))]
    return said[-1] if said else f"refused: exit status {found.returncode}: {found.stderr[-1500:]}"


def test_start_ray__a_process_without_the_token_is_refused(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "PYTHONPATH", "RAY_AUTH_MODE")}
    home, other = tmp_path / "owner", tmp_path / "stranger"
    home.mkdir()
    other.mkdir()
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", OWNER, str(ROOT / "platform")],
        env={**environment, "HOME": str(home)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout is not None and owner.stdin is not None
        _, address, mode, *listening = (
            next(line for line in owner.stdout if line.startswith("ready")).strip().split("|")
        )
        try:
            wrong = other / "token"
            wrong.write_text("0" * 64)
            without = _stranger(address, other, RAY_AUTH_MODE="disabled")
            with_another = _stranger(address, other, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(wrong))
            with_its_own = _stranger(address, home, RAY_AUTH_MODE="token")
        finally:
            owner.stdin.write("\n")
            owner.stdin.flush()
            owner.wait(60)
    assert without.startswith("refused"), without
    assert with_another.startswith("refused"), with_another
    assert with_its_own.startswith("joined"), with_its_own  # else nothing was shown: nobody at all gets in
    assert mode == "0o600"
    assert [name for name in listening if not name.startswith(DOCUMENTED)] == []
