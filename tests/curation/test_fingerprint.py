"""Fingerprints against the specification written out slowly, and against what the same picture may go through."""

import hashlib
import io

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from raydino.curation.fingerprint import CROPS, MIRROR, PICTURE, SPANS, fingerprint
from raydino.curation.synthetic import scene


def distance(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.bitwise_count(one ^ other).sum())


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def resized(image: np.ndarray, factor: float) -> np.ndarray:
    size = (round(image.shape[1] * factor), round(image.shape[0] * factor))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def cut(image: np.ndarray, share: float) -> np.ndarray:
    """A crop off the centre that keeps `share` of the area."""
    height, width = (round(side * share**0.5) for side in image.shape[:2])
    return image[image.shape[0] - height :, :width]


TRANSFORMS = {
    "jpeg_50": lambda image: jpeg(image, 50),
    "jpeg_15": lambda image: jpeg(image, 15),
    "half": lambda image: resized(image, 0.5),
    "double": lambda image: resized(image, 2.0),
    "squashed": lambda image: np.asarray(Image.fromarray(image).resize((100, 100))),
    "grey": lambda image: np.asarray(Image.fromarray(image).convert("L").convert("RGB")),
    "brighter": lambda image: np.asarray(ImageEnhance.Brightness(Image.fromarray(image)).enhance(1.3)),
    "less_contrast": lambda image: np.asarray(ImageEnhance.Contrast(Image.fromarray(image)).enhance(0.6)),
    "blurred": lambda image: np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(1.5))),
    "noisy": lambda image: np.clip(image + np.random.default_rng(1).normal(0, 12, image.shape), 0, 255).astype(
        np.uint8
    ),
    "mirrored": lambda image: np.ascontiguousarray(image[:, ::-1]),
    "cropped_5": lambda image: np.ascontiguousarray(cut(image, 0.95)),
    "border_5": lambda image: np.pad(image, ((5, 5), (5, 5), (0, 0)), constant_values=255),
}


def apart(one: np.ndarray, other: np.ndarray) -> int:
    """Least distance between the whole or the picture of either and any key of the other."""
    a, b = fingerprint(one).hashes, fingerprint(other).hashes
    return min(distance(x[view], key) for x, y in ((a, b), (b, a)) for view in (0, PICTURE) for key in y)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_fingerprint__the_same_picture_stays_within_the_radius(name: str):
    found = [apart(scene(seed), TRANSFORMS[name](scene(seed))) for seed in range(20)]
    assert np.mean(np.array(found) <= 48) >= 0.95, found


def test_fingerprint__other_pictures_are_far_away():
    prints = [fingerprint(scene(seed)) for seed in range(40)]
    least = min(
        distance(one.hashes[0], key)
        for i, one in enumerate(prints)
        for j, other in enumerate(prints)
        if i != j
        for key in other.hashes
    )
    assert least > 64


@pytest.mark.parametrize("crop", range(len(CROPS)))
def test_fingerprint__hash_is_the_sign_of_a_slow_cosine_transform(crop: int):
    """Sums over the definition on a 32 times finer grid, where the integral over a crop is a plain mean."""
    grey, fine = scene(0, height=50, width=70)[..., 0], 32
    coefficients = np.kron(grey, np.ones((fine, fine)))
    for axis, span in enumerate(CROPS[crop]):
        begin, length = SPANS[span]
        points = (np.arange(coefficients.shape[axis]) + 0.5) / coefficients.shape[axis]
        x = (points - begin) / length
        waves = np.stack([np.cos(np.pi * f * x) * np.sqrt(1 if f == 0 else 2) for f in range(16)])
        weights = waves * ((x >= 0) & (x < 1)) / (len(points) * length)
        coefficients = np.tensordot(weights, coefficients, (1, axis)).swapaxes(0, axis)
    others = coefficients.reshape(-1)[1:]
    bits = (coefficients > np.median(others) + (others**2).sum() ** 0.5 / 256).reshape(-1)
    found = np.unpackbits(fingerprint(np.repeat(grey[..., None], 3, axis=2)).hashes[crop]).astype(bool)
    assert (found != bits).sum() <= 2  # a grid is not quite an integral, and a crop may begin within a cell of it


def test_fingerprint__symmetric_pictures_keep_their_bits_through_compression():
    """Half of their coefficients are near 0; noise must not decide those bits."""
    for seed in range(8):
        half = scene(seed, height=120, width=80)
        image = np.concatenate([half, half[:, ::-1]], axis=1)
        assert distance(fingerprint(image).hashes[0], fingerprint(jpeg(image, 60)).hashes[0]) <= 16


def test_fingerprint__large_images_are_averaged_in_blocks_first():
    image = scene(3, height=521, width=770)  # blocks of 4 leave 1 row and 2 columns over
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[:520, 1:769].astype(float)
    means = np.rint(grey.reshape(130, 4, 192, 4).mean((1, 3))).astype(np.uint8)
    found, expected = fingerprint(image), fingerprint(np.repeat(means[..., None], 3, axis=2))
    assert max(distance(a, b) for a, b in zip(found.hashes, expected.hashes, strict=True)) <= 2
    assert found.sharpness == pytest.approx(expected.sharpness, rel=0.02)


def test_fingerprint__mirror_key_is_the_hash_of_the_mirror_image():
    image = scene(0, height=64, width=64)
    mirrored = fingerprint(np.ascontiguousarray(image[:, ::-1]))
    assert distance(fingerprint(image).hashes[MIRROR], mirrored.hashes[0]) <= 2


