"""The script for Slurm, SkyPilot's task, the images and MLflow's services: what can be seen without any of them."""

import configparser
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from .conftest import CLUSTERS, MOUNT, ROOT, read

SBATCH = (CLUSTERS / "slurm" / "raydino.sbatch").read_text()
SKY = read(CLUSTERS / "skypilot" / "raydino.yaml")
DOCKERFILE = (CLUSTERS / "docker" / "Dockerfile").read_text()
COMPOSE = read(CLUSTERS / "mlflow" / "compose.yaml")
SCRIPTS = [*sorted(CLUSTERS.rglob("*.sh")), *sorted(CLUSTERS.rglob("*.sbatch"))]


def locked(package: str) -> str:
    (version,) = re.findall(rf"^{package}==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    return version


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_script__bash_can_read_it(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert "set -euo pipefail" in path.read_text()


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck on this machine")
def test_scripts__shellcheck_is_content() -> None:
    found = subprocess.run(["shellcheck", "--shell=bash", *map(str, SCRIPTS)], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_every_file__says_what_was_never_tried() -> None:
    files = [p for p in CLUSTERS.rglob("*") if p.suffix in (".yaml", ".sh", ".sbatch") or p.name == "Dockerfile"]
    heads = {p.relative_to(CLUSTERS).as_posix(): p.read_text().split("\napiVersion")[0] for p in files}
    parts = (
        "kustomization.yaml",
        "storage.yaml",
        "gcs.yaml",
        "network.yaml",
        "laptop.yaml",
    )  # raycluster.yaml says it for them
    told = re.compile(
        r"[Nn]ever (launched|run|built)|[Nn]ot (measured|tried)|no run .* launched yet|no spot machine was used yet"
    )
    assert [name for name, head in heads.items() if not name.endswith(parts) and not told.search(head)] == []


def test_slurm__token_before_ray_and_no_open_dashboard() -> None:
    assert SBATCH.index("export RAY_AUTH_MODE=token") < SBATCH.index("srun --kill")
    assert "umask 077" in SBATCH and "0.0.0.0" not in SBATCH


def test_slurm__only_options_that_symmetric_run_and_ray_start_have() -> None:
    from ray.scripts.scripts import start
    from ray.scripts.symmetric_run import symmetric_run

    command = re.search(r"ray symmetric-run (.*?) -- \\\n", SBATCH, re.DOTALL)
    assert command is not None
    used = set(re.findall(r"(?<=\s)--[a-z-]+", f" {command.group(1)}"))
    known = {option for tool in (start, symmetric_run) for parameter in tool.params for option in parameter.opts}
    assert {"--address", "--min-nodes"} <= used <= known - {"--head", "--node-ip-address", "--port", "--block"}


def test_slurm__saves_in_time_is_queued_again_and_goes_on() -> None:
    assert re.search(r"^#SBATCH --signal=B:USR1@\d+$", SBATCH, re.MULTILINE)
    assert "#SBATCH --requeue\n" in SBATCH and "#SBATCH --exclusive\n" in SBATCH
    assert "trap save_and_requeue USR1" in SBATCH and "scontrol requeue" in SBATCH
    assert "--cluster clusters/slurm.yaml --resume auto" in SBATCH


def test_skypilot__token_storage_and_no_open_port() -> None:
    assert SKY["envs"]["RAY_AUTH_MODE"] == "token" and SKY["secrets"]["RAY_AUTH_TOKEN"] is None
    assert SKY["resources"]["ports"] == []
    assert list(SKY["file_mounts"]) == [MOUNT]
    assert "--cluster clusters/nodes.yaml --resume auto" in SKY["run"]
    assert not re.search(
        r"^\s*(ray (start|stop)|.*--dashboard-host)", SKY["run"], re.MULTILINE
    )  # SkyPilot's own Ray would go too
    gpus = int(SKY["resources"]["accelerators"].split(":")[1])
    assert SKY["num_nodes"] * gpus == read(CLUSTERS / "nodes.yaml")["workers"]


def test_image__the_locks_ray_and_a_user_without_rights() -> None:
    tags = re.findall(r"raydino:\S*?-ray([0-9.]+)", DOCKERFILE)
    assert set(tags) == {locked("ray")}
    assert "RUN make setup" in DOCKERFILE and "COPY requirements.lock" in DOCKERFILE
    last_user = re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE)[-1]
    assert not last_user.startswith(("0", "root"))
    assert "RAY_AUTH_MODE=token" in DOCKERFILE
    bases = re.findall(r"BASE=(\S+)", DOCKERFILE)
    assert len(bases) == 2 and all(re.search(r":.*\d+\.\d+", base) for base in bases)
    assert f"cuda:{locked('cuda-toolkit').split('.')[0]}." in bases[0] + bases[1]


def test_image__nothing_secret_and_nothing_large_goes_in() -> None:
    ignored = (CLUSTERS / "docker" / "Dockerfile.dockerignore").read_text().split("\n")
    assert ignored[1] == "*" and "clusters/mlflow/.env" in ignored
    copied = {word for line in re.findall(r"^COPY (.*) \S+$", DOCKERFILE, re.MULTILINE) for word in line.split()}
    assert {line[1:] for line in ignored if line.startswith("!")} == copied


def test_mlflow__the_locks_version() -> None:
    assert f'"mlflow[auth]=={locked("mlflow")}"' in (CLUSTERS / "mlflow" / "Dockerfile").read_text()


def test_mlflow__safe_flags_and_one_open_port() -> None:
    server = COMPOSE["services"]["mlflow"]
    for flag in (
        "--app-name basic-auth",
        "--allowed-hosts ${MLFLOW_HOST}",
        "--cors-allowed-origins https://${MLFLOW_HOST}",
        "--x-frame-options DENY",
    ):
        assert flag in server["command"]
    assert "*" not in server["command"] and "disable-security" not in server["command"]
    assert server["environment"]["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    assert {name: service.get("ports") for name, service in COMPOSE["services"].items() if "ports" in service} == {
        "proxy": ["443:443"]
    }
    assert COMPOSE["networks"]["inside"] == {"internal": True}
    access = configparser.ConfigParser()
    access.read(CLUSTERS / "mlflow" / "basic_auth.ini")
    assert access["mlflow"]["default_permission"] == "NO_PERMISSIONS" and "admin_password" not in access["mlflow"]


def test_mlflow__speaks_to_its_database_through_the_driver_that_its_image_has() -> None:
    from sqlalchemy.engine import make_url

    address = COMPOSE["services"]["mlflow"]["environment"]["MLFLOW_BACKEND_STORE_URI"]
    driver = make_url(address.replace("${POSTGRES_PASSWORD:?}", "secret")).get_driver_name()
    assert f'"{driver}-binary==' in (CLUSTERS / "mlflow" / "Dockerfile").read_text()


def test_mlflow__the_servers_flags_exist() -> None:
    from mlflow.cli import server

    known = {option for parameter in server.params for option in parameter.opts}
    assert set(re.findall(r"--[a-z-]+", COMPOSE["services"]["mlflow"]["command"])) <= known


def test_mlflow__secrets_come_from_a_file_that_git_does_not_take() -> None:
    example = (CLUSTERS / "mlflow" / "env.example").read_text()
    given = dict(line.split("=", 1) for line in example.splitlines() if line and not line.startswith("#"))
    wanted = set(re.findall(r"(?<!\$)\$\{(\w+)", (CLUSTERS / "mlflow" / "compose.yaml").read_text()))
    assert set(given) == wanted
    assert [name for name, value in given.items() if value and name != "MLFLOW_HOST"] == []
    assert all(".env" in (ROOT / name).read_text().splitlines() for name in (".gitignore", ".rayignore"))


def test_images__are_pinned_by_a_tag() -> None:
    images: dict[str, Any] = {name: service.get("image") for name, service in COMPOSE["services"].items()}
    assert [image for image in images.values() if image and not re.search(r":\S*\d+\.\d+", image)] == []
