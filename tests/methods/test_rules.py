"""Rules of thumb against the published sizes they are drawn from."""

import pytest

from raydino.methods import rules


def test_prototypes__published_numbers_at_published_sizes():
    assert rules.prototypes(1_281_167) == 65_536  # DINO, DINOv2 short
    assert rules.prototypes(14_200_000) == rules.prototypes(142_000_000) == 131_072  # DINOv2 long


@pytest.mark.parametrize("images", [1, 100, 5_000, 7_777, 50_000, 123_456, 500_000])
def test_prototypes__a_power_of_two_with_eleven_to_twenty_three_images_each(images: int):
    found = rules.prototypes(images)
    assert found & (found - 1) == 0
    assert found == 256 or 16 / 2**0.5 <= images / found <= 16 * 2**0.5


@pytest.mark.parametrize(
    ("steps", "batch", "published"),
    [(250_200, 512, 0.996), (375_300, 1024, 0.996), (125_000, 2048, 0.992), (625_000, 3072, 0.994)],
)
def test_teacher_momentum__remembers_as_many_images_as_published_within_a_factor_of_two(
    steps: int, batch: int, published: float
):
    ours = batch / (1 - rules.teacher_momentum(steps=steps, global_batch=batch))
    assert 0.5 <= ours / (batch / (1 - published)) <= 2.05


def test_teacher_momentum__never_remembers_more_than_a_short_run_can_bear():
    assert rules.teacher_momentum(steps=210, global_batch=64) == 0.98
    assert rules.teacher_momentum(steps=4000, global_batch=64) == 0.995
    assert rules.teacher_momentum(steps=10**6, global_batch=8) == 0.9995


def test_teacher_temperature__is_below_the_cliff_and_warms_up_where_it_rises():
    short, long = rules.teacher_temperature(steps=300), rules.teacher_temperature(steps=100_000)
    assert {short.at(step, steps=300) for step in range(300)} == {0.04}
    assert long.at(0, steps=100_000) == 0.04 and long.at(30_000, steps=100_000) == 0.07
