"""Features of random crops against crops cut and encoded one by one, and what the crops are."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from raydino.data.crops import Cropper
from raydino.data.decode import decode
from raydino.evals import random_crops
from raydino.evals.config import LinearConfig
from raydino.evals.evaluation import Labelled
from raydino.evals.features import extract_blocks
from raydino.evals.images import ImageSet
from raydino.evals.linear import Linear
from raydino.evals.random_crops import RandomCrops, batches_of_crops
from raydino.nn.layers import Pixels
from raydino.shards.schema import content_id
from raydino.views import Crops, Normalisation, Views

RANDOM = LinearConfig(crops="random", least_steps=40, epochs=1, batch=16)


def test_batches_of_crops__are_the_crops_of_each_epoch_encoded_one_by_one(
    rows_of: Any, as_png: Any, small_vit: Any
) -> None:
    numbers, network, normalise = np.random.default_rng(0), small_vit(), Normalisation()
    files = [as_png(numbers.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)) for i in range(9)]
    files[3] = files[3][:60]  # cannot be decoded: later images move up
    images = ImageSet(rows_of(files), np.arange(9), np.arange(9) % 4, size=16)
    known = extract_blocks(network, images, normalise, device="cpu", blocks=2)
    rows, epochs = [np.array([7, 0, 3]), np.array([4, 7, 1])], [0, 5]
    found = list(batches_of_crops(network, images, known, rows, epochs=epochs, blocks=2, normalise=normalise, seed=11))
    crops = Crops(count=1, size=16, scale=(0.08, 1.0), jitter=0.0, gray=0.0, blur=(0.0,))
    cropper, left = Cropper(Views(crops={"linear": crops}), seed=11), [0, 1, 2, 4, 5, 6, 7, 8]
    for batch, features, epoch in zip(rows, found, epochs, strict=True):
        for place, row in enumerate(batch):
            data = files[left[row]]
            crop = cropper(decode(data), epoch=epoch, sample=content_id(data))["linear"]
            with torch.no_grad():
                expected = network.eval()(normalise(torch.from_numpy(crop)))
            torch.testing.assert_close(features.cls[place, -1], expected.cls[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(features.pooled[place], expected.patches[0].mean(0), rtol=1e-4, atol=1e-5)
        assert features.labels.tolist() == [left[row] % 4 for row in batch]
    assert not torch.equal(found[0].cls[0], found[1].cls[1])  # one image in two epochs


def test_random_crops__show_8_to_100_percent_of_the_area_and_flip_half(rows_of: Any, as_png: Any) -> None:
    image, files = np.zeros((100, 100, 3), dtype=np.uint8), []
    image[..., 0] = np.arange(100) * 2  # the column
    for number in range(40):
        image[..., 2] = number  # so that each has a content, and draws, of its own
        files.append(as_png(image))
    crops = RandomCrops(ImageSet(rows_of(files), np.arange(40), np.zeros(40), size=32), seed=0)
    with ThreadPoolExecutor(1) as pool:
        seen = torch.cat([crops.cut(np.arange(40), epoch=epoch, pool=pool) for epoch in range(10)]).float()
    slopes = (seen[:, 0, 16, 28] - seen[:, 0, 16, 4]) / 24  # twice the columns that a pixel of the crop covers
    shares = slopes.abs() * 32 / 2 / 100  # of the width
    assert 0.4 < float((slopes < 0).float().mean()) < 0.6
    # Of a square image: at least √(0.08 · 3/4) of its width, at most all; its mean square is that of the area, about 0.54.
    assert 0.2 < float(shares.min()) < 0.4 and 0.9 < float(shares.max()) < 1.05
    assert float(shares.square().mean()) == pytest.approx(0.54, abs=0.08)


def test_random_crops__too_many_bytes_are_refused(
    colours: Any, small_vit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random_crops, "FILES_BYTES", 1000)
    with pytest.raises(ValueError, match="encoded images have .* take fewer"):
        Linear(RANDOM).grid(small_vit(), colours(bank=30, queries=10))


def test_run__heads_on_random_crops_learn_colours(colours: Any, small_vit: Any) -> None:
    evaluation = Linear(RANDOM)
    assert evaluation.run(small_vit(), colours(bank=120, queries=60))["top1"] > 0.9
    assert "frozen random crops of 8% to 100% of the area and flips" in evaluation.protocol


def test_run__what_a_flip_takes_away_is_learned_from_centre_crops_alone(rows_of: Any, as_png: Any) -> None:
    numbers = np.random.default_rng(0)

    def halves(count: int) -> ImageSet:
        labels, files = np.arange(count) % 2, []
        for label in labels:  # the bright half is on the left or on the right
            image = numbers.integers(0, 60, (18, 18, 3), dtype=np.uint8)
            image[:, 9 * label : 9 + 9 * label] += 180
            files.append(as_png(image))
        return ImageSet(rows_of(files), np.arange(count), labels, size=16)

    data = Labelled(bank=halves(80), queries=halves(60), classes=("left", "right"))
    assert Linear(RANDOM.override({"crops": "centre"})).run(Pixels(patch_size=8), data)["top1"] > 0.95
    scores = [head.top1 for head in Linear(RANDOM).grid(Pixels(patch_size=8), data)]
    assert abs(np.mean(scores) - 0.5) < 0.2


@pytest.mark.slow
def test_grid__two_ranks_find_what_one_finds_on_random_crops(
    gloo: Callable[[Callable[[int], Any], int], list[Any]], colours: Any, small_vit: Any
) -> None:
    data = colours(bank=120, queries=60)
    alone = Linear(RANDOM).grid(small_vit(), data)
    for found in gloo(lambda rank: Linear(RANDOM).grid(small_vit(), data), 2):
        for one, other in zip(found, alone, strict=True):
            assert (one.held_back, one.top1) == pytest.approx((other.held_back, other.top1), abs=0.02)
