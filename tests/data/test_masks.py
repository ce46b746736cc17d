"""Block masks, against their exact counts and a plain version that works on a boolean grid."""

import math

import numpy as np
import pytest

from raydino.data.masks import block_masks, lanes_masks, most_masked
from raydino.views import Masks


def slow_mask(rng, grid, target):
    """One block mask on a boolean grid, drawn number by number."""
    mask = np.zeros((grid, grid), dtype=bool)
    for _ in range(target):
        added = 0
        for _ in range(10):
            left = target - int(mask.sum())
            area = 4 + rng.random() * (min(left, grid * grid / 2) - 4)
            aspect = 0.3 * (1 / 0.3 / 0.3) ** rng.random()
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if height >= grid or width >= grid:
                continue
            top, start = rng.integers(0, grid - height + 1), rng.integers(0, grid - width + 1)
            block = np.zeros_like(mask)
            block[top : top + height, start : start + width] = True
            added = int((block & ~mask).sum())
            if 0 < added <= left:
                mask |= block
                break
            added = 0
        if not added:
            break
    return mask


def draw(step=0, *, masks=Masks(), grid=16, images=64, views=2, seed=0, lane=0):
    return block_masks(masks, grid=(grid, grid), seed=seed, step=step, lane=lane, images=images, views=views)


@pytest.mark.parametrize("grid", [1, 2, 4, 8, 14, 16])
@pytest.mark.parametrize(("images", "views"), [(1, 1), (1, 2), (3, 1), (5, 2), (16, 2)])
def test_block_masks__exact_share_of_crops_and_never_above_target(grid, images, views):
    for step in range(10):
        masks = draw(step, grid=grid, images=images, views=views)
        assert masks.shape == (views, images, grid * grid) and masks.dtype == np.bool_
        masked = images * views // 2
        shares = np.sort(masks.mean(-1).reshape(-1))[::-1]
        assert (shares[masked:] == 0).all()
        if grid >= 8:  # smaller grids can have targets of no patch
            assert (shares[:masked] > 0).all()
        upper = np.linspace(0.1, 0.5, masked + 1)[1:][::-1] if masked else np.zeros(0)
        assert (shares[:masked] <= upper + 1e-9).all()  # sorted masks against sorted strata


def test_block_masks__mean_ratio_as_published():
    shares = np.concatenate([draw(step).mean(-1).reshape(-1) for step in range(60)])
    assert shares[shares > 0].mean() == pytest.approx(0.298, abs=0.004)


def test_block_masks__same_statistics_as_slow_version():
    """Size, place and fragmentation of 1000 masks with a target of exactly 77 patches, within 5 standard errors."""
    fixed = Masks(probability=1.0, ratio=(77.5 / 256, 77.5 / 256))
    fast = np.concatenate([draw(step, masks=fixed, images=100, views=1)[0] for step in range(10)]).reshape(-1, 16, 16)
    rng = np.random.default_rng(1)
    slow = np.stack([slow_mask(rng, 16, 77) for _ in range(1000)])

    def edges(masks):
        return (masks[:, 1:] != masks[:, :-1]).sum((1, 2)) + (masks[:, :, 1:] != masks[:, :, :-1]).sum((1, 2))

    def centre(masks):
        return masks[:, 4:12, 4:12].sum((1, 2))

    for measure in (edges, centre, lambda masks: masks.sum((1, 2))):
        a, b = measure(fast).astype(float), measure(slow).astype(float)
        assert abs(a.mean() - b.mean()) <= 5 * math.sqrt(a.var() / len(a) + b.var() / len(b)) + 1e-9
    assert (fast.sum((1, 2)) == 77).mean() > 0.85


def test_block_masks__views_of_an_image_are_independent():
    masked = np.concatenate([draw(step, images=32).any(-1) for step in range(100)], axis=1)
    both = (masked[0] & masked[1]).mean()
    assert both == pytest.approx(0.25, abs=5 * math.sqrt(0.25 * 0.75 / masked.shape[1]))


def test_block_masks__pure_function_of_seed_step_and_lane():
    first = draw(3, seed=1, lane=2)
    draw(4, seed=9, lane=5)
    assert (draw(3, seed=1, lane=2) == first).all()
    for other in (draw(4, seed=1, lane=2), draw(3, seed=2, lane=2), draw(3, seed=1, lane=3)):
        assert (other != first).any()


def test_block_masks__none_masked():
    assert not draw(masks=Masks(probability=0.0)).any()


def test_block_masks__bad_sizes():
    with pytest.raises(ValueError, match="grid = 0"):
        draw(grid=0)


def slow_most(masks, patches, lanes, images, views, micro_batch):
    """Image by image: every lane gives a micro-batch the largest of its strata for as many crops as it has there."""
    crops = views * images
    masked = math.floor(crops * masks.probability)
    low, high = masks.ratio
    most = 0
    for start in range(0, lanes * images, micro_batch):
        of_lane = [slot % lanes for slot in range(start, start + micro_batch)]
        total = 0
        for lane in range(lanes):
            strata = range(masked - min(masked, views * of_lane.count(lane)), masked)
            total += sum(math.floor(patches * (low + (high - low) * (i + 1) / masked)) for i in strata)
        most = max(most, total)
    return most


@pytest.mark.parametrize(
    ("lanes", "images", "micro_batch"),
    [(1, 64, 64), (4, 8, 32), (4, 8, 16), (4, 8, 8), (4, 8, 2), (3, 4, 6), (3, 4, 4), (8, 1, 4), (2, 6, 3)],
)
@pytest.mark.parametrize("masks", [Masks(), Masks(probability=0.3, ratio=(0.2, 0.7)), Masks(probability=0.0)])
def test_most_masked__is_the_slow_count_and_holds_for_every_micro_batch(lanes, images, micro_batch, masks):
    most = most_masked(masks, patches=196, lanes=lanes, images=images, views=2, micro_batch=micro_batch)
    assert most == slow_most(masks, 196, lanes, images, 2, micro_batch)
    counts = []
    for step in range(8):
        drawn = lanes_masks(masks, grid=(14, 14), seed=0, step=step, lanes=range(lanes), images=images, views=2)
        counts += [drawn[:, i : i + micro_batch].sum() for i in range(0, lanes * images, micro_batch)]
    assert max(counts) <= most
    if micro_batch == lanes * images and masks.probability:  # no chance in who has which stratum
        assert min(counts) > 0.7 * most


def test_lanes_masks__lanes_take_turns():
    drawn = lanes_masks(Masks(), grid=(4, 4), seed=7, step=3, lanes=range(1, 6, 2), images=4, views=2)
    for column, lane in enumerate((1, 3, 5)):
        assert (drawn[:, column::3] == draw(3, grid=4, images=4, seed=7, lane=lane)).all()


@pytest.mark.parametrize("grid", [(2, 8), (14, 7), (1, 5)])
def test_block_masks__on_a_grid_that_is_not_square(grid):
    made = np.concatenate(
        [
            block_masks(Masks(), grid=grid, seed=0, step=step, lane=0, images=16, views=2).reshape(32, *grid)
            for step in range(40)
        ]
    )
    covered = made.mean(axis=(1, 2))
    assert made.any(axis=(1, 2)).sum() <= 16 * 40 and covered.max() <= 0.5
    if min(grid) == 1:  # a block must be smaller than the grid both ways, so there is none; recipes refuse such grids
        assert not made.any()
        return
    assert made.any(axis=0).all()  # every place is hidden sometimes
    assert covered[covered > 0].mean() > 0.15
