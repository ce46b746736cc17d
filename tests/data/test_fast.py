"""The fast crops against the exact ones for the same draws, change by change and in their statistics; and closed forms."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from raydino.data import crops as exact
from raydino.data.crops import Cropper
from raydino.data.decode import Undecodable, decode
from raydino.data.draws import COUNT, JITTER_ORDERS, Draw, Jitter, draw_view
from raydino.data.fast import MipMap, colour_map, fast_view, least_side
from raydino.methods.config import DINOv2Config
from raydino.nn.config import BackboneConfig
from raydino.views import Crops, Views

PLAIN = {"flip": 0, "jitter": 0, "gray": 0, "blur": (0,), "solarize": (0,)}
STILL = Jitter((0, 1, 2, 3), (1.0, 1.0, 1.0), 0.0)


def photo(seed, rows=240, columns=320):
    """Colours and detail of all sizes, amplitudes falling with the frequency as in photographs."""
    draw = np.random.default_rng(seed)
    total = np.zeros((rows, columns, 3))
    for size in (3, 6, 12, 24, 48, 96):
        coarse = draw.normal(0, 1 / size, (size, size * 4 // 3, 3)).astype(np.float32)
        total += np.stack(
            [
                np.asarray(Image.fromarray(coarse[..., c]).resize((columns, rows), Image.Resampling.BICUBIC))
                for c in range(3)
            ],
            axis=2,
        )
    return np.clip(110 + 60 * total / total.std(), 0, 255).astype(np.uint8)


def pairs(change, *, size=96, scale=(0.2, 1.0)):
    """Exact and fast crops, float [N, size, size, 3], of the same draws, each changed by `change(draw, generator)`."""
    group, draws = Crops(count=1, size=size, scale=scale, **PLAIN), np.random.default_rng(0)
    found = []
    for seed in range(12):
        image = photo(seed)
        draw = change(draw_view(*image.shape[:2], group, 0, draws.random(COUNT).tolist()), draws)
        found.append((exact._view(image, draw, group), fast_view(MipMap(image), draw, group)))
    a, b = (np.stack(side).astype(float) for side in zip(*found, strict=True))
    return a, b


def jittered(draw: Draw, **fields) -> Draw:
    return replace(draw, jitter=replace(STILL, **fields))


CHANGES = {
    "size": (lambda draw, _: draw, 5),
    "flip": (lambda draw, _: replace(draw, flip=True), 5),
    "brightness": (lambda draw, at: jittered(draw, factors=(at.uniform(0.6, 1.4), 1.0, 1.0)), 5),
    "contrast": (lambda draw, at: jittered(draw, factors=(1.0, at.uniform(0.6, 1.4), 1.0)), 5),
    "saturation": (lambda draw, at: jittered(draw, factors=(1.0, 1.0, at.uniform(0.8, 1.2))), 5),
    "hue": (lambda draw, at: jittered(draw, hue=at.uniform(-0.1, 0.1)), 12),
    "gray": (lambda draw, _: replace(draw, gray=True), 5),
    "blur": (lambda draw, at: replace(draw, sigma=at.uniform(0.1, 2.0)), 5),
    "solarize": (lambda draw, _: replace(draw, solarize=True), 6),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("size", [32, 96])
def test_fast_view__is_near_the_exact_one(name: str, size: int):
    change, most = CHANGES[name]
    a, b = pairs(change, size=size)
    assert a.shape == b.shape == (12, size, size, 3)
    assert np.abs(a - b).mean() < most  # grey levels; of two crops of one image it is about 40
    assert abs(a.mean() - b.mean()) < 2 and abs(a.std() - b.std()) < 2


@pytest.mark.parametrize("size", [16, 32, 96, 200])
def test_fast_view__keeps_as_much_detail_as_the_exact_one(size: int):
    """More would be aliasing, less a blur; the images shrink 1 to 15 times, or grow."""
    a, b = (np.abs(np.diff(side, axis=1)).mean() for side in pairs(lambda draw, _: draw, size=size))
    assert 0.85 < b / a < 1.15


def test_fast_view__shrinking_does_not_alias():
    stripes = np.zeros((96, 96, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    draw = Draw(0, 0, 96, 96, flip=False, jitter=None, gray=False, sigma=None, solarize=False)
    shrunk = fast_view(MipMap(stripes), draw, Crops(count=1, size=21, scale=(1, 1), **PLAIN))
    assert abs(shrunk.mean() - 127.5) < 1 and shrunk.std() < 16


@pytest.mark.parametrize("order", JITTER_ORDERS[::5])
def test_colour_map__is_the_changes_one_after_another(order: tuple[int, ...]):
    """For colours that nothing clips, each change with its own definition."""
    draws = np.random.default_rng(1)
    colours = draws.uniform(80, 150, (50, 3))
    jitter = Jitter(order, (1.1, 0.8, 1.2), 0.07)
    luma, axis = np.array([0.299, 0.587, 0.114]), np.ones(3) / np.sqrt(3)
    angle, expected = 2 * np.pi * jitter.hue, colours
    for number in order:
        grey = (expected @ luma)[:, None]
        if number == 0:
            expected = expected * 1.1
        elif number == 1:
            expected = 0.8 * expected + 0.2 * grey.mean()
        elif number == 2:
            expected = 1.2 * expected - 0.2 * grey
        else:  # Rodrigues
            along = (expected @ axis)[:, None] * axis
            expected = expected * np.cos(angle) + np.cross(axis, expected) * np.sin(angle) + along * (1 - np.cos(angle))
    draw = Draw(0, 0, 1, 1, flip=False, jitter=jitter, gray=False, sigma=None, solarize=False)
    found = colour_map(draw, colours.mean(axis=0).tolist())
    np.testing.assert_allclose(colours @ found[:, :3].T + found[:, 3], expected, atol=1e-9)
    gray = colour_map(replace(draw, gray=True), colours.mean(axis=0).tolist())
    np.testing.assert_allclose(
        colours @ gray[:, :3].T + gray[:, 3], np.repeat(expected @ luma, 3).reshape(-1, 3), atol=1e-9
    )


def test_cropper__fast_and_exact_draw_the_same():
    views = Views(
        crops={
            "global": Crops(count=2, size=64, scale=(0.3, 1), hue=0),
            "local": Crops(count=3, size=32, scale=(0.1, 0.3)),
        }
    )
    image = photo(0)
    a, b = (
        Cropper(views.override({"fast_crops": fast}), seed=1)(image, epoch=0, sample=b"a") for fast in (False, True)
    )
    for name in views.crops:
        assert np.abs(a[name].astype(int) - b[name]).mean() < 12
        assert (a[name] != b[name]).any()


@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("shape", [(1, 1), (5, 90), (200, 3), (64, 64)])
def test_cropper__fast_takes_any_shape_and_number_of_channels(channels: int, shape: tuple[int, int]):
    views = Views(
        crops={"global": Crops(count=4, size=24, scale=(0.3, 1), jitter=1, blur=(1,), solarize=(1,))}, channels=channels
    )
    image = np.random.default_rng(0).integers(0, 256, (*shape, channels), dtype=np.uint8)
    cut = Cropper(views.override({"fast_crops": True}), seed=0)(image, epoch=0, sample=b"a")["global"]
    assert cut.shape == (4, channels, 24, 24)


def test_decode__large_photographs_at_a_part_of_their_size():
    image = photo(3, 1200, 1600)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=90)
    data = buffer.getvalue()
    assert [decode(data, least=least).shape for least in (0, 601, 600, 301, 300, 150, 10)] == [
        *[(1200, 1600, 3)] * 2,
        *[(600, 800, 3)] * 2,
        (300, 400, 3),
        *[(150, 200, 3)] * 2,
    ]
    half = np.asarray(Image.fromarray(image).reduce(2)).astype(int)
    assert np.abs(decode(data, least=600) - half).mean() < 2
    with pytest.raises(Undecodable, match="truncated"):
        decode(data[: len(data) // 2], least=300)


def test_least_side__no_view_of_a_smaller_decode_is_enlarged():
    views = DINOv2Config().views(BackboneConfig(patch_size=16))
    least = least_side(views)
    assert least == 430  # 96 pixels of a twentieth of the area
    for group in views.crops.values():
        assert least * group.scale[0] ** 0.5 >= group.height
