"""Resuming costs the same at any place of an epoch: what must be read before the first batch does not grow with the position."""

import pytest

from raydino.data.plan import Plan

ROWS = 1_000_000


@pytest.mark.parametrize(("lanes", "world"), [(8, 1), (8, 4), (32, 1)])
def test_windows__rows_read_to_the_first_batch_after_a_resume(lanes: int, world: int):
    plan = Plan([100] * (ROWS // 100), seed=3, global_batch=256, lanes=lanes, window=1024)

    def rows(step: int) -> int:
        first = plan.windows(rank=0, world=world, start_step=step, steps=1)
        return sum(100 * len(plan.window_groups(window)) for window in first)

    epoch = plan.steps_per_epoch
    early = [rows(epoch // 100 + more) for more in range(20)]
    late = [rows(epoch * 99 // 100 - more) for more in range(20)]
    assert sum(late) <= 1.2 * sum(early)
    # A window for each lane, and now and then the next one, at any step.
    most = 2 * (lanes // world) * (1024 + 200)
    assert max(rows(step) for step in range(0, epoch, 37)) <= most
