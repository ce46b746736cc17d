"""Block masks over patches: which patches of a global crop the student does not see (DINOv2's blockwise sampler).

A lane's masks are a pure function of (seed, step, lane), so they do not change with the number of workers; the exact
share of masked crops and the stratified ratios hold within each lane, hence in every batch. A grid is held as one
Python integer with a bit per patch while blocks are placed: counting the patches that a block would add is one AND
and one bit count, whatever the grid.
"""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from raydino.keyed import generator
from raydino.views import Masks

TRIES = 10  # blocks tried before a mask is left short of its target
LEAST_PATCHES = 4.0
LARGEST_BLOCK = 0.5  # share of the grid
LOG_ASPECT = math.log(1 / 0.3)  # aspect ratio between 0.3 and 1 / 0.3


def block_masks(
    masks: Masks, *, grid: tuple[int, int], seed: int, step: int, lane: int, images: int, views: int
) -> NDArray[np.bool_]:
    """Masks of one lane's images, bool [views, images, rows * columns of `grid`], True where the student does not see the patch.

    Of the `views * images` crops, `floor(probability * views * images)` are masked. Masked crop i of n has a target
    ratio drawn from stratum i of `ratio` cut into n; the masked crops are then spread at random. A mask never exceeds
    its target and may stay a few patches below it. Source: DINOv2 (Oquab et al. 2024), section 4 and its official
    block sampler; iBOT (Zhou et al. 2022), blockwise masking.

    Raises:
        ValueError: grid, images or views is less than 1.
    """
    for name, value in (("grid", min(grid)), ("images", images), ("views", views)):
        if value < 1:
            raise ValueError(f"block_masks: {name} = {value}; it must be at least 1.")
    draw = generator(seed, "masks", step, lane)
    patches, crops = grid[0] * grid[1], views * images
    edges = _strata(masks, crops)
    masked = len(edges) - 1
    targets = (patches * draw.uniform(edges[:-1], edges[1:])).astype(np.int64)
    places = draw.permutation(crops)[:masked]
    uniform = _uniforms(draw)
    packed = np.zeros((crops, (patches + 7) // 8), dtype=np.uint8)
    for place, target in zip(places.tolist(), targets.tolist(), strict=True):
        bits = _blocks(grid, target, uniform)
        packed[place] = np.frombuffer(bits.to_bytes(packed.shape[1], "little"), dtype=np.uint8)
    flat = np.unpackbits(packed, axis=1, count=patches, bitorder="little").astype(np.bool_)
    return flat.reshape(views, images, patches)


def lanes_masks(
    masks: Masks, *, grid: tuple[int, int], seed: int, step: int, lanes: range, images: int, views: int
) -> NDArray[np.bool_]:
    """Masks of a rank's `lanes` with `images` each, bool [views, len(lanes) * images, P], in slot order: lanes take turns."""
    each = [
        block_masks(masks, grid=grid, seed=seed, step=step, lane=lane, images=images, views=views) for lane in lanes
    ]
    return np.stack(each, axis=2).reshape(views, images * len(lanes), -1)


def most_masked(masks: Masks, *, patches: int, lanes: int, images: int, views: int, micro_batch: int) -> int:
    """The most that can be masked of a rank's `lanes_masks`, crops of `patches` patches, in any of its micro-batches.

    No masked crop has more patches masked than the upper edge of its stratum. Which of a lane's crops are masked and which
    have the upper strata is chance: of a lane that several micro-batches share, each may get the crops with the most.
    """
    upper = (patches * _strata(masks, views * images)[1:]).astype(np.int64)
    most = np.concatenate([[0], np.cumsum(upper[::-1])])  # in so many crops of a lane
    edges = np.arange(0, lanes * images + 1, micro_batch)[:, None]
    of_lane = np.diff((edges - np.arange(lanes) + lanes - 1) // lanes, axis=0)  # images, by micro-batch and lane
    return int(most[np.minimum(views * of_lane, len(upper))].sum(axis=1).max())


def _strata(masks: Masks, crops: int) -> NDArray[np.float64]:
    """Edges of the strata of `ratio`, one stratum for each masked one of `crops` crops."""
    return np.linspace(*masks.ratio, math.floor(crops * masks.probability) + 1)


def _uniforms(draw: np.random.Generator) -> Iterator[float]:
    """Endless U[0, 1), drawn in bulk: one call of NumPy per number would take longer than all the rest."""
    while True:
        yield from draw.random(1024).tolist()


def _blocks(grid: tuple[int, int], target: int, uniform: Iterator[float]) -> int:
    """A union of rectangles of at most `target` patches, bit row * columns + column."""
    covered, left = 0, target
    while left:
        for _ in range(TRIES):
            block = _block(grid, left, uniform) & ~covered
            if 0 < block.bit_count() <= left:
                break
        else:
            return covered
        covered |= block
        left -= block.bit_count()
    return covered


def _block(grid: tuple[int, int], left: int, uniform: Iterator[float]) -> int:
    """One random rectangle smaller than the grid, or 0 if the draw does not fit."""
    rows, columns = grid
    most = min(float(left), LARGEST_BLOCK * rows * columns)
    area = LEAST_PATCHES + (most - LEAST_PATCHES) * next(uniform)
    aspect = math.exp(LOG_ASPECT * (2 * next(uniform) - 1))
    height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if not (0 < height < rows and 0 < width < columns):
        return 0
    top, start = int(next(uniform) * (rows - height + 1)), int(next(uniform) * (columns - width + 1))
    row = ((1 << width) - 1) << start
    column = ((1 << (columns * height)) - 1) // ((1 << columns) - 1)  # a 1 at the start of each of `height` rows
    return (row * column) << (top * columns)
