"""kuberay/: the manifests as kustomize makes them.

RayCluster's fields are compared with the names in KubeRay's Go types (apis/ray/v1, 1.7); the CRDs' own schema is not in this
repository, and no cluster was asked."""

import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml

from raydino.launch.cluster import ClusterConfig

from .conftest import CLUSTERS, MOUNT, ROOT, SIZES, cluster_of, patched, read

KUBERAY = CLUSTERS / "kuberay"
UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
POLICIES = {"authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions"}
GROUP = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}


def in_bytes(quantity: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(\D+)", quantity).groups()  # type: ignore[union-attr]
    return int(number) * UNITS[unit]


def pods(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Pod templates and start parameters by group."""
    return {"head": spec["headGroupSpec"], **{group["groupName"]: group for group in spec["workerGroupSpecs"]}}


def limits(group: dict[str, Any]) -> dict[str, Any]:
    return group["template"]["spec"]["containers"][0]["resources"]["limits"]


def volumes(group: dict[str, Any]) -> dict[str, Any]:
    return {volume["name"]: volume for volume in group["template"]["spec"]["volumes"]}


def test_fields__are_those_of_kuberays_types(spec: dict[str, Any]) -> None:
    assert set(spec) == {*POLICIES, "rayVersion", "headGroupSpec", "workerGroupSpecs"}
    assert set(spec["headGroupSpec"]) == {"rayStartParams", "template"}
    assert [set(group) for group in spec["workerGroupSpecs"]] == [GROUP, GROUP]
    assert set(spec["autoscalerOptions"]) == {"version", "idleTimeoutSeconds", "securityContext", "resources"}
    assert set(spec["gcsFaultToleranceOptions"]) == {"redisAddress", "redisPassword"}


def test_cluster__token_and_rays_version(spec: dict[str, Any]) -> None:
    assert spec["authOptions"] == {"mode": "token"}
    (locked,) = re.findall(r"^ray==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert spec["rayVersion"] == locked
    tags = {
        image["newTag"] for size in ("base", "job") for image in read(KUBERAY / size / "kustomization.yaml")["images"]
    }
    assert len(tags) == 1 and tags.pop().endswith(f"ray{locked}")


def test_start_params__are_options_of_ray(spec: dict[str, Any]) -> None:
    from ray.scripts.scripts import start

    known = {option for parameter in start.params for option in parameter.opts}
    assert {f"--{name}" for group in pods(spec).values() for name in group["rayStartParams"]} <= known
    assert all(isinstance(value, str) for group in pods(spec).values() for value in group["rayStartParams"].values())


def test_dashboard__is_open_to_other_pods_only_behind_token_and_policy(spec: dict[str, Any]) -> None:
    assert (
        pods(spec)["head"]["rayStartParams"]["dashboard-host"] == "0.0.0.0" and spec["authOptions"]["mode"] == "token"
    )
    policy = read(KUBERAY / "base" / "network.yaml")["spec"]
    ours = {"matchLabels": {"app.kubernetes.io/part-of": "raydino"}}
    assert policy["podSelector"] == ours and policy["policyTypes"] == ["Ingress", "Egress"]
    inside, operator = policy["ingress"]
    assert inside == {"from": [{"podSelector": ours}]}
    assert [port["port"] for port in operator["ports"]] == [8265]
    templates = [group["template"] for group in pods(spec).values()]
    templates.append(read(KUBERAY / "job" / "rayjob.yaml")["spec"]["submitterPodTemplate"])
    assert all(template["metadata"]["labels"].items() >= ours["matchLabels"].items() for template in templates)


def test_monitor__asks_our_pods_and_opens_their_figures_alone() -> None:
    monitor, policy = yaml.safe_load_all((KUBERAY / "monitor.yaml").read_text())
    ours = read(KUBERAY / "base" / "network.yaml")["spec"]["podSelector"]
    assert monitor["spec"]["selector"] == policy["spec"]["podSelector"] == ours
    assert [each["port"] for each in monitor["spec"]["podMetricsEndpoints"]] == ["metrics"]  # 8080 by KubeRay's default
    (rule,) = policy["spec"]["ingress"]
    assert [port["port"] for port in rule["ports"]] == [8080] and policy["spec"]["policyTypes"] == ["Ingress"]


def test_gpus__only_where_they_belong(spec: dict[str, Any]) -> None:
    assert [name for name, group in pods(spec).items() if "nvidia.com/gpu" in limits(group)] == ["gpu"]
    assert pods(spec)["cpu"]["rayStartParams"]["num-gpus"] == "0"
    assert pods(spec)["head"]["rayStartParams"]["num-cpus"] == "0"


def test_object_store__is_store_bytes_of_the_pod_and_fits_its_shared_memory(spec: dict[str, Any]) -> None:
    config = ClusterConfig().from_yaml((CLUSTERS / "kuberay.yaml").read_text())
    for name, group in pods(spec).items():
        shared, memory = (
            in_bytes(volumes(group)["shared-memory"]["emptyDir"]["sizeLimit"]),
            in_bytes(limits(group)["memory"]),
        )
        gpus = limits(group).get("nvidia.com/gpu", 0)
        store = int(group["rayStartParams"]["object-store-memory"])
        assert store == config.store_bytes(gpus=gpus, memory=memory, shared=shared), name
        assert store < shared < memory / 2, name  # what lies in /dev/shm counts as memory of the pod


def test_storage__is_mounted_where_the_runs_go(spec: dict[str, Any]) -> None:
    claim = read(KUBERAY / "base" / "storage.yaml")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for group in pods(spec).values():
        mounts = {m["mountPath"]: m["name"] for m in group["template"]["spec"]["containers"][0]["volumeMounts"]}
        assert mounts["/dev/shm"] == "shared-memory"
        assert volumes(group)[mounts[MOUNT]]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert set(mounts.values()) == set(volumes(group))


def test_pods__are_confined(spec: dict[str, Any]) -> None:
    user = re.search(r"^USER (\d+):(\d+)$", (CLUSTERS / "docker" / "Dockerfile").read_text(), re.MULTILINE)
    assert user is not None
    for name, group in pods(spec).items():
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsGroup"]) == tuple(
            map(int, user.groups())
        )
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is (name == "head")  # whose autoscaler talks to Kubernetes
        for container in pod["containers"]:
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert {"cpu", "memory", "ephemeral-storage"} <= set(container["resources"]["limits"])


def test_secrets__are_named_and_not_here() -> None:
    assert [
        p
        for p in KUBERAY.rglob("*.yaml")
        if any(d and d["kind"] == "Secret" for d in yaml.safe_load_all(p.read_text()))
    ] == []


def test_gcs__the_address_and_the_password_of_the_service(spec: dict[str, Any]) -> None:
    service, store = yaml.safe_load_all((KUBERAY / "base" / "gcs.yaml").read_text())
    options = spec["gcsFaultToleranceOptions"]
    assert options["redisAddress"] == f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    (container,) = store["spec"]["template"]["spec"]["containers"]
    assert container["env"][0]["valueFrom"] == options["redisPassword"]["valueFrom"]
    assert service["spec"]["selector"].items() <= store["spec"]["template"]["metadata"]["labels"].items()


def test_job__goes_on_after_each_retry_and_leaves_no_cluster() -> None:
    spec = read(KUBERAY / "job" / "rayjob.yaml")["spec"]
    assert spec["backoffLimit"] > 0 and "--resume auto" in spec["entrypoint"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert "--cluster /opt/raydino/clusters/kuberay.yaml" in spec["entrypoint"]
    assert f"--data {MOUNT}/" in spec["entrypoint"]


def test_patched__a_path_that_is_not_there_is_caught() -> None:
    with pytest.raises(KeyError):
        patched({"a": {"b": 1}}, [{"op": "replace", "path": "/a/c", "value": 2}])
    with pytest.raises(AssertionError):
        patched({"a": {"b": 1}}, [{"op": "test", "path": "/a/b", "value": 2}])


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl on this machine")
@pytest.mark.parametrize("size", [*SIZES, "job"])
def test_kustomize__makes_the_same(size: str) -> None:
    command = ["kubectl", "kustomize", str(KUBERAY / size)]
    built = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    documents = {document["kind"]: document for document in yaml.safe_load_all(built)}
    kind = "RayJob" if size == "job" else "RayCluster"
    assert set(documents) == {kind, "PersistentVolumeClaim", "Service", "StatefulSet", "NetworkPolicy"}
    spec = documents[kind]["spec"]["rayClusterSpec"] if size == "job" else documents[kind]["spec"]
    image = read(KUBERAY / "base" / "kustomization.yaml")["images"][0]
    expected = cluster_of("base" if size == "job" else size)["spec"]
    for group in pods(expected).values():
        group["template"]["spec"]["containers"][0]["image"] = f"{image['newName']}:{image['newTag']}"
    assert spec == expected
