"""How many trials a cluster has room for at once: so many that none of them ever waits for another.

Ray knows no room: trials that hold every CPU while their reading tasks wait for one, or drivers that hold what their own workers
need, wait for ever without an error (two trials on two CPUs did). So the number is computed before anything is started, from the
cluster's nodes and what a trial takes of them, for the worst way in which Ray may place it.
"""

import math
from collections.abc import Mapping, Sequence

from raydino.config import ConfigError
from raydino.launch.cluster import ClusterConfig

GRAIN = 10_000  # Ray counts resources in ten-thousandths
DRIVER_CPUS = 0.01  # of a trial whose workers are placed apart from it; Ray refuses a trial that takes nothing


def concurrent_trials(
    nodes: Sequence[Mapping[str, float]], *, workers: int, cpus: float, gpus: float, reading: float
) -> int:
    """Trials that can run at once, 0 if not even one; a pure function.

    Each has `workers` workers of `cpus` CPUs and `gpus` GPUs (below 1 they share one, else whole ones); one worker is the trial
    itself, several have a driver of DRIVER_CPUS beside them. Wherever all of them are placed, one node has `reading` CPUs left,
    so that images can always be read.
    """
    most = sum(_slots(node, cpus, gpus, taken=0) for node in nodes) // workers
    return next((n for n in range(most, 0, -1) if _fits(nodes, n, workers, cpus, gpus, reading)), 0)


def _fits(
    nodes: Sequence[Mapping[str, float]], trials: int, workers: int, cpus: float, gpus: float, reading: float
) -> bool:
    drivers = 0 if workers == 1 else _grains(DRIVER_CPUS) * trials  # all on one node, in the worst case on any
    slots = [_slots(node, cpus, gpus, taken=drivers) for node in nodes]
    if trials * workers > sum(slots):
        return False
    filled = [
        _filled(node, cpus, slots=count, reading=reading, taken=drivers)
        for node, count in zip(nodes, slots, strict=True)
    ]
    # Somewhere nobody can fill up, or fewer workers than it takes to fill up all nodes.
    return None in filled or trials * workers < sum(count for count in filled if count is not None)


def _slots(node: Mapping[str, float], cpus: float, gpus: float, *, taken: int) -> int:
    """Workers that a node has room for."""
    by_cpu = max(0, _grains(node.get("CPU", 0.0)) - taken) // _grains(cpus)
    if not gpus:
        return by_cpu
    devices = int(node.get("GPU", 0.0))
    by_gpu = devices * (GRAIN // _grains(gpus)) if gpus < 1 else devices // int(gpus)
    return min(by_cpu, by_gpu)


def _filled(node: Mapping[str, float], cpus: float, *, slots: int, reading: float, taken: int) -> int | None:
    """Workers from which on a node has less than `reading` CPUs left; None if it never comes to that."""
    spare = max(0, _grains(node.get("CPU", 0.0)) - taken) - _grains(reading)
    count = 0 if spare < 0 else spare // _grains(cpus) + 1
    return count if count <= slots else None


def _grains(amount: float) -> int:
    return round(amount * GRAIN)


def of_trial(cluster: ClusterConfig) -> ClusterConfig:
    """The cluster as one trial has it: as many threads as CPUs are reserved for a worker, because others have the rest."""
    threads = cluster.threads or max(1, math.floor(cluster.cpus_per_worker))
    decoding = cluster.data_threads or max(1, threads - 1 if cluster.gpu is True else threads // 2)
    return cluster.override({"threads": threads, "data_threads": decoding})


def room(cluster: ClusterConfig, nodes: Sequence[Mapping[str, float]], *, reading: float) -> int:
    """`concurrent_trials` of the trials that `cluster` describes. Raises ConfigError where there is no room for one."""
    gpus = cluster.gpus_per_worker if cluster.use_gpu(int(sum(node.get("GPU", 0.0) for node in nodes))) else 0.0
    found = concurrent_trials(nodes, workers=cluster.workers, cpus=cluster.cpus_per_worker, gpus=gpus, reading=reading)
    if not found:
        has = "; ".join(f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs" for node in nodes) or "no nodes"
        raise ConfigError(
            f"cluster.workers = {cluster.workers}: a trial of as many workers, {cluster.cpus_per_worker:g} CPUs and {gpus:g} "
            f"GPUs each, and {reading:g} CPUs to read images do not fit into this cluster ({has}); lower cluster.workers, "
            "cluster.cpus_per_worker or cluster.gpus_per_worker, or add nodes."
        )
    return found
