import numpy as np
import pytest

from raydino.data.plan import Plan
from raydino.launch.checks.facts import store_bytes
from raydino.views import Crops, Views

VIEWS = Views(
    crops={
        "global": Crops(count=2, size=24, scale=(0.3, 1)),
        "local": Crops(count=3, size=8, scale=(0.05, 0.3)),
    },
    patch_size=8,
)
IMAGE = 2 * 3 * 24 * 24 + 3 * 3 * 8 * 8


@pytest.mark.parametrize("world", [1, 2, 4])
def test_store_bytes__holds_the_largest_windows_of_all_lanes_and_those_under_way(world):
    groups = np.random.default_rng(0).integers(1, 40, size=200)
    plan = Plan(groups, seed=0, global_batch=16, lanes=4, window=100)
    windows = list(plan.windows(rank=0, world=1, start_step=0, steps=plan.steps_per_epoch))
    lanes = [max(window.rows for window in windows if window.lane == lane) for lane in range(4)]
    least = (sum(lanes) + world * 3 * max(lanes)) * IMAGE
    assert least <= store_bytes(plan, VIEWS, world=world) <= 1.4 * least


def test_store_bytes__of_a_small_collection_is_not_more_than_its_epoch_needs():
    plan = Plan([64] * 4, seed=0, global_batch=16, lanes=4, window=10_000)
    assert store_bytes(plan, VIEWS, world=1) == 64 * IMAGE * (4 + 3)