def test_fingerprint__crop_keys_are_the_hashes_of_crops():
    image = scene(0, height=120, width=120)
    for key, (vertical, horizontal) in enumerate(CROPS):
        top, left = (round(SPANS[span][0] * 120) for span in (vertical, horizontal))
        height, width = (round(SPANS[span][1] * 120) for span in (vertical, horizontal))
        crop = np.ascontiguousarray(image[top : top + height, left : left + width])
        assert distance(fingerprint(image).hashes[key], fingerprint(crop).hashes[0]) <= 2


@pytest.mark.parametrize("colour", [0, 255])
def test_fingerprint__picture_is_what_a_border_surrounds(colour: int):
    image = scene(5, height=90, width=120)
    framed = np.pad(image, ((9, 15), (0, 24), (0, 0)), constant_values=colour)
    found, bare = fingerprint(framed), fingerprint(image)
    assert bare.picture is None and found.picture is not None
    assert distance(found.hashes[PICTURE], bare.hashes[0]) <= 16 < distance(found.hashes[0], bare.hashes[0])
    assert np.corrcoef(found.picture.reshape(-1), bare.thumb.reshape(-1))[0, 1] > 0.98


def test_fingerprint__a_flat_half_is_no_border():
    image = scene(5, height=90, width=120)
    image[:40] = 200
    assert fingerprint(image).picture is None
    assert fingerprint(np.full((90, 120, 3), 200, np.uint8)).picture is None


def test_fingerprint__fineness_tells_enlarged_images():
    """Against the definition in loops; and enlarging must lower it far below what the picture had."""
    rng = np.random.default_rng(0)
    photo = np.clip(scene(2, height=90, width=120) + rng.normal(0, 12, (90, 120, 3)), 0, 255).astype(np.uint8)
    grey = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY).astype(int)
    energy = {1: 0, 2: 0}
    for lines in (grey, grey.T):
        for line in lines.T:
            for at in range(2, len(line) - 2):
                for step in energy:
                    energy[step] += (line[at - step] - 2 * line[at] + line[at + step]) ** 2
    assert fingerprint(photo).fineness == pytest.approx(energy[1] / energy[2], rel=1e-5)
    assert fingerprint(resized(photo, 2)).fineness < 0.5 * fingerprint(photo).fineness
    assert fingerprint(np.full((9, 9, 3), 7, np.uint8)).fineness == fingerprint(photo[:3, :3].copy()).fineness == 1.0


def test_fingerprint__test_vectors():
    """What docs/curation.md publishes; a change of any of these is another specification."""
    cells = np.frombuffer(b"".join(hashlib.sha256(bytes([i])).digest() for i in range(24)), np.uint8).reshape(3, 16, 16)
    image = np.ascontiguousarray(np.kron(cells, np.ones((1, 8, 10), np.uint8)).transpose(1, 2, 0))
    found = fingerprint(image)
    assert hashlib.sha256(found.hashes.tobytes()).hexdigest()[:16] == VECTORS["hashes"]
    assert found.pixels.hex() == VECTORS["pixels"]
    assert found.hashes[0].tobytes().hex() == VECTORS["whole"]


VECTORS = {
    "hashes": "71c5ebe5c6af8dfb",
    "pixels": "2e598312df2d0aa1fdc2d591e183b1fc",
    "whole": "8fe518008fd22372e73e612ae79174a6da2a62bed0d1dd1eb226b0666284cf96",
}


def test_fingerprint__scores_of_known_images():
    flat = fingerprint(np.full((40, 60, 3), 128, np.uint8))
    assert (flat.mean, flat.std, flat.entropy, flat.sharpness) == (128, 0, 0, 0)
    assert not flat.comparable
    board = np.kron(np.indices((8, 8)).sum(0) % 2 * 255, np.ones((8, 8))).astype(np.uint8)
    chess = fingerprint(np.repeat(board[..., None], 3, axis=2))
    assert chess.mean == 127.5 and chess.std == 127.5 and chess.entropy == pytest.approx(1.0)
    assert fingerprint(scene(0)).comparable
    sharp = scene(0)
    soft = np.asarray(Image.fromarray(sharp).filter(ImageFilter.GaussianBlur(4)))
    assert fingerprint(sharp).sharpness > 2 * fingerprint(soft).sharpness


def test_fingerprint__equal_pixels_meet_whatever_the_file_was():
    image = scene(0)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    assert fingerprint(np.asarray(Image.open(buffer))).pixels == fingerprint(image).pixels
    turned = np.ascontiguousarray(image.transpose(1, 0, 2))
    assert fingerprint(turned.reshape(image.shape)).pixels != fingerprint(turned).pixels


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), float), np.zeros((0, 4, 3), np.uint8)]
)
def test_fingerprint__refuses_what_is_no_image(image: np.ndarray):
    with pytest.raises(ValueError, match="must be uint8"):
        fingerprint(image)


def test_fingerprint__colours_tells_grey_and_palettes():
    photo = scene(3, height=200, width=260)
    seen = {tuple(pixel) for pixel in photo[::3, ::4].reshape(-1, 3).tolist()}
    assert fingerprint(photo).colours == len(seen) > 1000
    grey = np.asarray(Image.fromarray(photo).convert("L").convert("RGB"))
    palette = np.asarray(Image.fromarray(photo).quantize(64).convert("RGB"))
    assert fingerprint(grey).colours <= 256 and fingerprint(palette).colours <= 64


def test_fingerprint__inside_is_the_share_without_the_border():
    photo = scene(3, height=200, width=300)
    framed = np.full((240, 400, 3), 255, np.uint8)
    framed[20:220, 50:350] = photo
    assert fingerprint(photo).inside == 1.0
    assert (
        0.6 < fingerprint(framed).inside < 200 * 300 / (240 * 400)
    )  # a row and a column more are left off at each end
