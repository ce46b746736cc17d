"""Readers of clusters/: what `kubectl kustomize` makes of kuberay/, done here so that it needs no kubectl."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CLUSTERS = ROOT / "clusters"
MOUNT = "/mnt/raydino"
SIZES = ("base", "small", "large")


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def at(document: Any, pointer: str) -> tuple[Any, Any]:
    """The container and the key that a JSON pointer names; raises if it leads nowhere."""
    *way, last = [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]
    for part in way:
        document = document[int(part) if isinstance(document, list) else part]
    key = int(last) if isinstance(document, list) else last
    document[key]
    return document, key


def patched(document: dict[str, Any], patch: list[dict[str, Any]]) -> dict[str, Any]:
    """RFC 6902's `test` and `replace`, all that the overlays use."""
    document = copy.deepcopy(document)
    for change in patch:
        inside, key = at(document, change["path"])
        if change["op"] == "test":
            assert inside[key] == change["value"], change
        else:
            assert change["op"] == "replace", change
            inside[key] = change["value"]
    return document


def cluster_of(size: str) -> dict[str, Any]:
    """The RayCluster of an overlay of kuberay/."""
    cluster = read(CLUSTERS / "kuberay" / "base" / "raycluster.yaml")
    if size == "base":
        return cluster
    overlay = read(CLUSTERS / "kuberay" / size / "kustomization.yaml")
    assert overlay["resources"] == ["../base"]
    for patch in overlay["patches"]:
        assert patch["target"] == {"kind": cluster["kind"], "name": cluster["metadata"]["name"]}
        cluster = patched(cluster, yaml.safe_load(patch["patch"]))
    return cluster


@pytest.fixture(params=SIZES)
def spec(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The spec of each size's RayCluster."""
    return cluster_of(request.param)["spec"]
