"""Copy detection against scikit-learn, and on images whose copies are planted."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.metrics import average_precision_score

from raydino.evals.config import CopiesConfig
from raydino.evals.copies import Copies, gem, whitened

SMALL = CopiesConfig(side=32)


@pytest.fixture
def photos(colours: Any, rows_of: Any, as_png: Any) -> Any:
    """Four photos in three versions and three others, of coarse noise."""
    images, groups = [], []
    for group in range(7):
        photo = np.random.default_rng(group).integers(0, 256, (4, 4, 3)).repeat(10, 0).repeat(10, 1)
        for version in range(3 if group < 4 else 1):
            noise = np.random.default_rng((group, version)).normal(0, 70, photo.shape)
            images.append(as_png((photo + noise).clip(0, 255).astype(np.uint8)))
            groups.append(group)
    return replace(colours(bank=6, queries=6), classes=(), test=rows_of(images, {"group": groups}))


def test_run__equals_scikit_learn_over_all_pairs(photos: Any, small_vit: Any) -> None:
    evaluation, network = Copies(SMALL), small_vit()
    found = evaluation.run(network, photos)
    features, groups = evaluation.described(network, photos, photos.test, 100)
    pairs = [(i, j) for i in range(15) for j in range(i + 1, 15)]
    same = [groups[i] == groups[j] for i, j in pairs]
    assert found["micro_ap"] == pytest.approx(
        average_precision_score(same, [float(features[i] @ features[j]) for i, j in pairs])
    )
    lists = []
    for i in range(12):
        others = [j for j in range(15) if j != i]
        copies = [groups[j] == groups[i] for j in others]
        lists.append(average_precision_score(copies, [float(features[i] @ features[j]) for j in others]))
    assert found["map"] == pytest.approx(np.mean(lists))
    assert 0.3 < found["micro_ap"] < 1 and found["recall1"] > 0.2


def test_gem__is_the_mean_at_1_and_the_largest_at_a_high_power() -> None:
    patches = torch.rand(2, 5, 3) + 0.1
    torch.testing.assert_close(gem(patches, power=1), patches.mean(1))
    torch.testing.assert_close(gem(patches, power=4), patches.pow(4).mean(1).pow(0.25))
    torch.testing.assert_close(gem(patches, power=300), patches.amax(1), rtol=0.01, atol=0)
    assert gem(-patches, power=4).isfinite().all()


def test_whitened__divides_principal_components_by_their_deviation() -> None:
    generator = np.random.default_rng(0)
    known = (generator.normal(size=(50, 4)) * [5, 2, 1, 0.3]).astype(np.float32)
    features = generator.normal(size=(7, 4)).astype(np.float32)
    found = whitened(torch.from_numpy(features), torch.from_numpy(known)).numpy()
    pca = PCA().fit(known.astype(np.float64))
    parts = pca.transform(features.astype(np.float64)) / pca.explained_variance_**0.5
    expected = parts / np.linalg.norm(parts, axis=1, keepdims=True)
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-5)  # signs of axes are arbitrary


def test_run__whitens_by_the_training_split_and_refuses_images_without_copies(
    photos: Any, small_vit: Any, rows_of: Any, as_png: Any
) -> None:
    known = rows_of([as_png(np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)) for i in range(9)])
    with_train = replace(photos, train=known)
    plain = Copies(SMALL).run(small_vit(), photos)
    assert Copies(SMALL).run(small_vit(), with_train) != plain
    assert Copies(SMALL.override({"whitening": 0})).run(small_vit(), with_train) == plain
    photos.test._columns["group"] = list(range(15))
    with pytest.raises(ValueError, match="no two images share"):
        Copies(SMALL).run(small_vit(), photos)


@pytest.mark.slow
def test_run__two_ranks_find_what_one_finds(
    gloo: Callable[[Callable[[int], Any], int], list[Any]], photos: Any, small_vit: Any
) -> None:
    alone = Copies(SMALL).run(small_vit(), photos)
    for found in gloo(lambda rank: Copies(SMALL).run(small_vit(), photos), 2):
        assert found == pytest.approx(alone, abs=1e-6)
