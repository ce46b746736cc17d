"""Ray's launcher files, against the schema and the validator of the installed Ray; nothing here reaches a cloud."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
from ray.autoscaler._private.util import prepare_config, validate_config

from .conftest import CLUSTERS, MOUNT, read

FILES = sorted((CLUSTERS / "launcher").glob("*.yaml"))
CLOUDS = [path for path in FILES if path.stem != "onprem"]
SCHEMA = json.loads(Path(ray.autoscaler.__file__).with_name("ray-schema.json").read_text())
START = (CLUSTERS / "launcher" / "start.sh").read_text()

named = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


@named
def test_launcher__passes_rays_schema_and_validator(path: Path) -> None:
    config = read(path)
    jsonschema.validate(config, SCHEMA)
    validate_config(prepare_config(copy.deepcopy(config)))


def test_launcher__a_misspelled_field_is_caught() -> None:
    config = read(CLUSTERS / "launcher" / "aws.yaml")
    with pytest.raises(jsonschema.ValidationError, match="max_wokers"):
        jsonschema.validate({**config, "max_wokers": 3}, SCHEMA)


@named
def test_launcher__brings_token_checkout_and_storage_to_every_node(path: Path) -> None:
    config = read(path)
    assert config["file_mounts"] == {
        "/home/ubuntu/raydino": ".",
        "/home/ubuntu/.ray/auth_token": "~/.ray/auth_token",
    }
    assert {".git", ".venv", "runs"} <= set(config["rsync_exclude"])
    (setup,) = config["setup_commands"]
    assert re.fullmatch(r"bash ~/raydino/clusters/launcher/setup\.sh \S+:/\S*", setup)
    assert config["head_start_ray_commands"] == ["bash ~/raydino/clusters/launcher/start.sh head"]
    assert config["worker_start_ray_commands"] == ["bash ~/raydino/clusters/launcher/start.sh worker $RAY_HEAD_IP"]


@pytest.mark.parametrize("path", CLOUDS, ids=lambda path: path.stem)
def test_cloud__an_on_demand_head_spot_workers_and_limits(path: Path) -> None:
    config = read(path)
    types: dict[str, Any] = config["available_node_types"]
    assert config["head_node_type"] == "head" and set(types) == {"head", "gpu", "cpu"}
    assert sum(kind.get("max_workers", 0) for kind in types.values()) == config["max_workers"]
    assert [kind["min_workers"] for name, kind in types.items() if name != "head"] == [0, 0]
    assert types["head"]["resources"] == {"CPU": 0}
    assert "GPU" not in types["cpu"]["resources"] and types["gpu"]["resources"]["GPU"] > 0
    spot = {
        name: bool(re.search(r"spot", json.dumps(kind["node_config"]), re.IGNORECASE)) for name, kind in types.items()
    }
    assert spot == {"head": False, "gpu": True, "cpu": True}


def test_aws__no_security_group_of_rays_own() -> None:
    # Where a node type names none, Ray makes one that lets SSH in from everywhere.
    types = read(CLUSTERS / "launcher" / "aws.yaml")["available_node_types"]
    assert all(kind["node_config"]["SecurityGroupIds"] for kind in types.values())


def test_start__token_first_and_a_dashboard_of_its_own_machine() -> None:
    assert START.index("export RAY_AUTH_MODE=token") < START.index(" ray start --head")
    assert "--dashboard-host=127.0.0.1" in START and "0.0.0.0" not in START


def test_start__knows_only_options_that_ray_has() -> None:
    from ray.scripts.scripts import start

    known = {option for parameter in start.params for option in parameter.opts}
    commands = " ".join(re.findall(r"ray start (.*?);;", START.replace("\\\n", " "), re.DOTALL))
    used = set(re.findall(r"--[a-z-]+", commands))
    assert used and used <= known


def test_setup__mounts_where_the_runs_go() -> None:
    setup = (CLUSTERS / "launcher" / "setup.sh").read_text()
    assert f"mount_path={MOUNT}\n" in setup
    assert 'make -C "$checkout" setup' in setup  # requirements.lock, by hash
