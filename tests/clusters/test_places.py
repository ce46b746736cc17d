"""The ClusterConfigs in clusters/: each gives a plan, or says what this machine lacks; and they fit the machines beside them."""

import re
from pathlib import Path

import pytest
from presets import DINOV2

from raydino.config import ConfigError
from raydino.curation.synthetic import write_builtin
from raydino.launch.checks import facts
from raydino.launch.checks.machine import Machine
from raydino.launch.cluster import ClusterConfig
from raydino.launch.driver import run
from raydino.launch.terminal.command import parse

from .conftest import CLUSTERS, MOUNT, cluster_of, read

PLACES = sorted(path.stem for path in CLUSTERS.glob("*.yaml"))
SHARED = [name for name in PLACES if name not in ("laptop", "one_node")]


def place(name: str) -> ClusterConfig:
    return ClusterConfig().from_yaml((CLUSTERS / f"{name}.yaml").read_text())


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images") / "curated"
    write_builtin(str(folder), train=300, test=20)
    return folder


@pytest.fixture(autouse=True)
def _bare_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No Ray job, and a machine of two cores whose speed nobody measures: seconds, and another test's matter."""
    for name in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)
    machine = Machine(cpus=2, gpus=0, memory=64 * 10**9, shared_memory=8 * 10**9, python=(3, 11), ray="2.60.0")
    monkeypatch.setattr("raydino.launch.driver.this_machine", lambda: machine)
    monkeypatch.setattr(facts, "available_memory", lambda *_: 64 * 10**9)
    monkeypatch.setattr(facts, "probe_speed", lambda *_: 100.0)


def dry_run(name: str, images: Path, storage: Path) -> int:
    words = ["--preset", "vits16", "--data", str(images), "--cluster", str(CLUSTERS / f"{name}.yaml"), "--dry-run"]
    words += [
        "--cluster.storage",
        str(storage),
        "--cluster.accumulate",
        str(8 // place(name).workers),
    ]  # one size, one estimate
    return run(parse(DINOV2["laptop"], DINOV2, description="", argv=words))


@pytest.mark.parametrize("name", [name for name in PLACES if name != "one_node"])
def test_dry_run__prints_a_plan(name: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dry_run(name, images, tmp_path) == 0
    plan = capsys.readouterr().out
    config = place(name)
    assert f"{config.workers} workers x {8 // config.workers} micro-batches x 32 images" in plan
    assert f"Ray {config.address}" in plan
    assert list(tmp_path.iterdir()) == []


def test_dry_run__says_what_this_machine_lacks(images: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        dry_run("one_node", images, tmp_path)
    assert "need 64 CPUs, this machine has 2; lower either." in str(refused.value)
    assert "need a GPU each, this machine has 0; use cluster.gpu = false." in str(refused.value)


@pytest.mark.parametrize("name", SHARED)
def test_shared_places__take_gpus_that_are_not_there_yet_and_storage_that_all_mount(name: str) -> None:
    config = place(name)
    assert config.address == "auto"
    assert config.gpu is True
    assert config.storage.startswith(f"{MOUNT}/")
    assert config.tracking_uri is not None and config.tracking_uri.startswith("https://")
    assert not config.allow_unauthenticated


def test_elastic__loses_whole_nodes_and_keeps_the_order() -> None:
    config, gpus = place("elastic"), read(CLUSTERS / "launcher" / "aws.yaml")["available_node_types"]["gpu"]
    assert config.is_elastic
    assert config.min_workers % gpus["resources"]["GPU"] == 0
    assert config.sizes(lanes=DINOV2["vits16"].lanes, global_batch=DINOV2["vits16"].global_batch) == [4, 8]


@pytest.mark.parametrize("cloud", ["aws", "gcp", "azure"])
def test_launchers__have_the_machines_of_nodes_yaml_and_cpus_to_spare(cloud: str) -> None:
    config, types = place("nodes"), read(CLUSTERS / "launcher" / f"{cloud}.yaml")["available_node_types"]
    gpu = types["gpu"]
    assert gpu["max_workers"] * gpu["resources"]["GPU"] == config.workers
    reserved = gpu["resources"]["GPU"] * config.cpus_per_worker
    assert reserved < gpu["resources"]["CPU"]  # Ray Data's tasks wait for ever where workers reserve all


def test_kuberay__has_the_pods_of_kuberay_yaml() -> None:
    config = place("kuberay")
    (gpu,) = (g for g in cluster_of("base")["spec"]["workerGroupSpecs"] if g["groupName"] == "gpu")
    limits = gpu["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert gpu["maxReplicas"] * limits["nvidia.com/gpu"] == config.workers
    assert limits["nvidia.com/gpu"] * config.cpus_per_worker < float(limits["cpu"])


def test_slurm__asks_for_the_nodes_of_slurm_yaml() -> None:
    script = (CLUSTERS / "slurm" / "raydino.sbatch").read_text()
    asked = {name: int(value) for name, value in re.findall(r"^#SBATCH --([a-z-]+)=(\d+)$", script, re.MULTILINE)}
    config = place("slurm")
    assert asked["nodes"] * asked["gpus-per-node"] == config.workers
    assert asked["gpus-per-node"] * config.cpus_per_worker < asked["cpus-per-task"]


def test_readme__names_every_place() -> None:
    readme = (CLUSTERS / "README.md").read_text()
    assert [name for name in PLACES if f"`{name}.yaml`" not in readme] == []
    folders = [path.name for path in CLUSTERS.iterdir() if path.is_dir()]
    assert [name for name in folders if f"{name}/" not in readme] == []
