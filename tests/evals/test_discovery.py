"""Foregrounds: mass, components and boxes against their definitions, and a square that is found."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from raydino.evals.config import DiscoveryConfig
from raydino.evals.discovery import Discovery, box, box_iou, foregrounds, iou, largest, most_mass, spread


def test_most_mass__takes_the_fewest_patches_that_hold_the_share() -> None:
    attention = torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15])
    assert most_mass(attention, 0.6).nonzero().flatten().tolist() == [1, 3]
    assert most_mass(attention, 0.75).nonzero().flatten().tolist() == [1, 3, 4]
    assert most_mass(attention, 1.0).all()


def test_foregrounds__are_the_sign_of_scikit_learns_component_away_from_the_border() -> None:
    torch.manual_seed(0)
    grids = [torch.randn(6, 7, 5), torch.randn(4, 5, 5)]
    for grid in grids:
        grid[1:-1, 1:-1] += torch.tensor([4.0, -3, 0, 0, 1])
    found = foregrounds(grids)
    tokens = np.concatenate([grid.flatten(0, 1).numpy() for grid in grids])
    sign = PCA(1).fit_transform(tokens)[:, 0] > 0
    both = np.concatenate([part.ravel() for part in found])
    assert (both == sign).all() or (both == ~sign).all()
    inner = np.zeros((6, 7), dtype=bool)
    inner[1:-1, 1:-1] = True
    assert (found[0] == inner).mean() > 0.9


def test_boxes_and_components() -> None:
    mask = np.zeros((10, 12), dtype=bool)
    mask[1:3, 1:3], mask[5:9, 4:10] = True, True
    assert largest(mask).sum() == 24 and box(largest(mask)) == (5, 4, 9, 10) and box(mask) == (1, 1, 9, 10)
    assert box(~mask & mask) == (0, 0, 0, 0) and not largest(~mask & mask).any()
    assert box_iou((0, 0, 4, 4), (2, 2, 6, 6)) == pytest.approx(4 / 28)
    assert box_iou((0, 0, 0, 0), (2, 2, 6, 6)) == 0
    assert iou(mask, mask) == 1.0 and iou(mask & ~mask, mask & ~mask) == 0.0
    assert spread(np.array([[True, False]]), (2, 4)).tolist() == [[True, True, False, False]] * 2


@pytest.fixture
def squares(colours: Any, rows_of: Any, as_png: Any) -> Any:
    images, masks = [], []
    for seed in range(5):
        mask = np.zeros((48, 64), dtype=np.uint8)
        mask[16:40, 24:48] = 255
        pixels = np.where(mask[..., None] > 0, [250, 10, 10], [10, 10, 250]) + np.random.default_rng(seed).normal(
            0, 4, (48, 64, 3)
        )
        images.append(as_png(pixels.clip(0, 255).astype(np.uint8)))
        masks.append({"bytes": as_png(mask), "path": "mask.png"})
    return replace(colours(bank=6, queries=6), classes=(), test=rows_of(images, {"mask": masks}))


def test_run__finds_a_square_by_its_colour(squares: Any, small_vit: Any) -> None:
    found = Discovery(DiscoveryConfig(side=48)).run(small_vit(patch_size=8), squares)
    assert found["pca_jaccard"] > 0.8 and found["pca_corloc"] == 1.0
    assert 0 < found["attention_mean"] <= found["attention_best_head"] <= 1


def test_run__without_an_object_there_is_nothing_to_find(squares: Any, small_vit: Any, as_png: Any) -> None:
    squares.test._columns["mask"] = [{"bytes": as_png(np.zeros((48, 64), dtype=np.uint8)), "path": ""}] * 5
    with pytest.raises(ValueError, match="has an object"):
        Discovery(DiscoveryConfig(side=48)).run(small_vit(), squares)
