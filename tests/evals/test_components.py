"""Principal components against scikit-learn, and colours of planted features."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from raydino.evals.components import foreground_colours, patch_colours, principal_components


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).float()


@pytest.mark.parametrize("rows", [12, 15, 200])  # by SVD, and by the covariance from more than twice the width on
def test_principal_components__are_those_of_scikit_learn_up_to_sign(rows: int) -> None:
    features = gaussian(rows, 7) * torch.tensor([9.0, 7, 5, 3, 2, 1, 0.5]) + 4.0
    found = principal_components(features, 3).numpy()
    expected = PCA(3, svd_solver="full").fit_transform(features.double().numpy())
    signs = np.sign((found * expected).sum(0))
    np.testing.assert_allclose(found * signs, expected, atol=1e-5)


def test_principal_components__narrow_and_flat_features_are_padded_with_zeros() -> None:
    assert principal_components(gaussian(9, 2), 3)[:, 2].tolist() == [0.0] * 9
    assert principal_components(torch.ones(4, 5), 3).abs().max() < 1e-6


def test_patch_colours__planted_features_have_one_colour_in_two_images_of_other_sizes() -> None:
    kinds = gaussian(4, 16, seed=1) * 5
    first, second = np.array([[0, 1, 2], [3, 3, 1]]), np.array([[2, 0], [1, 3], [3, 0]])
    grids = [kinds[torch.from_numpy(kind)] for kind in (first, second)]
    colours = np.concatenate(patch_colours(grids))
    kind_of = np.concatenate([first.ravel(), second.ravel()])
    by_kind = np.stack([colours[kind_of == kind][0] for kind in range(4)])
    np.testing.assert_allclose(colours, by_kind[kind_of], atol=1e-6)
    assert min(np.abs(a - b).max() for i, a in enumerate(by_kind) for b in by_kind[:i]) > 0.1
    alone = patch_colours(grids[:1])[0]  # a basis of its own is another one
    assert not np.allclose(alone, colours[:6], atol=1e-3)


def test_foreground_colours__the_planted_object_has_colours_and_the_rest_is_black() -> None:
    planted = np.zeros((2, 6, 6), dtype=bool)
    planted[0, 2:4, 2:5], planted[1, 1:4, 2:4] = True, True
    away, inner = torch.zeros(16), torch.zeros(16)
    away[3], inner[5] = 20.0, 3.0
    grids = []
    for number, mask in enumerate(planted):
        grid = 0.05 * gaussian(6, 6, 16, seed=number)
        grid[torch.from_numpy(mask)] += away
        grid[2][torch.from_numpy(mask[2])] += inner  # a part of the object, told apart in the second step alone
        grids.append(grid)
    for mask, colours in zip(planted, foreground_colours(grids), strict=True):
        grid = colours.reshape(6, 6, 3)
        assert ((grid > 0).any(-1) == mask).all()
        rows = np.unique(np.nonzero(mask)[0])
        part, other = grid[2][mask[2]][:, 0], [grid[row][mask[row]][:, 0] for row in rows if row != 2]
        assert np.abs(part.mean() - np.concatenate(other).mean()) > 0.5


def test_foreground_colours__features_that_do_not_differ_are_all_background() -> None:
    [colours] = foreground_colours([torch.ones(3, 4, 8)])
    assert colours.shape == (12, 3) and not colours.any()
