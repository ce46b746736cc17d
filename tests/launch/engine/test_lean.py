"""Which helpers of Ray Train are left out, by the names that the pinned Ray gives them."""

import pytest
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer

from raydino.launch.engine.lean import UNUSED, UNUSED_LOCALLY, LeanTorchTrainer


def names(trainer: TorchTrainer) -> list[str]:
    return [type(each).__name__ for each in trainer._create_default_callbacks()]


@pytest.mark.parametrize(("local", "missing"), [(True, {*UNUSED, *UNUSED_LOCALLY}), (False, {*UNUSED})])
def test_lean_torch_trainer__all_of_rays_helpers_but_those_named(local: bool, missing: set[str]):
    scaling = ScalingConfig(num_workers=1)
    whole = names(TorchTrainer(lambda: None, scaling_config=scaling))
    assert missing <= set(whole)  # else Ray has renamed them, and nothing is left out
    lean = names(LeanTorchTrainer(lambda: None, scaling_config=scaling, local=local))
    assert lean == [name for name in whole if name not in missing]
