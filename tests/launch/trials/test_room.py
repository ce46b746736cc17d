"""The number of trials at once against every way in which Ray could place them."""

import itertools
from collections.abc import Mapping, Sequence

import pytest

from raydino.config import ConfigError
from raydino.launch.cluster import ClusterConfig
from raydino.launch.trials.room import DRIVER_CPUS, concurrent_trials, of_trial, room

Node = Mapping[str, float]


def _placements(nodes: Sequence[Node], workers: int, cpus: float, gpus: float) -> list[tuple[int, ...]]:
    """Every number of workers on every node that Ray could end with, by what a node holds."""
    most = []
    for node in nodes:
        by_cpu = int(node["CPU"] / cpus + 1e-9)
        by_gpu = workers if not gpus else int(node["GPU"]) * int(1 / gpus + 1e-9)
        most.append(min(by_cpu, by_gpu, workers))
    return [found for found in itertools.product(*(range(m + 1) for m in most)) if sum(found) == workers]


def _starves(nodes: Sequence[Node], placement: Sequence[int], cpus: float, reading: float, drivers: float) -> bool:
    """Whether no node has room to read, the drivers being where they hurt most: on every node at once."""
    return all(
        node["CPU"] - count * cpus - drivers < reading - 1e-9 for node, count in zip(nodes, placement, strict=True)
    )


CLUSTERS = [
    [{"CPU": float(cpus), "GPU": float(gpus)} for cpus, gpus in sizes]
    for length in (1, 2, 3)
    for sizes in itertools.combinations_with_replacement([(1, 0), (2, 1), (3, 0), (4, 2)], length)
]


@pytest.mark.parametrize("reading", [0.25, 1.0])
@pytest.mark.parametrize("cpus", [0.3, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("gpus", [0.0, 0.25, 0.4, 1.0])
def test_trials_of_one_worker__are_as_many_as_never_starve_reading(cpus: float, gpus: float, reading: float):
    """The largest number for which no placement leaves every node without room to read, found by trying all of them."""
    for nodes in CLUSTERS:
        right = 0
        for count in range(1, 40):
            placements = _placements(nodes, count, cpus, gpus)
            if not placements:
                break
            if any(_starves(nodes, each, cpus, reading, 0.0) for each in placements):
                break
            right = count
        assert concurrent_trials(nodes, workers=1, cpus=cpus, gpus=gpus, reading=reading) == right, nodes


@pytest.mark.parametrize("workers", [2, 3])
def test_trials_of_several_workers__always_find_room_beside_their_drivers(workers: int):
    for nodes in CLUSTERS:
        found = concurrent_trials(nodes, workers=workers, cpus=0.9, gpus=0.0, reading=0.05)
        drivers = found * DRIVER_CPUS
        left = [{**node, "CPU": node["CPU"] - drivers} for node in nodes]
        if not found:
            continue
        placements = _placements(left, found * workers, 0.9, 0.0)
        assert placements, nodes
        assert not any(_starves(nodes, each, 0.9, 0.05, drivers) for each in placements), nodes


def test_trials_of_several_workers__their_drivers_count():
    """Two workers of a CPU each fill a machine of two: not even a hundredth is left for their driver, which waited for ever."""
    exact = [{"CPU": 2.0, "GPU": 0.0}, {"CPU": 1.0, "GPU": 0.0}]
    assert concurrent_trials(exact, workers=3, cpus=1.0, gpus=0.0, reading=0.25) == 0
    assert concurrent_trials([{"CPU": 2.5, "GPU": 0.0}], workers=2, cpus=1.0, gpus=0.0, reading=0.25) == 1


def test_room__says_what_a_trial_needs_where_there_is_none():
    with pytest.raises(ConfigError, match=r"cluster.workers = 4.*do not fit into this cluster \(2 CPUs, 0 GPUs\)"):
        room(ClusterConfig(workers=4), [{"CPU": 2.0}], reading=0.25)
    assert room(ClusterConfig(gpus_per_worker=0.25), [{"CPU": 16.0, "GPU": 1.0}], reading=0.25) == 4


def test_of_trial__has_the_threads_of_its_share():
    assert of_trial(ClusterConfig(cpus_per_worker=4.0)).threads == 4
    assert of_trial(ClusterConfig(cpus_per_worker=0.5)).threads == 1
    assert of_trial(ClusterConfig(threads=3)).threads == 3


def test_cluster__a_shared_gpu_has_one_worker_of_a_run():
    with pytest.raises(ValueError, match="gpus_per_worker = 0.5 with workers = 2"):
        ClusterConfig(workers=2, gpus_per_worker=0.5)
