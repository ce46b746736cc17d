"""Distortions against their definitions, and encoders of which it is known what they look at."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raydino.evals.config import RobustnessConfig, SpectrumConfig
from raydino.evals.distortions import at_scale, low_passed, shuffled, zoomed
from raydino.evals.robustness import Robustness, others_cosine, own_nearest, same_cosine
from raydino.evals.spectrum import Spectrum, alignment
from raydino.nn.layers import Pixels


def test_shuffled__keeps_every_tile_and_moves_some() -> None:
    images = torch.rand(2, 3, 10, 8)
    found = shuffled(images, tiles=2, seed=1)

    def tiles(x: Tensor) -> list[list[float]]:
        return sorted(x[0, :, r : r + 5, c : c + 4].flatten().tolist() for r in (0, 5) for c in (0, 4))

    assert tiles(found) == tiles(images) and not found.equal(images)
    assert found.equal(shuffled(images, tiles=2, seed=1))
    assert shuffled(images, tiles=3, seed=1)[..., 9, :].equal(images[..., 9, :])  # the rest at the edge stays
    with pytest.raises(ValueError, match="12 × 12 tiles"):
        shuffled(images, tiles=12, seed=0)


def test_zoomed__shows_a_corner_and_low_passed_keeps_the_mean_alone() -> None:
    images = torch.zeros(1, 1, 8, 8)
    images[..., :4, :4] = 1
    assert zoomed(images, share=0.5, corner=0).min() == 1 and zoomed(images, share=0.5, corner=3).max() == 0
    assert zoomed(images, share=0.5, corner=1).max() == 0
    stripes = torch.tensor([0.0, 1]).repeat(8).expand(1, 1, 16, 16)
    inside = low_passed(stripes, factor=4)[..., 4:12, 4:12]
    torch.testing.assert_close(inside, torch.full_like(inside, 0.5), atol=0.05, rtol=0)
    assert at_scale(stripes, scale=1.5, patch=8).shape == (1, 1, 24, 24)


def test_cosines__equal_loops() -> None:
    one, other = torch.randn(9, 4), torch.randn(9, 4)
    cosine = nn.functional.cosine_similarity(one[:, None], other[None], dim=2)
    assert same_cosine(one, other) == pytest.approx(float(cosine.diagonal().mean()), abs=1e-6)
    itself = nn.functional.cosine_similarity(one[:, None], one[None], dim=2)
    assert others_cosine(one) == pytest.approx(float((itself.sum() - 9) / 72), abs=1e-6)
    nearest = cosine.T.argmax(1)  # of each view, among the intact
    assert own_nearest(one, other) == pytest.approx(float((nearest == torch.arange(9)).float().mean()))
    assert own_nearest(torch.ones(5, 3), torch.ones(5, 3)) == 0.0  # collapsed features find nothing


class Output(NamedTuple):
    cls: Tensor


class MeanColour(nn.Module):
    """Looks at no place: the same for every order of tiles."""

    def __init__(self) -> None:
        super().__init__()
        self.zero = nn.Parameter(torch.zeros(()))

    def forward(self, images: Tensor) -> Output:
        return Output(cls=images.mean((2, 3)) + self.zero)


class Halves(Pixels):
    """Looks at the left and the right half alone."""

    def forward(self, images: Tensor, masks: Tensor | None = None) -> Any:
        half = images.shape[-1] // 2
        return Output(cls=torch.cat([images[..., :half].mean((2, 3)), images[..., half:].mean((2, 3))], 1))


def test_run__order_matters_to_those_who_look_at_places(colours: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("raydino.evals.robustness.patch_size", lambda encoder: 4)
    data = colours(bank=60, queries=30)
    found = Robustness(RobustnessConfig(k=3, tiles=2)).run(MeanColour(), data)  # type: ignore[arg-type]
    assert found["top1"] == found["top1_shuffled"] == found["top1_lowpass"] == 1.0
    assert found["crop_cosine"] > 0.99 > found["others_cosine"] and found["scale_cosine"] > 0.99
    assert found["crop_found"] < 0.6  # five images have the same colour

    rng = np.random.default_rng(0)
    for images in (data.bank, data.queries):  # left dark in even classes, right dark in odd ones
        images._pixels._cache[:] = rng.integers(100, 140, images._pixels._cache.shape)
        for place, label in enumerate(images.labels):
            half = images._pixels._cache[place, :, :, :8] if label % 2 == 0 else images._pixels._cache[place, :, :, 8:]
            half[:] = rng.integers(0, 20, half.shape)
        images.labels %= 2
    intact = Robustness(RobustnessConfig(k=3, tiles=2)).run(Halves(), data)
    # The order of 2 × 2 tiles by seed 0 mixes left and right.
    assert intact["top1"] == 1.0 and intact["top1_shuffled"] < 0.8


def test_spectrum__alignment_is_the_mean_squared_distance_of_views(colours: Any, small_vit: Any) -> None:
    one, other = torch.randn(9, 4), torch.randn(9, 4)
    expected = np.mean([float((a / a.norm() - b / b.norm()).square().sum()) for a, b in zip(one, other, strict=True)])
    assert alignment(one, other) == pytest.approx(expected, abs=1e-6)
    assert alignment(one, one) == 0.0
    found = Spectrum(SpectrumConfig()).run(small_vit(), colours(bank=6, queries=30))
    assert set(found) == {"rankme", "feature_std", "uniformity", "alignment"} and 0 < found["alignment"] < 2
