"""The collapse alarm: silent on healthy diagnostics and at the start, loud on every kind of collapse."""

import math

import pytest
import torch
from torch import nn

from raydino.methods.method import teacher_diagnostics
from raydino.tracking.run import COLLAPSED
from raydino.train.health import CollapseAlarm, teacher_distance

K, IMAGES = 32, 16


def _diagnostics(targets: torch.Tensor, features: torch.Tensor) -> dict[str, torch.Tensor]:
    return teacher_diagnostics(
        teacher_probs=targets.expand(2, IMAGES, K),
        features=features.expand(2, IMAGES, 8),
        cross_entropy=torch.tensor(1.0),
    )


SPREAD = torch.randn(2, IMAGES, 8, generator=torch.Generator().manual_seed(0))
HEALTHY = _diagnostics(torch.eye(K)[:IMAGES] * 0.9 + 0.1 / K, SPREAD)
ONE_PROTOTYPE = _diagnostics(torch.eye(K)[:1], SPREAD)
UNIFORM = _diagnostics(torch.full((1, K), 1 / K), SPREAD)
SAME_FEATURES = _diagnostics(torch.eye(K)[:IMAGES], torch.ones(8))


def _verdicts(*spans: tuple[dict, int], warmup: int = 0, views: int = 2 * IMAGES) -> list[float | None]:
    alarm, out, step = CollapseAlarm(warmup=warmup, views=views), [], 0
    for metrics, steps in spans:
        for _ in range(steps):
            alarm.add(metrics, step)
            out.append(alarm.verdict().get(COLLAPSED))
            step += 1
    return out


@pytest.mark.parametrize(
    "collapsed", [ONE_PROTOTYPE, UNIFORM, SAME_FEATURES], ids=["one prototype", "uniform", "features"]
)
def test_collapse_alarm__rings_within_fifty_steps_of_a_collapse(collapsed: dict):
    verdicts = _verdicts((HEALTHY, 100), (collapsed, 50))
    assert verdicts[99] == 0.0
    assert verdicts[-1] == 1.0
    assert _verdicts((collapsed, 50))[-1] == 1.0  # from the start


def test_collapse_alarm__two_prototypes_for_all_images_are_a_collapse_unless_there_are_few_images():
    two = _diagnostics(torch.eye(K)[torch.arange(IMAGES) % 2], SPREAD)
    assert two["teacher/prototypes_used"].item() == pytest.approx(2.0)
    assert _verdicts((two, 50))[-1] == 1.0
    assert _verdicts((two, 50), views=8)[-1] == 0.0


def test_collapse_alarm__is_silent_for_healthy_steps_and_single_odd_ones():
    assert 1.0 not in _verdicts((HEALTHY, 60), (UNIFORM, 19), (HEALTHY, 1), (UNIFORM, 19))


def test_collapse_alarm__judges_nothing_during_the_warm_up():
    assert set(_verdicts((UNIFORM, 119), warmup=100)) == {None}
    assert _verdicts((UNIFORM, 120), warmup=100)[-1] == 1.0


def test_collapse_alarm__has_nothing_to_say_of_methods_without_targets():
    assert set(_verdicts(({"train/accuracy": 0.5}, 80))) == {None}


def test_prototypes_used__is_the_number_of_prototypes_that_share_the_images_evenly():
    hard = torch.eye(K)[torch.arange(IMAGES) % 4]
    assert _diagnostics(hard, SPREAD)["teacher/prototypes_used"].item() == pytest.approx(4.0)
    assert UNIFORM["teacher/prototypes_used"].item() == pytest.approx(K)


def test_teacher_distance__is_the_relative_norm_over_all_parameters():
    student, teacher = nn.Linear(3, 2), nn.Linear(3, 2)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.fill_(3.0)
        for parameter in teacher.parameters():
            parameter.fill_(2.0)
    # 8 entries that differ by 1, against 8 entries of 2
    assert teacher_distance(student=student, teacher=teacher).item() == pytest.approx(math.sqrt(8) / math.sqrt(8 * 4))
