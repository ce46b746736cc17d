"""What nodes tell before training: a storage that is not shared, images that are not there, a full disk, an open door."""

from dataclasses import replace
from pathlib import Path

import pytest

from raydino.config import ConfigError
from raydino.launch.checks.nodes import check_door, faults_of, look
from raydino.launch.cluster import ClusterConfig
from raydino.launch.job import Job
from raydino.recipe import Recipe

SOUND = {"marker": True, "error": "", "images": True, "temporary": "/tmp", "disk": 0.5}


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    for name in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)
    cluster = ClusterConfig(address="head:6379", storage=str(tmp_path))
    return Job(Recipe(), cluster, tmp_path / "run", str(tmp_path / "images"), "", "", None)


@pytest.mark.parametrize(
    ("told", "replied", "words"),
    [
        ({"marker": False}, False, ["cluster.storage = ", "node 10.0.0.2", "mount one file system"]),
        ({"error": "[Errno 30] Read-only file system"}, False, ["cannot write", "Read-only"]),
        ({}, False, ["cannot write", "lands elsewhere"]),
        ({"images": False}, True, ["data.path = builtin", "10.0.0.2", "shared storage"]),
        ({"disk": 0.97}, True, ["/tmp", "97% full", "--temp-dir"]),
    ],
)
def test_faults_of__says_node_field_and_remedy(job: Job, told: dict, replied: bool, words: list[str]):
    (fault,) = faults_of("10.0.0.2", {**SOUND, **told}, replied=replied, job=job)
    assert all(word in fault for word in words), fault


def test_faults_of__a_sound_node_has_none(job: Job):
    assert not list(faults_of("10.0.0.2", SOUND, replied=True, job=job))


def test_look__is_what_a_node_sees(tmp_path: Path):
    marker, reply = tmp_path / ".marker-1", tmp_path / ".marker-1-node"
    assert look(marker, reply, str(tmp_path)) | {"marker": False, "images": True} == look(marker, reply, str(tmp_path))
    assert not reply.exists()
    marker.write_text("another run's")
    assert not look(marker, reply, "")["marker"]
    marker.write_text(marker.name)
    told = look(marker, reply, str(tmp_path / "gone"))
    assert (told["marker"], told["images"], told["error"]) == (True, False, "")
    assert reply.exists() and 0 < told["disk"] < 1
    assert look(marker, reply, "s3://bucket/x")["images"]
    assert "No such file" in look(marker, tmp_path / "none" / "x", "")["error"]


@pytest.mark.parametrize("address", ["127.0.0.1:6379", "localhost:6379", "[::1]:6379"])
def test_check_door__nobody_else_reaches_loopback(job: Job, address: str):
    check_door(job, address=address, token=False)


def test_check_door__an_open_cluster_is_refused_unless_that_is_said(job: Job, caplog: pytest.LogCaptureFixture):
    check_door(job, address="10.0.0.1:6379", token=True)
    with pytest.raises(ConfigError) as error:
        check_door(job, address="10.0.0.1:6379", token=False)
    for word in (
        "cluster.address = head:6379",
        "10.0.0.1:6379",
        "RAY_AUTH_MODE=token",
        "cluster.allow_unauthenticated",
    ):
        assert word in str(error.value)
    open_door = replace(job, cluster=job.cluster.override({"allow_unauthenticated": True}))
    check_door(open_door, address="10.0.0.1:6379", token=False)
    assert "asks for no token" in caplog.text
    check_door(
        replace(job, cluster=ClusterConfig()), address="10.0.0.1:6379", token=False
    )  # started here, for this run
