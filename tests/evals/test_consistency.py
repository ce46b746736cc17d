"""Cosines between crops against a loop, crops by key, and the numbers of a sheet."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from raydino.evals.consistency import consistency, consistency_sheet, crop_features, mean_of_pairs, random_crops
from raydino.views import Normalisation


def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)


def test_consistency__is_that_of_a_loop() -> None:
    features = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    found, total = consistency(features), 0.0
    for i in range(5):
        for j in range(5):
            cosine = float((features[i] * features[j]).sum() / (features[i].norm() * features[j].norm()))
            assert found[i, j].item() == pytest.approx(cosine, abs=1e-6)
            total += cosine if i != j else 0.0
    assert mean_of_pairs(found) == pytest.approx(total / 20, abs=1e-6)


def test_random_crops__depend_on_seed_and_name_alone() -> None:
    crops = random_crops(image(), count=4, size=16, seed=0, name="a")
    assert crops.shape == (4, 3, 16, 16) and crops.dtype == torch.uint8
    assert torch.equal(crops, random_crops(image(), count=4, size=16, seed=0, name="a"))
    assert not torch.equal(crops, random_crops(image(), count=4, size=16, seed=1, name="a"))
    assert not torch.equal(crops, random_crops(image(), count=4, size=16, seed=0, name="b"))
    grey = np.repeat(image()[..., :1], 3, axis=2)  # no change of colour, so grey stays grey
    channels = random_crops(grey, count=6, size=16, seed=0, name="a")
    assert torch.equal(channels[:, 0], channels[:, 1]) and torch.equal(channels[:, 0], channels[:, 2])


def test_crop_features__are_the_cls_features_and_the_mode_is_put_back(small_vit: Callable[..., Any]) -> None:
    encoder, normalise = small_vit(depth=2).train(), Normalisation()
    crops = random_crops(image(), count=3, size=16, seed=0, name="a")
    found = crop_features(encoder, crops, normalise)
    assert encoder.training
    encoder.eval()
    with torch.no_grad():
        expected = torch.cat([encoder(normalise(crop[None])).cls for crop in crops])
    torch.testing.assert_close(found, expected)


def test_consistency_sheet__a_cell_a_pair_and_no_pair_is_an_error() -> None:
    crops = random_crops(image(), count=3, size=16, seed=0, name="a")
    same = np.asarray(consistency_sheet(crops, torch.ones(3, 3)))
    other = np.asarray(consistency_sheet(crops, torch.tensor([[1, 0, 1], [0, 1, 1], [1, 1, 1.0]])))
    ys = np.nonzero((same[130:] != other[130:]).any(-1))[0]  # below the title, which has the mean
    assert len(ys) > 2 * 60 * 60 and len(ys) <= 2 * 72 * 72
    with pytest.raises(ValueError, match="1 crops make no pair"):
        consistency_sheet(crops[:1], torch.ones(1, 1))
