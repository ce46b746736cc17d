"""Features against one image at a time, and two real processes against one."""

import io
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from raydino.evals.features import extract, extract_blocks, shared_features
from raydino.evals.images import ImageSet
from raydino.views import Normalisation

NORMALISE = Normalisation()


class Output(NamedTuple):
    cls: Tensor


class Encoder(nn.Module):
    """Stands in for a backbone; counts its calls and remembers whether it was in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(3 * 8 * 8, 5)
        self.drop = nn.Dropout(0.5)
        self.modes: list[bool] = []

    def forward(self, images: Tensor) -> Output:
        self.modes.append(self.training or self.drop.training or torch.is_grad_enabled())
        return Output(cls=self.drop(self.project(images.flatten(1))))


class Rows:
    """Stands in for a collection: noise images, some of them broken."""

    row_groups = (4, 3, 6)

    def __init__(self, *, broken: tuple[int, ...] = ()) -> None:
        self.bytes = []
        for i in range(13):
            buffer = io.BytesIO()
            Image.fromarray(np.random.default_rng(i).integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(buffer, "PNG")
            self.bytes.append(b"broken" if i in broken else buffer.getvalue())

    def read(self, group: int) -> pa.Table:
        start = sum(self.row_groups[:group])
        return pa.table({"bytes": self.bytes[start : start + self.row_groups[group]]})


def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder()


def image_set(*, broken: tuple[int, ...] = ()) -> ImageSet:
    return ImageSet(Rows(broken=broken), np.arange(13), np.arange(13) * 10, size=8)  # type: ignore[arg-type]


def one_by_one(*, broken: tuple[int, ...] = ()) -> tuple[Tensor, list[int]]:
    network, features, labels = encoder().eval(), [], []
    for i in range(13):
        if i not in broken:
            pixels, _ = next(image_set().chunks(np.array([i]), batch=1))
            features.append(network(NORMALISE(pixels)).cls[0].detach())
            labels.append(10 * i)
    return torch.stack(features), labels


@pytest.mark.parametrize("batch", [1, 5, 13, 64])
def test_extract__equals_one_image_at_a_time(batch: int) -> None:
    features, labels = extract(encoder(), image_set(broken=(2, 9)), NORMALISE, device="cpu", batch=batch)
    expected, expected_labels = one_by_one(broken=(2, 9))
    torch.testing.assert_close(features, expected)
    assert labels.tolist() == expected_labels and features.dtype == torch.float32


def test_extract__puts_every_mode_back_and_works_in_eval_without_gradient() -> None:
    network = encoder().train()
    network.drop.eval()
    features, _ = extract(network, image_set(), NORMALISE, device="cpu")
    assert network.training and network.project.training and not network.drop.training
    assert network.modes == [False] and not features.requires_grad
    (features * torch.ones(5, requires_grad=True)).sum().backward()  # an inference tensor would refuse


def test_extract__mode_is_put_back_after_a_failure() -> None:
    network = encoder().train()
    network.project = nn.Linear(1, 1)
    with pytest.raises(RuntimeError):
        extract(network, image_set(), NORMALISE, device="cpu")
    assert network.training and network.drop.training


def test_extract__nothing_decodable_is_an_error() -> None:
    with pytest.raises(ValueError, match="none of 13 images"):
        extract(encoder(), image_set(broken=tuple(range(13))), NORMALISE, device="cpu")


def _rank(rank: int) -> dict[str, Any]:
    network = encoder()
    features, labels = extract(network, image_set(broken=(1, 3, 5, 7)), NORMALISE, device="cpu", batch=2)
    return {"features": features, "labels": labels, "calls": len(network.modes)}


@pytest.mark.slow
def test_extract__two_ranks_get_all_in_order_with_equal_numbers_of_passes(
    gloo: Callable[[Callable[[int], Any], int], list[dict[str, Any]]],
) -> None:
    results = gloo(_rank, 2)
    expected, expected_labels = one_by_one(broken=(1, 3, 5, 7))  # all of them images of rank 1
    for result in results:
        torch.testing.assert_close(result["features"], expected)
        assert result["labels"].tolist() == expected_labels
    assert {result["calls"] for result in results} == {
        4
    }  # ceil(ceil(13 / 2) / 2), for rank 1 as well, which has images for 3


def test_shared_features__one_extraction_for_a_set_and_its_parts(colours: Any, small_vit: Any) -> None:
    data, network, calls = colours(bank=30, queries=12), small_vit(), []
    network.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    part = data.bank.at_most(11, seed=3)
    alone = extract_blocks(network, part, data.normalisation, device="cpu", blocks=2)
    unordered = data.bank.part(np.array([9, 2, 4]))
    calls.clear()
    with shared_features(blocks=4):
        whole = extract_blocks(network, data.bank, data.normalisation, device="cpu")
        assert whole.cls.shape == (30, 4, 12) and calls == [30]
        found = extract_blocks(network, part, data.normalisation, device="cpu", blocks=2)
        features, labels = extract(network, part, data.normalisation, device="cpu")
        assert extract(network, unordered, data.normalisation, device="cpu")[1].tolist() == [9 % 6, 2, 4]
        assert calls == [30]  # nothing was encoded again
        extract(network, data.queries, data.normalisation, device="cpu")
        assert calls == [30, 12]
    torch.testing.assert_close(found.cls[:, -2:], alone.cls)
    torch.testing.assert_close(found.pooled, alone.pooled)
    torch.testing.assert_close(features, alone.cls[:, -1])
    assert labels.tolist() == found.labels.tolist() == part.labels.tolist()
    extract(network, data.bank, data.normalisation, device="cpu")
    assert calls == [30, 12, 30]  # nothing is kept outside


def test_shared_features__an_undecodable_image_stays_left_out_of_parts(small_vit: Any) -> None:
    whole = image_set(broken=(2, 9))
    part = whole.part(np.array([1, 2, 5, 9, 10]))
    with shared_features():
        extract_blocks(small_vit(), whole, NORMALISE, device="cpu")
    network = small_vit()
    with shared_features():
        extract_blocks(network, whole, NORMALISE, device="cpu")
        found = extract_blocks(network, part, NORMALISE, device="cpu")
    assert found.labels.tolist() == [10, 50, 100] and found.positions.tolist() == [0, 2, 4]
    torch.testing.assert_close(found.cls, extract_blocks(network, part, NORMALISE, device="cpu").cls)
