"""Means and rates with a clock that is moved by hand."""

import math

import pytest
import torch

from raydino.tracking.meters import Meter, Rate
from raydino.tracking.run import DATA_WAIT, IMAGES_PER_S, READ_WAIT, STEP_SECONDS


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_meter__means_of_what_was_there_and_starts_again() -> None:
    meter = Meter()
    meter.add({"a": 1.0, "b": torch.tensor(2.0)})
    meter.add({"a": torch.tensor([4.0])})
    assert meter.take() == {"a": 2.5, "b": 2.0}
    assert meter.take() == {}


def test_meter__keeps_no_graph_and_does_not_change_what_it_was_given() -> None:
    meter, value = Meter(), torch.tensor(1.0, requires_grad=True)
    shown = value * 2
    meter.add({"a": shown})
    meter.add({"a": shown})
    assert not meter._sums["a"].requires_grad and shown.item() == 2.0
    shared = torch.tensor(3.0)
    meter.add({"b": shared})
    shared += 10
    assert meter.take() == {"a": 2.0, "b": 3.0}


def test_meter__nan_stays_nan_and_shapes_are_refused() -> None:
    meter = Meter()
    meter.add({"a": math.nan})
    meter.add({"a": 1.0})
    assert math.isnan(meter.take()["a"])
    with pytest.raises(ValueError, match=r"b: .*\(2,\)"):
        meter.add({"b": torch.zeros(2)})


def test_rate__window_totals_and_eta() -> None:
    clock = Clock()
    rate = Rate(clock=clock)
    assert rate.take() == {} and rate.eta(steps_left=5) is None and rate.totals() == {}
    for _ in range(4):
        clock.now += 0.5
        rate.step(images=64, waited=0.1)
    assert rate.take() == pytest.approx({IMAGES_PER_S: 128.0, DATA_WAIT: 0.2, READ_WAIT: 0.0, STEP_SECONDS: 0.5})
    clock.now += 2.0
    rate.step(images=64, waited=2.0)
    assert rate.take() == pytest.approx({IMAGES_PER_S: 32.0, DATA_WAIT: 1.0, READ_WAIT: 0.0, STEP_SECONDS: 2.0})
    assert rate.totals() == pytest.approx({IMAGES_PER_S: 80.0, DATA_WAIT: 0.6, STEP_SECONDS: 0.8})
    assert rate.eta(steps_left=10) == pytest.approx(8.0)


def test_rate__pauses_do_not_count_even_when_they_fail() -> None:
    clock = Clock()
    rate = Rate(clock=clock)
    rate.step(images=10, waited=0.0)
    with pytest.raises(RuntimeError), rate.paused():
        clock.now += 1000
        raise RuntimeError
    clock.now += 1
    assert rate.take()[IMAGES_PER_S] == pytest.approx(10.0)


def test_rate__waiting_apart_from_a_step_counts_as_its_share() -> None:
    clock = Clock()
    rate = Rate(clock=clock)
    with rate.waiting():
        clock.now += 3.0
    clock.now += 1.0
    rate.step(images=8, waited=0.0)
    assert rate.take() == pytest.approx({IMAGES_PER_S: 2.0, DATA_WAIT: 0.75, READ_WAIT: 0.0, STEP_SECONDS: 4.0})


def test_rate__waiting_for_images_to_cut_is_told_since_the_last_line() -> None:
    clock, starved = Clock(), 5.0
    rate = Rate(clock=clock, starved=lambda: starved)
    found = []
    for more in (0.0, 1.0):
        clock.now += 4.0
        starved += more
        rate.step(images=8, waited=2.0)
        found.append(rate.take()[READ_WAIT])
    assert found == pytest.approx([1.0, 0.25])  # what came before the first line is in it, up to all of its time
