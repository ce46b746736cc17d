"""Segmentation: scores against scikit-learn, heads against torch's convolution, all of it on maps that colours tell."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, jaccard_score
from torch import nn

from raydino.evals.config import SegmentationConfig
from raydino.evals.dense import decode_map, encode_each, enlarged, grids, whole_image
from raydino.evals.segmentation import (
    Segmentation,
    added,
    class_shares,
    confusion,
    dense_loss,
    miou,
    sampled,
    seeded_head,
    warm_cosine,
)
from raydino.views import Normalisation

SMALL = SegmentationConfig(side=32, steps=60, batch=4, k=5, lr=0.02)


def maps(count: int, seed: int, rows_of: Any, as_png: Any) -> Any:
    """Images of four quarters of random colours and maps of their numbers; number 3 means nothing."""
    palette = np.array([[250, 10, 10], [10, 250, 10], [10, 10, 250], [240, 240, 10]])
    generator, images, found = np.random.default_rng(seed), [], []
    for _ in range(count):
        numbers = generator.integers(0, 4, (2, 2)).repeat(24, 0).repeat(32, 1)
        pixels = palette[numbers] + generator.normal(0, 5, (48, 64, 3))
        images.append(as_png(pixels.clip(0, 255).astype(np.uint8)))
        found.append({"bytes": as_png(numbers.astype(np.uint8)), "path": "map.png"})
    return rows_of(images, {"mask": found})


@pytest.fixture
def scenes(colours: Any, rows_of: Any, as_png: Any) -> Any:
    train, test = maps(16, 0, rows_of, as_png), maps(7, 1, rows_of, as_png)
    return replace(colours(bank=6, queries=6), classes=(), train=train, test=test)


def test_confusion_and_miou__equal_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    truth, guess = generator.integers(-1, 4, (20, 30)), generator.integers(0, 5, (20, 30))
    table, judged = confusion(truth, guess, 6), truth >= 0
    np.testing.assert_array_equal(table, confusion_matrix(truth[judged], guess[judged], labels=range(6)))
    expected = jaccard_score(truth[judged], guess[judged], labels=range(5), average="macro")  # class 5 is nowhere
    assert miou(table) == pytest.approx(expected)


def test_class_shares__equal_a_loop_over_patches() -> None:
    labels = np.random.default_rng(0).integers(-1, 3, (13, 17))  # sides that are no whole patches
    found = class_shares(labels, (4, 5), 3).reshape(4, 5, 3)
    rows, columns = np.arange(13) * 4 // 13, np.arange(17) * 5 // 17
    for i in range(4):
        for j in range(5):
            patch = labels[np.ix_(rows == i, columns == j)]
            assert found[i, j].tolist() == pytest.approx([(patch == c).mean() for c in range(3)])


def test_sampled__takes_the_middle_of_equal_parts() -> None:
    labels = np.arange(64).reshape(8, 8)
    np.testing.assert_array_equal(sampled(labels, (2, 2)), labels)
    np.testing.assert_array_equal(sampled(labels, (1, 1)), labels[1::2, 1::2])


def test_dense_loss__equals_batch_norm_and_convolution_of_torch() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(3, 5, 4, 6)
    targets = torch.randint(-1, 3, (3, 10, 8))
    head = seeded_head(6, 3, seed=0, device=torch.device("cpu"))
    head[1].bias.data = torch.randn(3)
    norm, conv = nn.BatchNorm2d(6), nn.Conv2d(6, 3, 1)
    conv.weight.data, conv.bias.data = head[1].weight.data[..., None, None], head[1].bias.data
    logits = nn.functional.interpolate(conv(norm(tokens.permute(0, 3, 1, 2))), size=(10, 8), mode="bilinear")
    expected = nn.functional.cross_entropy(logits, targets, ignore_index=-1)
    torch.testing.assert_close(dense_loss(head, list(tokens), list(targets)), expected)


def test_nearest__equals_a_loop() -> None:
    torch.manual_seed(0)
    evaluation = Segmentation(SMALL)
    bank, labels = nn.functional.normalize(torch.randn(40, 6), dim=1), torch.rand(40, 3)
    tokens = torch.randn(2, 3, 6)
    found = evaluation.nearest(bank, labels, tokens)
    cosine = nn.functional.cosine_similarity(tokens[1, 2], bank)
    order = cosine.argsort(descending=True)[:5]
    weights = (cosine[order] / 0.07).exp()
    torch.testing.assert_close(found[1, 2], (weights[:, None] * labels[order]).sum(0) / weights.sum())


def test_whole_image__keeps_the_shape_in_whole_patches(as_png: Any) -> None:
    image = whole_image(as_png(np.zeros((48, 100, 3), dtype=np.uint8)), side=30, patch=8)
    assert image is not None and image.shape == (3, 32, 64)  # 30 and 62.5 pixels are nearest to 4 and 8 patches
    assert whole_image(b"broken", side=30, patch=8) is None


def test_decode_map__keeps_numbers_of_8_and_16_bits_and_refuses_colours(as_png: Any) -> None:
    for kind in (np.uint8, np.uint16):
        numbers = np.arange(240).reshape(12, 20).astype(kind) * (200 if kind is np.uint16 else 1)
        np.testing.assert_array_equal(decode_map(as_png(numbers)), numbers)
    with pytest.raises(ValueError, match="mode RGB"):
        decode_map(as_png(np.zeros((12, 12, 3), dtype=np.uint8)))
    with pytest.raises(ValueError, match="cannot be decoded"):
        decode_map(b"broken")


def test_grids__are_the_patches_row_by_row_and_a_broken_image_is_none(small_vit: Any) -> None:
    network = small_vit().eval()
    images = [torch.randint(0, 256, (3, 16, 32), dtype=torch.uint8), None, torch.zeros(3, 24, 8, dtype=torch.uint8)]
    first, none, last = grids(network, images, blocks=(3, 4), normalise=Normalisation(), cls=True)
    output = network(Normalisation()(images[0][None]))
    assert none is None and last.shape == (3, 1, 48)
    torch.testing.assert_close(first[..., 24:36], output.patches[0].view(2, 4, 12))
    torch.testing.assert_close(first[1, 3, 36:], output.cls[0])


def test_run__colours_are_segmented_and_ignored_numbers_do_not_count(scenes: Any, small_vit: Any) -> None:
    found = Segmentation(SMALL.override({"ignore": [3]})).run(small_vit(), scenes)
    assert found["miou"] > 0.8 and found["miou_4layers"] > 0.8 and found["miou_knn"] > 0.8
    with pytest.raises(ValueError, match="nothing can be told apart"):
        Segmentation(SMALL.override({"ignore": [1, 2, 3]})).run(small_vit(), scenes)


def test_unfit__says_what_is_missing(scenes: Any) -> None:
    evaluation = Segmentation(SMALL)
    assert evaluation.unfit(scenes) is None
    assert evaluation.unfit(replace(scenes, train=None)) == "no split to learn from"
    assert Segmentation(SMALL.override({"column": "depth"})).unfit(scenes) == "no column 'depth'"


def test_schedule__warms_up_and_ends_at_zero() -> None:
    assert [warm_cosine(step, 100) for step in (0, 9, 10, 55)] == pytest.approx([0.1, 1.0, 1.0, 0.5])
    assert warm_cosine(99, 100) < 0.001


@pytest.mark.slow
def test_run__two_ranks_find_what_one_finds(
    gloo: Callable[[Callable[[int], Any], int], list[Any]], scenes: Any, small_vit: Any
) -> None:
    alone = Segmentation(SMALL).run(small_vit(), scenes)
    images = [torch.full((3, 8 * n, 8), n, dtype=torch.uint8) for n in (1, 2, 1)]  # the second rank has one image

    def both(rank: int) -> Any:
        sums = encode_each(small_vit(), images, blocks=(-1,), say=lambda o: o[0].patches[0], normalise=Normalisation())
        return Segmentation(SMALL).run(small_vit(), scenes), [rows.shape for rows in sums]

    for found, shapes in gloo(both, 2):
        assert found == pytest.approx(alone, abs=1e-3)
        assert shapes == [(1, 12), (2, 12), (1, 12)]


def test_enlarged__is_linear_between_the_middles_of_patches() -> None:
    grid = torch.tensor([[[0.0], [8.0]]])
    torch.testing.assert_close(enlarged(grid, (1, 8))[0, :, 0], torch.tensor([0.0, 0, 1, 3, 5, 7, 8, 8]))


def test_run__parts_of_the_test_images_change_nothing_and_a_class_of_theirs_alone_counts(
    scenes: Any, small_vit: Any, monkeypatch: Any, as_png: Any
) -> None:
    evaluation = Segmentation(SMALL)
    whole = evaluation.run(small_vit(), scenes)
    monkeypatch.setattr("raydino.evals.dense.PART", 2)
    assert evaluation.run(small_vit(), scenes) == pytest.approx(whole)
    scenes.test._columns["mask"][0] = {"bytes": as_png(np.full((48, 64), 9, dtype=np.uint8)), "path": ""}
    assert evaluation.run(small_vit(), scenes)["miou"] < whole["miou"] - 0.1  # class 9 has an IoU of 0
    assert added(np.ones((2, 2)), np.eye(3)).tolist() == [[2, 1, 0], [1, 2, 0], [0, 0, 1]]


def test_run__tokens_that_do_not_fit_are_refused_with_a_remedy(scenes: Any, small_vit: Any, monkeypatch: Any) -> None:
    memory = type("Memory", (), {"available": 1000})
    monkeypatch.setattr("raydino.evals.dense.psutil.virtual_memory", lambda: memory)
    with pytest.raises(ValueError, match="16 images take .* lower train_images or side"):
        Segmentation(SMALL).run(small_vit(), scenes)
