"""A Ray for trials, with its dashboard as every sweep has it, and recipes of seconds whose order is known beforehand."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from raydino.launch.cluster import ClusterConfig
from raydino.launch.sweep.trials import Trial, sweep_ray
from raydino.recipe import Recipe

DISTANCE = "health/teacher_distance"
"""An objective that is certain: the higher the learning rate, the further the student is from its teacher."""
RATES = (1e-2, 1e-3, 3e-4, 1e-4)


@pytest.fixture(scope="module")
def sweep_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterConfig]:
    """Ray as a sweep starts it, for two trials at once whatever this machine has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
        cluster = ClusterConfig(storage=str(tmp_path_factory.mktemp("sweeps")), threads=1)
        with sweep_ray(cluster):
            yield cluster


@pytest.fixture
def small(tiny: Path, small_images: Path) -> Recipe:
    """12 steps of 16 images, evaluated and saved every fourth."""
    fields = yaml.safe_load(tiny.read_text())
    fields["data"]["path"] = str(small_images)
    return Recipe().override({**fields, "cadence": {"log": 1, "evaluate": 4, "checkpoint": 4, "pictures": False}})


@pytest.fixture
def falling(small: Recipe) -> list[Trial]:
    """Four trials, each worse than the one before."""
    return [
        Trial(f"{number}", small.override({"optim": {"lr": rate, "warmup": 0}}), f"{number}")
        for number, rate in enumerate(RATES)
    ]
