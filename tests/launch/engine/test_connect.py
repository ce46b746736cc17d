"""Starting a Ray, joining one, and what is said when that fails."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from raydino.config import ConfigError
from raydino.launch.cluster import ClusterConfig
from raydino.launch.engine import connect as module
from raydino.launch.engine.connect import start_ray

ROOT = Path(__file__).resolve().parents[3]


def test_start_ray__nobody_at_the_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (
        pytest.raises(ConfigError, match="nobody answers"),
        start_ray(_joining(f"127.0.0.1:{port}")),
    ):
        pass


@pytest.mark.parametrize("address", ["nonsense", "host:port", "ray://", "host:99999999"])
def test_start_ray__address_that_is_none(address):
    with pytest.raises(ConfigError, match=r"cluster\.address"), start_ray(_joining(address)):
        pass


def test_cannot_join__never_shows_the_token(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "abc123secret")
    text = module._cannot_join("auto", RuntimeError("401: bad token abc123secret"))
    assert "abc123secret" not in text
    assert "RAY_AUTH_TOKEN_PATH" in text
    assert "versions of Python and Ray" in module._cannot_join("auto", RuntimeError("Version mismatch: Ray 2.9"))


@pytest.mark.ray
def test_start_ray__local_workers_find_raydino_and_the_console_stays_quiet(tmp_path):
    script = tmp_path / "driver.py"
    script.write_text(
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from raydino.launch.cluster import ClusterConfig\n"
        "from raydino.launch.engine.connect import start_ray\n"
        "import json, os, pathlib, socket\n"
        "targets = pathlib.Path('runs/.prometheus/targets')\n"
        "targets.mkdir(parents=True)\n"
        "left, other = (targets / f'{host}-{2**22 + 1}.json' for host in (socket.gethostname(), 'another'))\n"
        "left.touch(), other.touch()\n"  # of a driver that was killed, and of one elsewhere
        "before = dict(os.environ)\n"
        "with start_ray(ClusterConfig(workers=2, object_store_mb=100)):\n"
        "    import ray\n"
        "    @ray.remote\n"
        "    def where():\n"
        "        import os, raydino.recipe\n"
        "        return raydino.recipe.__file__, os.environ['NO_ALBUMENTATIONS_UPDATE']\n"
        "    print(*ray.get(where.remote()), ray.cluster_resources()['CPU'] >= 3)\n"
        "    own = targets / f'{socket.gethostname()}-{os.getpid()}.json'\n"
        "    print({*targets.iterdir()} == {own, other})\n"
        "    (found,) = json.loads(own.read_text())\n"
        "    socket.create_connection(found['targets'][0].split(':'), timeout=30).close()\n"
        "    with start_ray(ClusterConfig()):\n"
        "        pass\n"
        "    print(ray.is_initialized())\n"
        "print(ray.is_initialized(), {k for k in before if os.environ.get(k) != before[k]}, [*targets.iterdir()] == [other])\n"
    )
    environment = {
        k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "RAY_ADDRESS", "NO_ALBUMENTATIONS_UPDATE")
    }
    command = [sys.executable, str(script), str(ROOT / "platform")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    path = ROOT / "platform" / "raydino" / "recipe.py"
    assert done.stdout.splitlines() == [f"{path} 1 True", "True", "True", "False set() True"]
    assert done.stderr.strip() == ""


def _joining(address):
    return ClusterConfig(address=address)
