"""Corruptions against closed forms of what each does, and their independence of order."""

import colorsys
import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from raydino.curation.synthetic import builtin_images
from raydino.data.decode import decode
from raydino.evals.blurs import convolved, disk, trail
from raydino.evals.corruptions import KINDS, LEVELS, corrupt, jpeg_quality
from raydino.evals.weather import diamond_square


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    """Eight images of 64 pixels."""
    made = (Image.open(io.BytesIO(image.data)).convert("RGB") for image in builtin_images(train=8, test=0))
    return [np.asarray(image.resize((64, 64))) for image in made]


def flat(value: int, *, size: int = 224, channels: int = 3) -> np.ndarray:
    return np.full((size, size, channels), value, dtype=np.uint8)


@pytest.mark.parametrize("kind", KINDS)
def test_corrupt__goes_further_with_every_level(kind: str, images: list[np.ndarray]) -> None:
    def distance(level: int) -> float:
        found = [corrupt(image, kind, level, image_id=f"{i}") for i, image in enumerate(images)]
        return float(np.abs(np.subtract(found, images, dtype=float)).mean())

    away = [distance(level) for level in LEVELS]
    assert away[0] > 0.2
    assert all(np.diff(away) > 0), away


@pytest.mark.parametrize("kind", KINDS)
def test_corrupt__is_the_same_in_any_order_and_keeps_form(kind: str, images: list[np.ndarray]) -> None:
    first = corrupt(images[0], kind, 3, image_id=b"a")
    before = images[1].copy()
    corrupt(images[1], "frost", 1, image_id=b"b")
    np.random.default_rng().random()
    assert np.array_equal(first, corrupt(images[0], kind, 3, image_id=b"a"))
    assert np.array_equal(before, images[1]) and first.dtype == np.uint8 and first.shape == images[0].shape
    gray = corrupt(np.ascontiguousarray(images[0][:40, :33, :1]), kind, 5, image_id=b"a")
    assert gray.shape == (40, 33, 1)


DRAWN = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "glass_blur",
    "motion_blur",
    "snow",
    "frost",
    "fog",
    "elastic",
)


@pytest.mark.parametrize("kind", KINDS)
def test_corrupt__what_is_drawn_differs_by_image_and_seed(kind: str, images: list[np.ndarray]) -> None:
    by_key = [corrupt(images[2], kind, 3, image_id=key, seed=seed) for key, seed in (("a", 0), ("b", 0), ("a", 1))]
    for other in by_key[1:]:
        assert np.array_equal(by_key[0], other) == (kind not in DRAWN)


@pytest.mark.parametrize("level", LEVELS)
def test_noise__has_the_variance_of_its_law(level: int) -> None:
    for size in (224, 56):  # a quarter of the side: half the amplitude
        root = (size / 224) ** 0.5
        normal = corrupt(flat(128, size=size), "gaussian_noise", level, image_id="a") / 255 - 128 / 255
        sigma = (0.08, 0.12, 0.18, 0.26, 0.38)[level - 1] * root
        inside = np.clip(128 / 255 + sigma * np.random.default_rng(0).standard_normal(200_000), 0, 1)
        assert normal.std() == pytest.approx(inside.std(), rel=0.03)
        photons = (60, 25, 12, 5, 3)[level - 1] / root**2
        # Of a dark gray, so that few counts reach white: variance = mean / photons.
        shot = corrupt(flat(51, size=size), "shot_noise", level, image_id="a") / 255
        if photons > 10:
            assert shot.mean() == pytest.approx(0.2, rel=0.02)
            assert shot.var() == pytest.approx(0.2 / photons, rel=0.06)
        share = (0.03, 0.06, 0.09, 0.17, 0.27)[level - 1] * root
        impulse = corrupt(flat(128, size=size), "impulse_noise", level, image_id="a")
        assert (impulse == 0).mean() == pytest.approx(share / 2, rel=0.25)
        assert (impulse == 255).mean() == pytest.approx(share / 2, rel=0.25)
        assert set(np.unique(impulse)) == {0, 128, 255}


@pytest.mark.parametrize("level", LEVELS)
def test_brightness__raises_value_and_leaves_hue_and_saturation(level: int) -> None:
    raised = (0.1, 0.2, 0.3, 0.4, 0.5)[level - 1]
    colours = [(10, 200, 30), (120, 60, 60), (0, 0, 0), (255, 128, 0), (77, 77, 77), (3, 2, 1)]
    image = np.array([colours], dtype=np.uint8)
    for before, after in zip(colours, corrupt(image, "brightness", level, image_id="a")[0], strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in before))
        expected = colorsys.hsv_to_rgb(hue, saturation, min(1, value + raised))
        assert np.allclose(after, np.array(expected) * 255, atol=0.51)


def test_contrast__shrinks_what_is_left_of_the_mean(images: list[np.ndarray]) -> None:
    for level, share in zip(LEVELS, (0.4, 0.3, 0.2, 0.1, 0.05), strict=True):
        found = corrupt(images[0], "contrast", level, image_id="a").astype(float)
        expected = share * images[0].astype(float).std(axis=(0, 1))
        assert np.allclose(found.mean(axis=(0, 1)), images[0].mean(axis=(0, 1)), atol=0.5)
        assert np.allclose(found.std(axis=(0, 1)), expected, atol=0.5)


