"""A set on a plane, and the use of prototypes, on planted groups."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from raydino.evals.embedding import assignments, embedding_map, plane, usage_picture, used


def groups(count: int = 60) -> tuple[torch.Tensor, np.ndarray]:
    labels = np.arange(count) % 3
    noise = torch.randn(count, 64, generator=torch.Generator().manual_seed(0))
    return 0.05 * noise + torch.eye(64)[torch.from_numpy(labels)], labels


def test_plane__pca_is_scikit_learns_of_unit_features() -> None:
    features, _ = groups()
    found = plane(3.0 * features, "pca", seed=0)
    unit = torch.nn.functional.normalize(features, dim=1).double().numpy()
    expected = PCA(2, svd_solver="full").fit_transform(unit)
    np.testing.assert_allclose(found * np.sign((found * expected).sum(0)), expected, atol=1e-5)


@pytest.mark.parametrize("how", ["tsne", "pca"])
def test_plane__planted_groups_lie_apart_and_a_seed_gives_one_map(how: str) -> None:
    features, labels = groups()
    places = plane(features, how, seed=3)  # type: ignore[arg-type]
    assert places.shape == (60, 2)
    np.testing.assert_array_equal(places, plane(features, how, seed=3))  # type: ignore[arg-type]
    away = np.linalg.norm(places[:, None] - places[None], axis=-1) + np.diag(np.full(60, np.inf))
    assert (labels[away.argmin(1)] == labels).all()


@pytest.mark.parametrize("how", ["tsne", "pca"])
def test_plane__three_images_will_do_and_two_will_not(how: str) -> None:
    features, _ = groups(3)
    assert np.isfinite(plane(features, how, seed=0)).all()  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="map of 2 images; give at least 3"):
        plane(features[:2], how, seed=0)  # type: ignore[arg-type]


def test_embedding_map__a_colour_a_label_and_a_legend_for_few() -> None:
    features, labels = groups()
    places = plane(features, "pca", seed=0)
    few = embedding_map(places, labels, ("a", "b"), "pca")
    plain = embedding_map(places, np.full(60, -1), (), "pca")
    many = embedding_map(places, np.arange(60), (), "pca")
    assert few.width > plain.width == many.width  # the legend's room

    def colourful(picture: object) -> int:
        pixels = np.asarray(picture).astype(int)
        return int((pixels.max(-1) - pixels.min(-1) > 60).sum())

    assert colourful(plain) == 0 < min(colourful(few), colourful(many))


def test_assignments__count_each_image_once() -> None:
    targets = torch.full((10, 8), 0.01)
    chosen = [0, 0, 0, 5, 5, 7, 7, 7, 7, 2]
    targets[torch.arange(10), torch.tensor(chosen)] = 0.93
    assert assignments(targets).tolist() == [chosen.count(k) for k in range(8)]
    mean = targets.double().mean(0)
    assert used(targets) == pytest.approx(float(np.exp(-(mean * mean.log()).sum())), rel=1e-5)
    assert used(torch.full((4, 8), 1 / 8)) == pytest.approx(8)
    assert used(torch.eye(8)[[3, 3]]) == pytest.approx(1)
    assert usage_picture(targets).width > 300
