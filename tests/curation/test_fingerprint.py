"""Fingerprints against the specification written out slowly, and against what the same picture may go through."""

import hashlib
import io

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from raydino.curation.fingerprint import KEYS, SIDE, fingerprint
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
    """Least distance between the whole of either and any key of the other."""
    a, b = fingerprint(one).hashes, fingerprint(other).hashes
    return min(*(distance(a[0], key) for key in b), *(distance(b[0], key) for key in a))


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


def test_fingerprint__hash_is_the_sign_of_a_slow_cosine_transform():
    """Nested loops over the definition, on an image that needs no resizing."""
    grey = scene(0, height=SIDE, width=SIDE)[..., 0]
    image = np.repeat(grey[..., None], 3, axis=2)
    place = np.arange(SIDE)
    coefficients = np.empty((16, 16))
    for u in range(16):
        for v in range(16):
            down = np.cos(np.pi * u * (2 * place + 1) / (2 * SIDE)) * np.sqrt((1 if u == 0 else 2) / SIDE)
            along = np.cos(np.pi * v * (2 * place + 1) / (2 * SIDE)) * np.sqrt((1 if v == 0 else 2) / SIDE)
            coefficients[u, v] = (grey * down[:, None] * along[None]).sum()
    others = coefficients.reshape(-1)[1:]
    margin = 0.25 * (others**2).sum() ** 0.5 / SIDE
    bits = (coefficients > np.median(others) + margin).reshape(-1)
    np.testing.assert_array_equal(np.unpackbits(fingerprint(image).hashes[0]).astype(bool), bits)


def test_fingerprint__symmetric_pictures_keep_their_bits_through_compression():
    """Half of their coefficients are near 0; noise must not decide those bits."""
    for seed in range(8):
        half = scene(seed, height=120, width=80)
        image = np.concatenate([half, half[:, ::-1]], axis=1)
        assert distance(fingerprint(image).hashes[0], fingerprint(jpeg(image, 60)).hashes[0]) <= 16


def test_fingerprint__large_images_are_reduced_to_a_shorter_side_of_256_first():
    image = scene(3, height=512, width=768)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    reduced = cv2.resize(grey, (384, 256), interpolation=cv2.INTER_AREA)
    found, expected = fingerprint(image), fingerprint(np.repeat(reduced[..., None], 3, axis=2))
    np.testing.assert_array_equal(found.hashes, expected.hashes)
    assert found.sharpness == expected.sharpness


def test_fingerprint__flip_key_is_the_hash_of_the_mirror_image():
    image = scene(0, height=SIDE, width=SIDE)
    mirrored = fingerprint(np.ascontiguousarray(image[:, ::-1]))
    assert distance(fingerprint(image).hashes[KEYS.index("flip")], mirrored.hashes[0]) <= 2


def test_fingerprint__crop_keys_are_the_hashes_of_centre_crops():
    image = scene(0, height=200, width=200)
    for key, share in ((1, 0.95), (2, 0.9), (3, 0.8)):
        side = round(200 * share)
        start = (200 - side) // 2
        crop = np.ascontiguousarray(image[start : start + side, start : start + side])
        np.testing.assert_array_equal(fingerprint(image).hashes[key], fingerprint(crop).hashes[0])


def test_fingerprint__test_vectors():
    """What docs/curation.md publishes; a change of any of these is another specification."""
    cells = np.frombuffer(b"".join(hashlib.sha256(bytes([i])).digest() for i in range(24)), np.uint8).reshape(3, 16, 16)
    image = np.ascontiguousarray(np.kron(cells, np.ones((1, 8, 10), np.uint8)).transpose(1, 2, 0))
    found = fingerprint(image)
    assert hashlib.sha256(found.hashes.tobytes()).hexdigest()[:16] == VECTORS["hashes"]
    assert found.pixels.hex() == VECTORS["pixels"]
    assert found.hashes[0].tobytes().hex() == VECTORS["whole"]


VECTORS = {
    "hashes": "1ce4a3708c070b2b",
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
