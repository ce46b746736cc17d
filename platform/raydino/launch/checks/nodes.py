"""What only the nodes themselves can tell before training: whether they share the run's folder and reach the images.

Without it, storage that is not shared shows hours later: as a run that begins anew after rank 0 has moved to another node.
"""

import contextlib
import logging
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raydino.config import ConfigError
from raydino.launch.job import Job

ANSWER_SECONDS = (
    60.0  # a process on an idle node starts in a few; beyond this, it is not there or cannot import raydino
)
FULL = 0.95  # of a disk; above it Ray spills nothing and stores nothing (local_fs_capacity_threshold)
LOOPBACK = ("127.", "localhost", "::1", "[::1]")


def check_nodes(job: Job, *, use_gpu: bool) -> None:
    """Ask every node that a worker may land on. Raises ConfigError with a line per fault."""
    least = {"CPU": job.cluster.cpus_per_worker, **({"GPU": 1.0} if use_gpu else {})}
    nodes = [node for node in ray.nodes() if node["Alive"] and _has(node["Resources"], least)]
    if len(nodes) < 2 and job.cluster.is_local:
        return  # one machine, this one
    marker = job.run_dir / f".marker-{secrets.token_hex(4)}"
    marker.write_text(marker.name)
    try:
        faults = _ask(job, nodes, marker)
    finally:
        for path in job.run_dir.glob(f"{marker.name}*"):
            path.unlink(missing_ok=True)
    if faults:
        raise ConfigError("\n".join(faults))


def check_door(job: Job, *, address: str, token: bool) -> None:
    """Refuse a cluster that anybody who reaches it may run code on. `address`: of its head; `token`: whether it asks for one.

    Raises:
        ConfigError: it is open, other machines reach it, and `cluster.allow_unauthenticated` is not set.
    """
    if token or job.cluster.is_local or address.startswith(LOOPBACK):
        return
    message = f"the Ray cluster at {address} asks for no token: whoever reaches its ports runs code on all its nodes"
    if not job.cluster.allow_unauthenticated:
        raise ConfigError(
            f"cluster.address = {job.cluster.address}: {message}. Start it with RAY_AUTH_MODE=token and set that here too, or "
            "accept it with cluster.allow_unauthenticated = true where nobody else reaches its network."
        )
    logging.getLogger(__name__).warning("%s (cluster.allow_unauthenticated)", message)


def asks_for_token() -> bool:
    """Whether this Ray authenticates its clients."""
    from ray._private.authentication.authentication_utils import is_token_auth_enabled

    return is_token_auth_enabled()


def faults_of(node: str, told: Mapping[str, Any], *, replied: bool, job: Job) -> Iterable[str]:
    """What is wrong with a node, by what it `told` and whether its own file was seen here (`replied`)."""
    storage = f"cluster.storage = {job.cluster.storage}"
    if not told["marker"]:
        yield (
            f"{storage}: node {node} does not see {job.run_dir} of this machine; mount one file system at the same path on all "
            "nodes and name a folder on it."
        )
    elif not replied:
        yield f"{storage}: node {node} cannot write to {job.run_dir} ({told['error'] or 'it lands elsewhere'}); mend its mount."
    if not told["images"]:
        yield (
            f"data.path = {job.recipe.data.path}: node {node} has no {job.data_path}; put the images on shared storage, or give "
            "a URL (s3://, gs://)."
        )
    if told["disk"] > FULL:
        yield (
            f"node {node}: the disk of {told['temporary']} is {told['disk']:.0%} full, and Ray neither stores nor spills above "
            f"{FULL:.0%}; free some space, or start Ray with another --temp-dir."
        )


def _ask(job: Job, nodes: Iterable[Mapping[str, Any]], marker: Path) -> list[str]:
    asked = {}
    for node in nodes:
        where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        reply = marker.with_name(f"{marker.name}-{node['NodeID'][:12]}")
        task = ray.remote(look).options(num_cpus=0, scheduling_strategy=where, max_retries=0)
        asked[task.remote(marker, reply, job.data_path)] = (node["NodeManagerAddress"], reply)
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_SECONDS)
    faults = []
    for task, (node, reply) in asked.items():
        if task not in answered:
            faults.append(
                f"node {node} has not answered in {ANSWER_SECONDS:.0f} s; look at its Ray log, or take it out of the cluster."
            )
            continue
        try:
            faults += faults_of(node, ray.get(task), replied=_seen(reply), job=job)
        except Exception as error:  # whatever its Python says: a package that is missing, another version
            faults.append(
                f"node {node} cannot run raydino: {str(error).splitlines()[-1]}; give it the environment of this one."
            )
    return faults


def look(marker: Path, reply: Path, images: str) -> dict[str, Any]:
    """Runs on a node: what it sees of the run's folder and of the images, and how full its disk is."""
    error = ""
    try:
        seen = marker.read_text() == marker.name
    except OSError:
        seen = False
    if seen:
        try:
            reply.write_text("")
        except OSError as fault:
            error = str(fault)
    temporary = tempfile.gettempdir()
    usage = shutil.disk_usage(temporary)
    return {
        "marker": seen,
        "error": error,
        "images": "://" in images or Path(images).exists(),
        "temporary": temporary,
        "disk": 1 - usage.free / usage.total,  # as Ray reckons: what is kept for root counts as used
    }


def _seen(reply: Path) -> bool:
    """Whether a file of another node is here; listing the folder makes NFS ask again."""
    with contextlib.suppress(OSError):
        return reply.name in {path.name for path in reply.parent.iterdir()}
    return False


def _has(resources: Mapping[str, float], least: Mapping[str, float]) -> bool:
    return all(resources.get(kind, 0.0) >= amount for kind, amount in least.items())
