"""Crops, against PIL's arithmetic, against the rates and ranges they are configured with, and against themselves elsewhere."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from raydino.data.crops import Cropper
from raydino.methods.config import DINOConfig, DINOv2Config
from raydino.nn.config import BackboneConfig
from raydino.views import Crops, Views

PLAIN = {"flip": 0, "jitter": 0, "gray": 0, "blur": (0,), "solarize": (0,)}
DRAWS = 2000


def photo(rows=90, columns=120, seed=0):
    """A smooth random picture: resampling noise would tell nothing about photographs."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((columns, rows), Image.Resampling.BICUBIC))


def whole(size, **changes):
    """A cropper of one view that takes the whole of a square image, with only `changes` switched on."""
    crops = Crops(count=1, size=size, scale=(1, 1), ratio=(1, 1), **{**PLAIN, **changes})
    return Cropper(Views(crops={"global": crops}), seed=0)


def view(cropper, image, sample=b"a"):
    return cropper(image, epoch=0, sample=sample)["global"][0].transpose(1, 2, 0)


def rate(cropper, image, differs):
    return np.mean([differs(view(cropper, image, b"%d" % number)) for number in range(DRAWS)])


def within(share, probability):
    """Five standard deviations of a binomial share."""
    return abs(share - probability) <= 5 * math.sqrt(probability * (1 - probability) / DRAWS) + 1e-12


def test_cropper__sizes_and_types():
    views = Views(
        crops={
            "global": Crops(count=2, size=32, scale=(0.3, 1), solarize=(0, 0.2), blur=(0.0, 0.9)),
            "local": Crops(count=3, size=16, scale=(0.05, 0.3)),
            "none": Crops(count=0, size=8, scale=(0.1, 0.2)),
        }
    )
    for shape in ((90, 120), (1, 1), (5, 400), (16, 16), (400, 3)):
        image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
        crops = Cropper(views, seed=0)(image, epoch=0, sample=b"a")
        assert {name: crop.shape for name, crop in crops.items()} == {
            "global": (2, 3, 32, 32),
            "local": (3, 3, 16, 16),
            "none": (0, 3, 8, 8),
        }
        assert all(crop.dtype == np.uint8 and crop.flags.c_contiguous for crop in crops.values())


def test_cropper__same_on_any_thread_in_any_order():
    views = Views(crops={"global": Crops(count=2, size=24, scale=(0.3, 1), solarize=(0, 0.5))})
    cropper, images = Cropper(views, seed=5), [photo(seed=number) for number in range(40)]

    def cut(number):
        return cropper(images[number], epoch=3, sample=b"%d" % number)["global"].tobytes()

    one_by_one = [cut(number) for number in range(40)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(cut, reversed(range(40)))) == one_by_one[::-1]


def test_cropper__seed_epoch_sample_and_view_change_the_crop():
    views = Views(crops={"global": Crops(count=2, size=24, scale=(0.3, 0.5))})
    image = photo()
    first = Cropper(views, seed=0)(image, epoch=0, sample=b"a")["global"]
    assert (first[0] != first[1]).any()
    for seed, epoch, sample in ((1, 0, b"a"), (0, 1, b"a"), (0, 0, b"b")):
        assert (Cropper(views, seed=seed)(image, epoch=epoch, sample=sample)["global"] != first).any()


def test_cropper__photometric_settings_leave_the_boxes_alone():
    image = photo()
    plain = Crops(count=1, size=24, scale=(0.3, 0.5), **PLAIN)
    inverted = plain.override({"solarize": (1.0,)})
    a, b = (view(Cropper(Views(crops={"global": crops}), seed=0), image) for crops in (plain, inverted))
    assert (b == np.asarray(ImageOps.solarize(Image.fromarray(a), 128))).all()


@pytest.mark.parametrize("size", [16, 30, 64, 90, 150])
def test_cropper__resizes_like_pil_bicubic(size):
    image = photo(90, 90)
    expected = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)).astype(float)
    error = np.abs(view(whole(size), image) - expected)
    assert error.mean() < 2.5 and np.quantile(error, 0.99) < 8


