"""Mask propagation against loops, its scores against their definitions, and a square that moves."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from raydino.evals.config import VideoConfig
from raydino.evals.video import Video, contour, edges, hardened, jaccard, propagate, within


def test_propagate__equals_loops() -> None:
    torch.manual_seed(0)
    h, w, sources, labels = 3, 4, torch.randn(2, 12, 5), torch.rand(2, 12, 3)
    target, sources = (
        torch.nn.functional.normalize(torch.randn(12, 5), dim=1),
        torch.nn.functional.normalize(sources, dim=2),
    )
    found = propagate(target, sources, labels, within(h, w, radius=1), top=4, temperature=0.1)
    for p in range(12):
        weights = []
        for s in range(2):
            for q in range(12):
                if max(abs(p // w - q // w), abs(p % w - q % w)) <= 1:
                    weights.append((math.exp(float(target[p] @ sources[s, q]) / 0.1), s, q))
        kept = sorted(weights, reverse=True)[:4]
        total = sum(weight for weight, _, _ in kept)
        expected = sum(weight / total * labels[s, q] for weight, s, q in kept)
        torch.testing.assert_close(found[p], expected, rtol=1e-4, atol=1e-5)


def test_hardened__stretches_each_channel_before_the_largest_wins() -> None:
    soft = torch.tensor([[[0.9, 0.1], [0.6, 0.4]]])  # the object never has more than 0.4, but its maximum is its own
    assert hardened(soft, (1, 2)).tolist() == [[0, 1]]


def test_jaccard__counts_an_empty_frame_rightly_left_empty_as_one() -> None:
    truth = np.zeros((2, 4, 4), dtype=bool)
    guess = truth.copy()
    truth[0, :2], guess[0, :3] = True, True
    assert jaccard(guess, truth) == pytest.approx((8 / 12 + 1) / 2)


def test_contour__forgives_a_pixel_and_not_five() -> None:
    truth = np.zeros((1, 80, 90), dtype=bool)
    truth[0, 20:60, 30:70] = True
    assert contour(truth, truth) == 1.0
    assert contour(np.roll(truth, 1, axis=2), truth) == 1.0  # 0.008 of the diagonal is 0.96 pixels, rounded up
    assert contour(np.roll(truth, 5, axis=2), truth) < 0.7
    assert contour(np.zeros_like(truth), truth) == 0.0
    assert edges(truth[0]).sum() == pytest.approx(4 * 40, abs=2)  # one pixel wide


@pytest.fixture
def moving(colours: Any, rows_of: Any, as_png: Any) -> Any:
    """A red square that moves to the right by 4 pixels a frame, frames out of order."""
    images, masks, numbers = [], [], [3, 0, 4, 1, 5, 2]
    for number in numbers:
        mask = np.zeros((64, 96), dtype=np.uint8)
        mask[16:48, 8 + 4 * number : 40 + 4 * number] = 255
        pixels = np.where(mask[..., None] > 0, [250, 10, 10], [10, 10, 250])
        images.append(
            as_png((pixels + np.random.default_rng(number).normal(0, 4, (64, 96, 3))).clip(0, 255).astype(np.uint8))
        )
        masks.append({"bytes": as_png(mask), "path": "mask.png"})
    test = rows_of(images, {"mask": masks, "frame": numbers})
    return replace(colours(bank=6, queries=6), classes=(), test=test)


def test_run__follows_a_square(moving: Any, small_vit: Any) -> None:
    found = Video(VideoConfig(side=64)).run(small_vit(patch_size=4, size=64), moving)
    still = np.zeros((4, 64, 96), dtype=bool)
    still[:, 16:48, 8:40] = True
    truth = np.stack([np.roll(still[0], 4 * number, axis=1) for number in (1, 2, 3, 4)])
    assert found["j"] > jaccard(still, truth) + 0.15  # better than leaving the mask where it was
    assert found["jf"] == pytest.approx((found["j"] + found["f"]) / 2)


def test_run__without_an_object_there_is_nothing_to_follow(moving: Any, small_vit: Any, as_png: Any) -> None:
    empty = {"bytes": as_png(np.zeros((64, 96), dtype=np.uint8)), "path": "mask.png"}
    moving.test._columns["mask"] = [empty] * 6
    with pytest.raises(ValueError, match="nothing to follow"):
        Video(VideoConfig(side=64)).run(small_vit(), moving)
