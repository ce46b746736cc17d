"""Rows 51 to 59 of the matrix of bad input (docs/reliability.md): machines and clusters. Nothing here starts Ray."""

import socket
from dataclasses import replace
from pathlib import Path

import pytest

from raydino.config import ConfigError
from raydino.launch.checks.machine import Machine
from raydino.launch.checks.numbers import Facts
from raydino.launch.checks.preflight import check
from raydino.launch.cluster import ClusterConfig
from raydino.launch.engine import connect as module
from raydino.launch.engine.connect import start_ray
from raydino.recipe import Recipe

FACTS = Facts(images=10_000, classes=10, dropped=0, read_amplification=1.0, parameters=1000)
MACHINE = Machine(cpus=16, gpus=0, memory=64 * 10**9, shared_memory=8 * 10**9, python=(3, 11), ray="2.60.0")
SMALL = Recipe().override({"method.head.prototypes": 512})


@pytest.fixture(autouse=True)
def _outside_a_ray_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)


def checked(folder: Path, cluster: dict, *, facts: dict | None = None, machine: dict | None = None) -> list[str]:
    return check(
        SMALL,
        ClusterConfig(storage=str(folder)).override(cluster),
        facts=replace(FACTS, **(facts or {})),
        machine=replace(MACHINE, **(machine or {})),
    )


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize("prefix", ["", "ray://"])
def test_row_51__an_address_where_nobody_answers(prefix: str) -> None:
    address = f"{prefix}127.0.0.1:{_free_port()}"
    with pytest.raises(ConfigError) as refused, start_ray(ClusterConfig(address=address)):
        pass
    assert all(word in str(refused.value) for word in (address, "nobody answers", "check host, port and firewall"))
    assert module.CONNECT_SECONDS <= 15  # one that drops packets is given up after so long


@pytest.mark.parametrize("address", ["nonsense", "host:port", "ray://", "http://x", "host:99999999", "[::1", "a b:1"])
def test_row_51__an_address_that_is_none(address: str) -> None:
    with pytest.raises(ConfigError, match=r"cluster\.address = "), start_ray(ClusterConfig(address=address)):
        pass


@pytest.mark.parametrize(
    "error", ["401 Unauthorized: bad token abc123secret", "Unauthenticated: invalid or missing token"]
)
def test_row_52__a_wrong_token_names_the_variable_and_not_the_token(
    error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "abc123secret")
    text = module._cannot_join("head:6379", RuntimeError(error))
    assert "RAY_AUTH_TOKEN_PATH" in text and "RAY_AUTH_MODE=token" in text and "abc123secret" not in text


def test_row_53__another_version_names_both_and_the_remedy() -> None:
    said = "Version mismatch: The cluster was started with: Ray: 2.9.0 Python: 3.10.2 This process was started with: Ray: 2.60.0"
    text = module._cannot_join("head:6379", RuntimeError(said))
    assert all(word in text for word in ("2.9.0", "2.60.0", "3.10.2", "head node's versions"))


REFUSED = [
    ("54", {"workers": 8, "cpus_per_worker": 4.0}, {}, {}, ["workers = 8", "need 32 CPUs", "has 16", "lower either"]),
    ("54", {"workers": 4}, {}, {"gpus": 2}, ["workers = 4", "this machine has 2", "cluster.gpu = false"]),
    ("54", {"workers": 2, "gpu": True}, {}, {}, ["need a GPU each", "has 0"]),
    ("55", {"storage": "s3://bucket/runs"}, {}, {}, ["storage = s3://bucket/runs", "mount the bucket"]),
    ("56", {"object_store_mb": 16_000}, {}, {}, ["object_store_mb = 16000", "8 GB free", "--shm-size"]),
    ("57", {}, {"parameters": 10**15}, {}, ["cluster.storage", "free", "two checkpoints need", "name another folder"]),
]


@pytest.mark.parametrize(("row", "cluster", "facts", "machine", "says"), REFUSED)
def test_rows_54_to_57__refused_before_ray_starts(
    row: str, cluster: dict, facts: dict, machine: dict, says: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as refused:
        checked(tmp_path, cluster, facts=facts, machine=machine)
    assert all(word in str(refused.value) for word in says), str(refused.value)


def test_row_56__little_shared_memory_is_a_warning_with_the_number(tmp_path: Path) -> None:
    (warning,) = checked(tmp_path, {}, machine={"shared_memory": 64 * 2**20})
    assert all(word in warning for word in ("/dev/shm has 67.1 MB free", "629 MB", "--shm-size"))