def test_cropper__shrinking_does_not_alias():
    """One-pixel stripes have no frequency that a quarter of the size can hold: the result is flat gray."""
    stripes = np.zeros((96, 96, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    shrunk = view(whole(21), stripes).astype(float)
    assert abs(shrunk.mean() - 127.5) < 1 and shrunk.std() < 16  # a plain bicubic sampling gives a deviation above 60


def test_cropper__whole_image_of_the_same_size_is_unchanged():
    image = photo(48, 48)
    assert (view(whole(48), image) == image).all()


def test_cropper__flip_rate():
    image = photo(8, 8)
    cropper = whole(8, flip=0.5)
    assert all((crop == image).all() or (crop == image[:, ::-1]).all() for crop in [view(cropper, image)])
    assert within(rate(cropper, image, lambda crop: (crop != image).any()), 0.5)


def test_cropper__gray_rate_and_values():
    image = photo(8, 8)
    cropper = whole(8, gray=0.2)
    assert within(rate(cropper, image, lambda crop: (crop != image).any()), 0.2)
    expected = np.asarray(Image.fromarray(image).convert("L"), dtype=int)[..., None]
    assert np.abs(view(whole(8, gray=1), image) - expected).max() <= 1


@pytest.mark.parametrize("probability", [0.1, 0.9])
def test_cropper__blur_rate(probability):
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    cropper = whole(16, blur=(probability,), blur_sigma=(1, 2))
    assert within(rate(cropper, image, lambda crop: (crop != image).any()), probability)


def test_cropper__blur_is_a_gaussian_of_the_sigma_asked_for():
    point = np.zeros((33, 33, 3), dtype=np.uint8)
    point[16, 16] = 255
    blurred = view(whole(33, blur=(1,), blur_sigma=(1, 1)), point)[16, :, 0].astype(float)
    offsets = np.arange(33) - 16
    expected = 255 * np.exp(-(offsets**2) / 2) / np.exp(-(np.arange(-4, 5) ** 2) / 2).sum() ** 2
    assert np.abs(blurred - np.where(abs(offsets) <= 4, expected, 0)).max() <= 1
    smooth = photo(33, 33)
    pil = np.asarray(Image.fromarray(smooth).filter(ImageFilter.GaussianBlur(1))).astype(float)
    assert np.abs(view(whole(33, blur=(1,), blur_sigma=(1, 1)), smooth) - pil)[4:-4, 4:-4].mean() < 2


def test_cropper__solarize_rate_and_threshold():
    ramp = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    expected = np.asarray(ImageOps.solarize(Image.fromarray(ramp), threshold=128))
    assert (view(whole(16, solarize=(1,)), ramp) == expected).all()
    assert within(rate(whole(16, solarize=(0.2,)), ramp, lambda crop: (crop != ramp).any()), 0.2)


def test_cropper__per_view_rates():
    views = Views(crops={"global": Crops(count=2, size=16, scale=(1, 1), **{**PLAIN, "solarize": (0.0, 1.0)})})
    first, second = Cropper(views, seed=0)(np.full((16, 16, 3), 200, np.uint8), epoch=0, sample=b"a")["global"]
    assert (first == 200).all() and (second == 55).all()


def test_cropper__jitter_rate_and_ranges():
    image = np.full((8, 8, 3), 100, dtype=np.uint8)
    only_brightness = {"brightness": 0.4, "contrast": 0, "saturation": 0, "hue": 0}
    values = np.array([view(whole(8, jitter=0.8, **only_brightness), image, b"%d" % n)[0, 0, 0] for n in range(DRAWS)])
    assert within((values != 100).mean(), 0.8 * (1 - 1 / 80))  # one value of about 80 is 100 again
    changed = values[values != 100]
    assert 60 <= changed.min() <= 61 and 139 <= changed.max() <= 140
    assert changed.mean() == pytest.approx(100, abs=5 * 80 / math.sqrt(12 * len(changed)))


@pytest.mark.parametrize(
    ("name", "enhance"),
    [("brightness", ImageEnhance.Brightness), ("contrast", ImageEnhance.Contrast), ("saturation", ImageEnhance.Color)],
)
def test_cropper__jitter_is_pils_enhancement_for_some_factor_in_range(name, enhance):
    image = photo(24, 24)
    spreads = {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0, name: 0.4}
    for number in range(5):
        crop = view(whole(24, jitter=1, **spreads), image, b"%d" % number).astype(float)
        candidates = [enhance(Image.fromarray(image)).enhance(factor) for factor in np.linspace(0.6, 1.4, 161)]
        assert min(np.abs(crop - np.asarray(candidate)).mean() for candidate in candidates) < 1.5


def test_cropper__hue_keeps_gray_and_turns_colours():
    gray, red = np.full((8, 8, 3), 90, np.uint8), np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 200
    spreads = {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0.1}
    assert (view(whole(8, jitter=1, **spreads), gray) == 90).all()
    turned = np.stack([view(whole(8, jitter=1, **spreads), red, b"%d" % n)[0, 0] for n in range(200)]).astype(int)
    assert (turned.max(1) >= 198).all() and (turned[:, 1:].min(1) <= 2).all()
    assert (
        100 < turned[:, 1].max() <= 122 and 100 < turned[:, 2].max() <= 122
    )  # a tenth of the circle is 0.6 · 200 = 120


def test_cropper__boxes_have_the_area_and_aspect_asked_for():
    """Column and row numbers as colours: the crop's own corners tell which box was cut."""
    ramp = np.zeros((256, 256, 3), dtype=np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(256), np.arange(256)[:, None]
    crops = Crops(count=1, size=64, scale=(0.1, 0.5), **PLAIN)
    cropper = Cropper(Views(crops={"global": crops}), seed=0)
    spans = []
    for number in range(DRAWS):
        crop = view(cropper, ramp, b"%d" % number).astype(float)
        spans.append([(crop[32, 48, 0] - crop[32, 16, 0]) * 2, (crop[48, 32, 1] - crop[16, 32, 1]) * 2])
    widths, heights = np.array(spans).T
    areas, ratios = widths * heights / 256**2, np.log(widths / heights)
    quantiles = np.quantile(areas, [0.02, 0.25, 0.5, 0.75, 0.98])
    assert np.abs(quantiles - np.array([0.108, 0.2, 0.3, 0.4, 0.492])).max() < 0.02
    assert np.abs(np.quantile(ratios, [0.25, 0.5, 0.75]) - np.log(4 / 3) * np.array([-0.5, 0, 0.5])).max() < 0.04


def test_cropper__writes_into_a_batch():
    views = Views(crops={"global": Crops(count=2, size=16, scale=(0.3, 1))})
    cropper, image = Cropper(views, seed=0), photo()
    batch = np.zeros((2, 3, 3, 16, 16), dtype=np.uint8)
    cropper.cut(image, epoch=0, sample=b"a", out={"global": batch[:, 1]})
    assert (batch[:, 1] == cropper(image, epoch=0, sample=b"a")["global"]).all()
    assert not batch[:, [0, 2]].any()


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
)
def test_cropper__refuses_what_is_not_an_image(image):
    with pytest.raises(ValueError, match="uint8"):
        whole(8)(image, epoch=0, sample=b"a")


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_cropper__any_number_of_channels_gets_the_same_boxes_and_its_own_values(channels):
    """Without photometric changes every channel is cut as it would be alone."""
    crops = Crops(count=3, size=(20, 32), scale=(0.2, 1), **{**PLAIN, "flip": 0.5})
    image = np.stack([photo(seed=number)[..., 0] for number in range(channels)], axis=2)
    cut = Cropper(Views(crops={"global": crops}, channels=channels), seed=3)(image, epoch=0, sample=b"a")["global"]
    assert cut.shape == (3, channels, 20, 32)
    alone = Cropper(Views(crops={"global": crops}, channels=1), seed=3)
    for number in range(channels):
        one = alone(image[..., number : number + 1], epoch=0, sample=b"a")["global"]
        np.testing.assert_array_equal(cut[:, number], one[:, 0])


@pytest.mark.parametrize("channels", [1, 4])
def test_cropper__other_images_than_rgb_keep_brightness_contrast_blur_and_solarisation(channels):
    image = np.stack([photo(64, 64, seed=number)[..., 0] for number in range(channels)], axis=2) // 3 + 90

    def cut(**changes):
        crops = Crops(count=1, size=64, scale=(1, 1), ratio=(1, 1), **{**PLAIN, **changes})
        return Cropper(Views(crops={"global": crops}, channels=channels), seed=0)(image, epoch=0, sample=b"a")[
            "global"
        ][0]

    plain = cut().transpose(1, 2, 0)
    np.testing.assert_array_equal(plain, image)
    np.testing.assert_array_equal(cut(gray=1).transpose(1, 2, 0), image)
    np.testing.assert_array_equal(
        cut(jitter=1, brightness=0, contrast=0, saturation=0.9, hue=0.5).transpose(1, 2, 0), image
    )
    solarized = cut(solarize=(1,)).transpose(1, 2, 0)
    np.testing.assert_array_equal(solarized, np.where(image >= 128, 255 - image, image))
    contrast = cut(jitter=1, brightness=0, contrast=0.5, saturation=0, hue=0).transpose(1, 2, 0).astype(float)
    factor = contrast.std() / image.std()
    expected = np.clip(image * factor + image.mean() * (1 - factor), 0, 255)
    assert 0.5 <= factor <= 1.5 and np.abs(contrast - expected).max() <= 3
    blurred = cut(blur=(1,), blur_sigma=(2, 2)).transpose(1, 2, 0)
    assert np.abs(np.diff(blurred.astype(int), axis=0)).mean() < np.abs(np.diff(image.astype(int), axis=0)).mean()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "blur"),
    [
        (DINOv2Config(), (0.0, 0.9, 0.5)),
        (DINOv2Config(blur="paper"), (1.0, 0.1, 0.5)),
        (DINOConfig(), (1.0, 0.1, 0.5)),
    ],
    ids=["dinov2_official", "dinov2_paper", "dino"],
)
def test_cropper__published_rates_over_ten_thousand_crops(config, blur):
    """What comes out is counted: colour gone, inverted, an edge softened (where it is not inverted too), flipped."""
    draws, solarize = 10_000, (0.0, 0.2, 0.0)
    small = {"size": 8, "scale": (1, 1), "ratio": (1, 1), "jitter": 0, "blur_sigma": (1.5, 2.0)}
    views = config.views(BackboneConfig(patch_size=8))
    views = views.override({"crops.global": small, "crops.local": {**small, "count": 1, "blur": (blur[2],)}})
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    image[:, 4:] = (250, 150, 200)
    cropper, counts = Cropper(views, seed=0), np.zeros((3, 4))
    for number in range(draws):
        cut = cropper(image, epoch=0, sample=b"%d" % number)
        for at, crop in enumerate([*cut["global"], *cut["local"]]):
            left, right = crop[:, 0, 0].astype(int), crop[:, 0, -1].astype(int)
            flipped = crop[:, 0, :4].sum() > crop[:, 0, 4:].sum()
            middle = crop[0, 0, 3:5].astype(int)
            softened = abs(middle[0] - middle[1]) < 0.9 * abs(left[0] - right[0])
            bright = left if flipped else right
            counts[at] += (len(set(bright.tolist())) == 1, bright[0] < 100, softened and bright[0] >= 100, flipped)
    rates = counts / draws
    for at in range(3):
        kept = 1 - solarize[at]
        for measured, expected in zip(rates[at], (0.2, solarize[at], blur[at] * kept, 0.5), strict=True):
            assert abs(measured - expected) <= 5 * math.sqrt(max(expected * (1 - expected), 1e-4) / draws), (at, rates)


@pytest.mark.parametrize(("height", "width"), [(16, 32), (36, 24)])
def test_cropper__a_view_that_is_not_square_is_not_squashed(height, width):
    """With ratio 1 the box has the view's own shape, so a disc stays round."""
    y, x = np.mgrid[:200, :200]
    disc = np.repeat((255 * ((y - 100) ** 2 + (x - 100) ** 2 < 30**2)).astype(np.uint8)[..., None], 3, axis=2)
    crops = Crops(count=1, size=(height, width), scale=(0.24, 0.26), ratio=(1, 1), **PLAIN)
    cropper = Cropper(Views(crops={"global": crops}), seed=0)
    seen = [
        cut
        for n in range(300)
        if (cut := view(cropper, disc, b"%d" % n)[..., 0])[[0, -1]].max() == 0 and cut[:, [0, -1]].max() == 0
    ]
    measured = [((cut > 127).any(axis=1).sum(), (cut > 127).any(axis=0).sum()) for cut in seen if (cut > 127).any()]
    assert measured and all(abs(high - wide) <= 2 for high, wide in measured)
