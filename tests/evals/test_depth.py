"""Depth: the published head and loss written out, and a room whose brightness is its depth."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from raydino.evals.config import DepthConfig
from raydino.evals.depth import Depth, errors, mean_depth, scale_invariant

SMALL = DepthConfig(side=32, steps=150, batch=4, bins=32, lr=0.01, most=5.0)


def test_mean_depth__equals_a_loop_over_bins() -> None:
    scores = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    found, bins = mean_depth(scores, least=1.0, most=3.0), [1.0, 1.5, 2.0, 2.5, 3.0]
    weights = [max(float(s), 0) + 0.1 for s in scores[1, 2]]
    assert float(found[1, 2]) == pytest.approx(sum(w * b for w, b in zip(weights, bins, strict=True)) / sum(weights))


def test_scale_invariant__is_eigens_and_forgives_a_factor_mostly() -> None:
    guess, truth = torch.tensor([1.0, 2, 5, 3]), torch.tensor([2.0, 2, 4, 1])
    g = (guess / truth).log().numpy()
    eigen = np.mean(g**2) - 0.85 * np.mean(g) ** 2
    assert float(scale_invariant(guess, truth)) == pytest.approx(np.sqrt(eigen), rel=1e-5)
    assert float(scale_invariant(3 * truth, truth)) == pytest.approx(np.sqrt(0.15) * np.log(3), rel=1e-4)


def test_errors__count_pixels_with_a_reading_alone() -> None:
    guess, truth = np.array([[1.0, 2.0], [3.0, 9.0]]), np.array([[1.0, 1.0], [3.5, 0.0]])
    rmse, delta1 = errors(guess, truth)
    assert rmse == pytest.approx(np.sqrt((0 + 1 + 0.25) / 3)) and delta1 == pytest.approx(2 / 3)


@pytest.fixture
def rooms(colours: Any, rows_of: Any, as_png: Any) -> Any:
    def part(count: int, seed: int) -> Any:
        generator, images, depths = np.random.default_rng(seed), [], []
        for _ in range(count):
            metres = generator.uniform(0.5, 4.5, (2, 2)).repeat(24, 0).repeat(32, 1)
            grey = (metres * 50)[..., None] + generator.normal(0, 2, (48, 64, 3))
            images.append(as_png(grey.clip(0, 255).astype(np.uint8)))
            millimetres = (1000 * metres).astype(np.uint16)
            millimetres[:5] = 0  # no reading
            depths.append({"bytes": as_png(millimetres), "path": "depth.png"})
        return rows_of(images, {"depth": depths})

    return replace(colours(bank=6, queries=6), classes=(), train=part(16, 0), test=part(7, 1))


def test_run__brightness_is_read_as_depth(rooms: Any, small_vit: Any) -> None:
    found = Depth(SMALL).run(small_vit(), rooms)
    truths = [view.depth for view in Depth(SMALL).views(small_vit(), rooms, rooms.test, np.arange(7))]
    mean = np.mean([t[t > 0].mean() for t in truths])
    constant = np.mean([errors(np.full_like(t, mean), t)[0] for t in truths])
    assert found["rmse"] < 0.6 * constant and found["delta1"] > 0.6
    assert found["rmse_4layers"] < 0.6 * constant


def test_run__a_wrong_unit_is_named(rooms: Any, small_vit: Any) -> None:
    with pytest.raises(ValueError, match="check per_metre"):
        Depth(SMALL.override({"per_metre": 0.001})).run(small_vit(), rooms)