def test_pixelate__blocks_are_constant_and_hold_their_mean() -> None:
    image = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    for level, block in ((2, 2), (5, 4)):  # 1 / 0.5 and 1 / 0.25: whole blocks
        found = corrupt(image, "pixelate", level, image_id="a").astype(float)
        cells = found.reshape(224 // block, block, 224 // block, block, 3)
        assert (cells == cells[:, :1, :, :1]).all()
        means = image.reshape(cells.shape).astype(float).mean(axis=(1, 3))
        assert np.allclose(cells[:, 0, :, 0], means, atol=0.51)


def test_jpeg__is_pillows_at_the_published_quality(images: list[np.ndarray]) -> None:
    assert [jpeg_quality(1.0, level) for level in range(5)] == [25, 18, 15, 10, 7]
    # A sixteenth of the side: a quarter of the rounding. Steps of quality 25 are twice the base, a quarter of it half: 75.
    assert jpeg_quality(1 / 16, 0) == 75
    large = np.asarray(Image.fromarray(images[3]).resize((224, 224)))
    buffer = io.BytesIO()
    Image.fromarray(large).save(buffer, "JPEG", quality=10)
    assert np.array_equal(corrupt(large, "jpeg", 4, image_id="a"), decode(buffer.getvalue()))


def test_blurs__kernels_have_their_sum_size_and_direction() -> None:
    for radius in (1.4, 3.0, 10.0):
        kernel = disk(radius)
        squared = (np.indices(kernel.shape) - len(kernel) // 2) ** 2
        assert kernel.sum() == pytest.approx(1) and np.allclose(kernel, kernel[::-1].T)
        # Second moment of a disk, r²/4 along an axis, with what a pixel's width (1/12) and the soft edge (1/4) add.
        assert (kernel * squared[0]).sum() == pytest.approx(radius**2 / 4 + 1 / 12 + 1 / 4, rel=0.07)
    point = disk(0.4)  # within a pixel: the soft edge alone
    assert np.allclose(point, ndimage.gaussian_filter(np.eye(1, point.size, point.size // 2).reshape(point.shape), 0.5))
    right = trail(10, 1e6, 0)  # no fading: its mean is the middle of the line
    rows, columns = np.indices(right.shape) - len(right) // 2
    assert (right * columns).sum() == pytest.approx(5, abs=1e-6) and np.abs(right * rows).max() < 1e-9
    slanted = trail(10, 1e6, 30)
    assert (slanted * rows).sum() / (slanted * columns).sum() == pytest.approx(np.tan(np.pi / 6))


def test_convolved__is_the_sum_over_the_kernel() -> None:
    rng = np.random.default_rng(0)
    image, kernel = rng.random((9, 11, 2)), rng.random((5, 3))
    slow = np.stack([ndimage.convolve(image[..., c], kernel, mode="reflect") for c in range(2)], axis=2)
    assert np.allclose(convolved(image, kernel), slow)


@pytest.mark.parametrize("kind", ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "elastic", "pixelate"])
def test_corrupt__what_moves_pixels_leaves_one_colour(kind: str) -> None:
    assert np.array_equal(corrupt(flat(90, size=40), kind, 5, image_id="a"), flat(90, size=40))


def test_zoom__keeps_the_centre_and_draws_an_edge_outwards() -> None:
    image = flat(0, size=101)
    image[:, 60:] = 255
    found = corrupt(image, "zoom_blur", 5, image_id="a")
    # The edge, 10 pixels right of the centre, lies at 10 to 13 in the eleven enlargements.
    assert (found[:, :59] == 0).all() and (found[:, 64:] == 255).all() and 0 < found[50, 61, 0] < 255


def test_diamond_square__fills_0_to_1_and_is_rougher_for_a_lower_decay() -> None:
    def roughness(decay: float) -> float:
        field = diamond_square(60, 64, decay=decay, rng=np.random.default_rng(0))
        assert field.shape == (60, 64) and field.min() == 0 and field.max() == 1
        return float(np.abs(np.diff(field, axis=0)).mean())

    assert roughness(1.3) > roughness(2.0) > roughness(3.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "rain"}, "kind = 'rain': there is no such corruption; give one of gaussian_noise"),
        ({"level": 6}, "level = 6: give one of 1 to 5"),
        ({"image": np.zeros((4, 4, 3))}, "image: float64"),
        ({"image": np.zeros((4, 4, 2), dtype=np.uint8)}, "1 or 3 channels"),
    ],
)
def test_corrupt__refuses(change: dict, said: str) -> None:
    given = {"image": flat(1, size=4), "kind": "fog", "level": 1, "image_id": "a", **change}
    call: Callable[..., np.ndarray] = corrupt
    with pytest.raises(ValueError, match=said):
        call(given.pop("image"), given.pop("kind"), given.pop("level"), **given)
