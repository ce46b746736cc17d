"""The order, against a slow list-based version of it and the properties that the rest of the platform relies on."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raydino.data.plan import Plan, PlanError
from raydino.data.turns import Turns
from raydino.keyed import generator


def reference_order(row_groups, keep, *, seed, global_batch, lanes, window, epoch):
    """The batches of an epoch with plain lists: permute groups, cut lanes, cut windows of whole pieces, shuffle, deal."""
    starts = [sum(row_groups[:number]) for number in range(len(row_groups))]
    line = []  # (group, row) of kept rows in the epoch's group order
    for group in generator(seed, "groups", epoch).permutation(len(row_groups)).tolist():
        line += [(group, row) for row in range(starts[group], starts[group] + row_groups[group]) if keep[row]]
    steps, share = len(line) // global_batch, global_batch // lanes
    dealt = []
    for lane in range(lanes):
        stretch = line[lane * steps * share : (lane + 1) * steps * share]
        windows, current = [], []
        for number, (group, row) in enumerate(stretch):
            current.append(row)
            last_of_piece = number + 1 == len(stretch) or stretch[number + 1][0] != group
            if last_of_piece and (len(current) >= window or number + 1 == len(stretch)):
                windows.append(current)
                current = []
        rows = []
        for index, inside in enumerate(windows):
            shuffle = generator(seed, "rows", epoch, lane, index).permutation(len(inside))
            rows += [inside[place] for place in shuffle.tolist()]
        dealt.append(rows)
    return [
        [dealt[slot % lanes][step * share + slot // lanes] for slot in range(global_batch)] for step in range(steps)
    ]


@st.composite
def cases(draw):
    row_groups = draw(st.lists(st.integers(0, 12), min_size=1, max_size=25))
    lanes = draw(st.sampled_from([1, 2, 4, 8]))
    seed = draw(st.integers(0, 1000))
    keep = np.random.default_rng(seed).random(sum(row_groups)) < draw(st.sampled_from([0.3, 0.8, 1.1]))
    return row_groups, keep, seed, lanes * draw(st.integers(1, 3)), lanes, draw(st.integers(1, 20))


def plan_of(case):
    row_groups, keep, seed, global_batch, lanes, window = case
    return Plan(row_groups, seed=seed, global_batch=global_batch, lanes=lanes, window=window, keep=keep)


@settings(max_examples=150, deadline=None)
@given(cases())
def test_slots__equal_slow_version(case):
    row_groups, keep, seed, global_batch, lanes, window = case
    if keep.sum() < global_batch:
        with pytest.raises(PlanError, match=f"{int(keep.sum())} rows are kept"):
            plan_of(case)
        return
    plan = plan_of(case)
    for epoch in range(3):
        expected = reference_order(
            row_groups, keep, seed=seed, global_batch=global_batch, lanes=lanes, window=window, epoch=epoch
        )
        assert len(expected) == plan.steps_per_epoch
        for step, rows in enumerate(expected):
            assert plan.slots(epoch * plan.steps_per_epoch + step).tolist() == rows


@settings(max_examples=100, deadline=None)
@given(cases())
def test_slots__every_kept_row_once_per_epoch_but_the_counted_tail(case):
    keep, global_batch = case[1], case[3]
    if keep.sum() < global_batch:
        return
    plan = plan_of(case)
    for epoch in (0, 5):
        first = epoch * plan.steps_per_epoch
        seen = np.concatenate([plan.slots(step) for step in range(first, first + plan.steps_per_epoch)])
        assert len(np.unique(seen)) == len(seen) == keep.sum() - plan.dropped_per_epoch
        assert keep[seen].all()
        assert plan.dropped_per_epoch == keep.sum() % global_batch


@settings(max_examples=80, deadline=None)
@given(cases(), st.integers(0, 12), st.integers(1, 12))
def test_windows__give_the_slots_from_any_step_for_any_world(case, start, steps):
    """Walking each rank's windows as a stream does, in their order, deals exactly the rows of `slots`."""
    if case[1].sum() < case[3]:
        return
    plan, lanes = plan_of(case), case[4]
    for world in [n for n in (1, 2, 4, 8) if lanes % n == 0]:
        for rank in range(world):
            lines: dict[int, list[int]] = {}
            needs = []
            for window in plan.windows(rank=rank, world=world, start_step=start, steps=steps):
                rows = plan.window_rows(window).tolist()
                assert len(rows) == window.rows
                skipped = max(0, start * plan.per_lane - window.begin)
                lines.setdefault(window.lane, []).extend(rows[skipped:])
                needs.append((max(start, window.begin // plan.per_lane), window.lane))
            assert needs == sorted(needs)
            owned = range(rank, lanes, world)
            assert sorted(lines) == list(owned)
            for number in range(steps):
                share = slice(number * plan.per_lane, (number + 1) * plan.per_lane)
                turns = zip(*[lines[lane][share] for lane in owned], strict=True)
                dealt = [row for turn in turns for row in turn]
                assert dealt == plan.slots(start + number)[rank::world].tolist()
                assert dealt == plan.rank_slots(start + number, rank=rank, world=world).tolist()


@settings(max_examples=60, deadline=None)
@given(cases())
def test_window_order__points_at_the_same_rows_in_the_groups_read(case):
    row_groups = case[0]
    if case[1].sum() < case[3]:
        return
    plan = plan_of(case)
    starts = np.concatenate([[0], np.cumsum(row_groups)])
    for window in plan.windows(rank=0, world=1, start_step=0, steps=plan.steps_per_epoch):
        read = np.concatenate([np.arange(starts[group], starts[group + 1]) for group in plan.window_groups(window)])
        assert read[plan.window_order(window)].tolist() == plan.window_rows(window).tolist()


def test_slots__epochs_and_seeds_differ():
    plan = Plan([16] * 20, seed=0, global_batch=32, lanes=4, window=64)
    other = Plan([16] * 20, seed=1, global_batch=32, lanes=4, window=64)
    orders = [plan.slots(0), plan.slots(plan.steps_per_epoch), other.slots(0)]
    assert all((a != b).any() for number, a in enumerate(orders) for b in orders[:number])


def test_read_amplification__counts_the_groups_of_all_windows():
    rng = np.random.default_rng(0)
    row_groups = rng.integers(1, 80, size=60)
    plan = Plan(row_groups, seed=3, global_batch=32, lanes=8, window=128, keep=rng.random(row_groups.sum()) < 0.9)
    windows = list(plan.windows(rank=0, world=1, start_step=0, steps=plan.steps_per_epoch))
    read = sum(int(row_groups[plan.window_groups(window)].sum()) for window in windows)
    assert plan.read_amplification(0) == pytest.approx(read / (plan.steps_per_epoch * 32))


def test_read_amplification__small_at_sensible_sizes():
    plan = Plan([64] * 78 + [8], seed=0, global_batch=64, lanes=8, window=1024)
    assert all(0.97 < plan.read_amplification(epoch) <= 1.1 for epoch in range(10))


def test_plan__shuffles_within_windows_of_at_least_the_size_asked_for():
    plan = Plan([64] * 100, seed=0, global_batch=64, lanes=4, window=300)
    windows = list(plan.windows(rank=0, world=1, start_step=0, steps=plan.steps_per_epoch))
    last = {lane: max(w.index for w in windows if w.lane == lane) for lane in range(4)}
    assert all(300 <= window.rows < 300 + 64 for window in windows if window.index < last[window.lane])


def test_plan__millions_of_groups_start_in_the_middle():
    plan = Plan(np.full(2_000_000, 64), seed=0, global_batch=1024, lanes=8, window=1024)
    middle = plan.slots(60_000)
    assert len(np.unique(middle)) == 1024
    assert sum(1 for _ in plan.windows(rank=0, world=8, start_step=60_000, steps=2)) <= 2


def test_plan__survives_pickling():
    plan = Plan([10] * 10, seed=0, global_batch=8, lanes=2, window=20, keep=np.arange(100) % 3 > 0)
    assert (pickle.loads(pickle.dumps(plan)).slots(3) == plan.slots(3)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"global_batch": 128}, "100 rows are kept of 100, fewer than global_batch = 128; lower global_batch to 100"),
        ({"global_batch": 10}, "global_batch = 10 is not a multiple of lanes = 4"),
        ({"lanes": 0}, "lanes = 0"),
        ({"window": 0}, "window = 0"),
        ({"row_groups": [10, -1]}, "group 1 has a negative"),
        ({"keep": np.ones(99, dtype=bool)}, r"keep is bool \[99\] for 100 rows"),
        ({"keep": np.ones(100, dtype=int)}, "keep is int64"),
    ],
)
def test_plan__bad_settings_name_value_and_remedy(change, message):
    settings = {"row_groups": [10] * 10, "seed": 0, "global_batch": 8, "lanes": 4, "window": 20, **change}
    with pytest.raises(PlanError, match=message):
        Plan(settings.pop("row_groups"), **settings)


