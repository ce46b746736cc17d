"""What to do about a run that waits for its data, chosen by what is true of it."""

import os
from dataclasses import dataclass
from math import ceil
from typing import Literal

from raydino.launch.cluster import ClusterConfig
from raydino.recipe import Recipe
from raydino.tracking.run import DATA_WAIT, READ_WAIT

WORTH_SAYING = 0.15  # share of the time between two log lines; a few per cent are noise, and no remedy is free
LARGE_IMAGES = 150_000  # bytes; ImageNet's have 110,000, and views of 224 pixels need no more


@dataclass(frozen=True)
class Place:
    """Where a run's images are cut, and what there is to cut them with."""

    decode_in: Literal["worker", "cluster"]
    gpus: int
    """Of the cluster."""
    cpus: float
    """Of the cluster."""
    nodes: int
    """Machines of the cluster."""
    image_bytes: int
    """Mean size of a stored image."""


def place_of(cluster: ClusterConfig, *, store_needed: int, image_bytes: int) -> Place:
    """Asks the Ray that is running."""
    import ray

    has = ray.cluster_resources()
    gpus, cpus = int(has.get("GPU", 0)), has.get("CPU", 1.0)
    decode_in = cluster.decodes_in(
        gpus=gpus, cpus=cpus, store=int(has.get("object_store_memory", 0)), store_needed=store_needed
    )
    nodes = sum(bool(node["Alive"]) for node in ray.nodes())
    return Place(decode_in, gpus, cpus, max(1, nodes), image_bytes)


def remedies(metrics: dict[str, float], recipe: Recipe, cluster: ClusterConfig, place: Place) -> str:
    """What the last log line's share of waiting means and what helps, best first; empty where it is not worth saying."""
    waited = metrics.get(DATA_WAIT, 0.0)
    if waited < WORTH_SAYING:
        return ""
    reading = metrics.get(READ_WAIT, 0.0) > waited / 2 and place.decode_in == "worker"
    found = _for_reading(cluster, place) if reading else _for_cutting(recipe, cluster, place)
    if place.image_bytes > LARGE_IMAGES:
        found.append(
            f"store the images smaller ({place.image_bytes / 1e3:,.0f} kB on average; views need no more than 110)"
        )
    what = "reading" if reading else "decoding and cropping"
    return f"{waited:.0%} of the time training waits for data: {what} is the bottleneck; " + ", or ".join(found)


def _for_reading(cluster: ClusterConfig, place: Place) -> list[str]:
    found = ["copy the images to a faster storage, best a disk of the node"]
    free = place.cpus - cluster.workers * cluster.cpus_per_worker
    if free < cluster.workers:
        found.append(f"leave reading more than {free:g} CPUs (lower cluster.cpus_per_worker)")
    return found


def _for_cutting(recipe: Recipe, cluster: ClusterConfig, place: Place) -> list[str]:
    found, on_gpu = [], cluster.use_gpu(place.gpus)
    free = place.cpus - cluster.workers * cluster.cpus_per_worker
    if place.decode_in == "worker":
        here = ceil(cluster.workers / place.nodes)
        cores = _cores(cluster, place)
        threads = cluster.decode_threads(cores=cores, workers_here=here, use_gpu=on_gpu)
        most = max(1, cores // here - on_gpu)
        if on_gpu and free >= 1:
            found.append(f"--cluster.decode-in cluster ({free:g} CPUs are not the workers'; it fills the object store)")
        if threads < most:
            found.append(f"--cluster.data-threads {most} (now {threads})")
    if not recipe.data.fast_crops:
        found.append("--data.fast-crops True in a new run (less than 0.6 of the time, slightly other pixels)")
    if on_gpu and recipe.data.fast_crops != "device":
        found.append("--data.fast-crops device in a new run (less than half of the time, the GPU changes colours)")
    found.append(f"more CPUs than {place.cpus:g}")
    return found


def _cores(cluster: ClusterConfig, place: Place) -> int:
    """Cores of a node: of this machine, where the run is on it alone."""
    if cluster.is_local and hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return max(1, int(place.cpus / place.nodes))
