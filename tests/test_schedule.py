import numpy as np
import pytest

from raydino.config import ConfigError
from raydino.schedule import Schedule, constant, cosine


def published(base, final, epochs, per_epoch, warmup_epochs=0, start=0.0):
    """The schedule as an array over all steps, the way the DINO paper's code lays it out."""
    warmup_steps = warmup_epochs * per_epoch
    ramp = np.linspace(start, base, warmup_steps) if warmup_steps else np.array([])
    rest = np.arange(epochs * per_epoch - warmup_steps)
    wave = final + 0.5 * (base - final) * (1 + np.cos(np.pi * rest / len(rest)))
    return np.concatenate([ramp, wave])


@pytest.mark.parametrize(("warmup", "start"), [(0, 0.0), (2, 0.0), (3, 0.04)])
def test_at__cosine_is_the_published_array(warmup, start):
    schedule = cosine(0.5, 0.01, warmup=warmup * 7, warmup_from=start)
    got = [schedule.at(step, steps=70) for step in range(70)]
    np.testing.assert_allclose(got, published(0.5, 0.01, 10, 7, warmup, start), rtol=1e-12)


def test_at__share_and_steps_agree():
    by_share, by_steps = cosine(1.0, 0.0, warmup=0.25), cosine(1.0, 0.0, warmup=50)
    assert [by_share.at(s, steps=200) for s in range(200)] == [by_steps.at(s, steps=200) for s in range(200)]


def test_at__constant_after_warmup():
    schedule = constant(0.07, warmup=0.3, warmup_from=0.04)
    values = [schedule.at(s, steps=100) for s in range(100)]
    np.testing.assert_allclose(values[:30], np.linspace(0.04, 0.07, 30), rtol=1e-12)
    assert set(values[30:]) == {0.07}


def test_at__linear_then_held():
    schedule = Schedule(start=1.0, end=0.0, shape="linear", length=10)
    np.testing.assert_allclose(
        [schedule.at(s, steps=20) for s in range(20)], np.r_[1 - np.arange(10) / 10, np.zeros(10)]
    )


@pytest.mark.parametrize(("warmup", "length"), [(0, 0), (1, 1), (1, 1.0), (5, 5), (8, 5), (0.5, 0.25)])
def test_at__is_finite_at_every_edge(warmup, length):
    schedule = Schedule(start=2.0, end=1.0, warmup=warmup, length=length)
    assert all(0.0 <= schedule.at(s, steps=10) <= 2.0 for s in range(12))


def test_at__one_step_run_and_beyond_the_end():
    assert cosine(2.0, 1.0).at(0, steps=1) == 2.0
    assert cosine(2.0, 1.0).at(10**9, steps=100) == 1.0


def test_schedule__constant_with_two_values_is_refused():
    with pytest.raises(ConfigError, match="constant schedule"):
        constant(0.1).override({"end": 0.2})