def test_rank_slots__bad_world_lists_the_allowed_ones():
    plan = Plan([10] * 10, seed=0, global_batch=12, lanes=12, window=20)
    with pytest.raises(PlanError, match=r"5 workers cannot share lanes = 12 evenly; use one of 1, 2, 3, 4, 6, 12"):
        plan.rank_slots(0, rank=0, world=5)
    with pytest.raises(PlanError, match="rank = 2 of 2"):
        plan.rank_slots(0, rank=2, world=2)
    with pytest.raises(PlanError, match="step = -1"):
        plan.slots(-1)


def weights_of(case):
    return 1 - np.random.default_rng(case[2]).random(sum(case[0]), dtype=np.float32) ** 3


def weighed(case):
    """The plan with weights, or None where that is refused, and for an epoch the rows whose turn it is."""
    row_groups, keep, seed, global_batch, lanes, window = case
    turns = Turns(np.asarray(row_groups), seed=seed, keep=keep, weights=weights_of(case))
    settings = {"seed": seed, "global_batch": global_batch, "lanes": lanes, "window": window}
    if turns.per_epoch < global_batch:
        with pytest.raises(PlanError, match=f"with {turns.per_epoch} in an epoch, fewer than global_batch"):
            Plan(row_groups, **settings, keep=keep, weights=weights_of(case))
        return None, turns
    return Plan(row_groups, **settings, keep=keep, weights=weights_of(case)), turns


