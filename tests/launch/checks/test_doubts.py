import pytest

from raydino.launch.checks.doubts import doubts
from raydino.launch.checks.machine import Machine
from raydino.launch.checks.numbers import Facts
from raydino.launch.cluster import ClusterConfig
from raydino.methods.config import DINOConfig, DINOv2Config, SupervisedConfig
from raydino.recipe import Recipe

FACTS = Facts(images=10**6, classes=10, dropped=16, read_amplification=1.0, parameters=1000)
GPUS = Machine(cpus=16, gpus=1, memory=64 * 10**9, shared_memory=32 * 10**9, python=(3, 11), ray="2.60.0")


def told(cluster, method=None):
    recipe = Recipe(steps=10_000, method=method or DINOv2Config())
    return [line for line in doubts(recipe, ClusterConfig().override(cluster), FACTS, GPUS) if "cluster." in line]


@pytest.mark.parametrize("setting", [{"parallel": "fsdp"}, {"gradient_reduction": "bf16"}])
def test_doubts__what_does_nothing_on_one_worker(setting):
    [line] = told(setting)
    [field] = setting
    assert f"cluster.{field} = {setting[field]}" in line and "cluster.workers = 1" in line
    assert told({**setting, "workers": 2}) == []


@pytest.mark.parametrize("method", [SupervisedConfig(classes=10), DINOConfig(), DINOv2Config()])
def test_doubts__what_does_nothing_for_a_method(method):
    name = type(method).__name__
    for setting, useful in [
        ({"fixed_shapes": True}, method.views(Recipe().backbone).masks is not None),
        ({"losses": "triton"}, name != "SupervisedConfig"),
    ]:
        lines = told(setting, method)
        assert len(lines) == (not useful)
        assert all(f"cluster.{next(iter(setting))} = " in line and name in line for line in lines)
