from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from raydino.config import ConfigError
from raydino.views import Batch, Crops, Masks, Normalisation, Views


def a_batch(images=6):
    pixels = torch.arange(2 * images * 3 * 4 * 4, dtype=torch.int64).remainder(256).to(torch.uint8)
    crops = {"global": pixels.view(2, images, 3, 4, 4), "local": torch.zeros(8, images, 3, 2, 2, dtype=torch.uint8)}
    masks = torch.arange(2 * images * 4).remainder(3).eq(0).view(2, images, 4)
    colours = {name: torch.rand(len(crop), images, 5) for name, crop in crops.items()}
    return Batch(crops=crops, masks=masks, ids=tuple(bytes([i]) for i in range(images)), step=3, colours=colours)


def test_split__parts_in_slot_order_make_the_whole():
    batch = a_batch()
    parts = list(batch.split(3))
    assert [part.images for part in parts] == [2, 2, 2]
    assert b"".join(i for part in parts for i in part.ids) == bytes(range(6))
    for name, whole in batch.crops.items():
        assert torch.equal(torch.cat([part.crops[name] for part in parts], dim=1), whole)
        assert torch.equal(torch.cat([part.colours[name] for part in parts], dim=1), batch.colours[name])
    assert torch.equal(torch.cat([part.masks for part in parts], dim=1), batch.masks)
    assert {part.step for part in parts} == {3}


def test_split__without_masks_and_uneven():
    bare = Batch(crops=a_batch().crops, masks=None, ids=a_batch().ids, step=0)
    assert next(bare.split(2)).masks is None and next(bare.split(2)).colours is None
    with pytest.raises(ValueError, match="6 images cannot be cut into 4"):
        next(bare.split(4))


def test_to__moves_everything_and_keeps_the_rest():
    moved = a_batch().to("meta")
    assert {c.device.type for c in moved.crops.values()} == {"meta"} == {moved.masks.device.type}
    assert {numbers.device.type for numbers in moved.colours.values()} == {"meta"}
    assert (moved.ids, moved.step) == (a_batch().ids, 3)


def test_to__says_where_the_masks_are():
    batch = a_batch()
    assert np.array_equal(batch.to("cpu").masked, np.flatnonzero(batch.masks.numpy()))


@pytest.mark.parametrize("more", [0, 1, 32])  # up to all patches
def test_to__with_the_most_that_are_masked_other_patches_follow(more):
    batch = a_batch()
    count = int(batch.masks.sum())
    places = replace(batch, most_masked=count + more).to("cpu").masked.numpy()
    assert np.array_equal(places[:count], np.flatnonzero(batch.masks.numpy()))
    assert len(np.unique(places)) == len(places) == count + more
    assert not batch.masks.flatten()[places[count:]].any()


def test_to__more_masked_than_can_be_is_refused():
    batch = a_batch()
    count = int(batch.masks.sum())
    with pytest.raises(ConfigError, match=rf"fixed_shapes = True: {count} patches.*at most {count - 1} .*to false"):
        replace(batch, most_masked=count - 1).to("cpu")


def test_split__every_part_has_as_many_rows():
    parts = replace(a_batch(), most_masked=16).split(3)
    assert [len(part.to("cpu").masked) for part in parts] == [16, 16, 16]


def test_normalisation__is_the_formula_in_numpy():
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16)
    mean, std = (np.array(v).reshape(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = (pixels.numpy() / 255.0 - mean) / std
    got = Normalisation()(pixels)
    assert got.dtype == torch.float32
    assert got.shape == pixels.shape
    # float32 arithmetic on values up to 2.7: a few units of 2**-23
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_normalisation__leaves_pixels_that_are_floats_already_alone():
    pixels = torch.full((3, 2, 2), 7.0)
    Normalisation()(pixels)
    assert (pixels == 7).all()


def test_normalisation__other_channels():
    got = Normalisation(mean=(0.5,), std=(0.25,))(torch.tensor([[[0, 255]]], dtype=torch.uint8))
    assert got.flatten().tolist() == pytest.approx([-2.0, 2.0])


@pytest.mark.parametrize(
    "fields",
    [
        {"scale": (0.5, 0.4)},
        {"scale": (0.0, 0.4)},
        {"scale": (0.5, 1.1)},
        {"ratio": (0.0, 1.0)},
        {"blur": (0.1, 0.2, 0.3)},
        {"flip": 1.5},
        {"size": 0},
        {"count": -1},
        {"solarise": (0.1,)},
    ],
)
def test_crops__refuses(fields):
    with pytest.raises(ValidationError):
        Crops(**{"count": 2, "size": 32, "scale": (0.1, 1.0), **fields})


def test_crops__per_view_entries():
    crops = Crops(count=2, size=32, scale=(0.1, 1.0), blur=(0.25, 0.75), solarize=(0.5,))
    assert [crops.of_view("blur", v) for v in (0, 1)] == [0.25, 0.75]
    assert [crops.of_view("solarize", v) for v in (0, 1)] == [0.5, 0.5]


def test_masks__range_must_be_ordered():
    with pytest.raises(ValidationError, match="low <= high"):
        Masks(ratio=(0.5, 0.1))


def test_views__grid_is_of_the_global_crop():
    views = Views(crops={"global": Crops(count=2, size=96, scale=(0.3, 1.0))}, patch_size=8)
    assert views.grid == (12, 12)