@settings(max_examples=80, deadline=None)
@given(cases())
def test_slots__with_weights_equal_slow_version_over_the_rows_whose_turn_it_is(case):
    row_groups, _, seed, global_batch, lanes, window = case
    plan, turns = weighed(case)
    for epoch in range(3 if plan else 0):
        mask = np.zeros(plan.rows, dtype=bool)
        for group in range(len(row_groups)):
            mask[turns.starts[group] + turns.inside(epoch, group)] = True
        expected = reference_order(
            row_groups, mask, seed=seed, global_batch=global_batch, lanes=lanes, window=window, epoch=epoch
        )
        assert len(expected) == plan.steps_per_epoch
        assert plan.dropped_per_epoch == mask.sum() - len(expected) * global_batch
        for step, rows in enumerate(expected):
            assert plan.slots(epoch * plan.steps_per_epoch + step).tolist() == rows


@settings(max_examples=50, deadline=None)
@given(cases(), st.integers(0, 12), st.integers(1, 12))
def test_windows__with_weights_give_the_slots_from_any_step_for_any_world(case, start, steps):
    plan, _ = weighed(case)
    if plan is None:
        return
    for world in [n for n in (1, 2, 4, 8) if case[4] % n == 0]:
        for rank in range(world):
            lines: dict[int, list[int]] = {}
            for window in plan.windows(rank=rank, world=world, start_step=start, steps=steps):
                read = [np.arange(*plan._turns.starts[[group, group + 1]]) for group in plan.window_groups(window)]
                assert np.concatenate(read)[plan.window_order(window)].tolist() == plan.window_rows(window).tolist()
                skipped = max(0, start * plan.per_lane - window.begin)
                lines.setdefault(window.lane, []).extend(plan.window_rows(window).tolist()[skipped:])
            for number in range(steps):
                share = slice(number * plan.per_lane, (number + 1) * plan.per_lane)
                turns = zip(*[lines[lane][share] for lane in sorted(lines)], strict=True)
                assert [row for turn in turns for row in turn] == plan.slots(start + number)[rank::world].tolist()


def test_slots__with_weights_each_row_is_seen_as_often_as_its_weight_says():
    weights = np.repeat([1.0, 0.5, 0.125], [40, 80, 160])  # 100 rows an epoch: five steps, nothing left over
    plan = Plan([14] * 20, seed=0, global_batch=20, lanes=4, window=30, weights=weights)
    epochs = 144
    seen = np.zeros(280)
    for epoch in range(epochs):
        rows = np.concatenate([plan.slots(epoch * 5 + step) for step in range(5)])
        assert len(np.unique(rows)) == 100
        seen[rows] += 1
    assert np.abs(seen - epochs * weights).max() < 3


def test_plan__weights_of_one_leave_the_order_as_it_is():
    settings = {"seed": 4, "global_batch": 8, "lanes": 2, "window": 20, "keep": np.arange(100) % 3 > 0}
    plain, ones = Plan([10] * 10, **settings), Plan([10] * 10, **settings, weights=np.ones(100))
    assert all((plain.slots(step) == ones.slots(step)).all() for step in range(20))
    again = pickle.loads(pickle.dumps(Plan([10] * 10, **settings, weights=np.full(100, 0.5))))
    assert again.rows_per_epoch == 33 and len(again.slots(7)) == 8
