"""Thumbnails show what the image shows, and numbers are not rounded to what they are not."""

import io

import numpy as np
import pytest
from PIL import Image

from raydino.curation.markup import SIDE, number, share, size, thumbnail


def encoded(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("shape", [(400, 300), (90, 1000), (20, 30)])
def test_thumbnail__keeps_proportions_and_colours(shape):
    width, height = shape
    image = np.zeros((height, width, 3), np.uint8)
    image[:, : width // 2], image[:, width // 2 :] = (200, 30, 30), (30, 30, 200)
    data, wide, high = thumbnail(encoded(image))
    scale = min(1, SIDE / max(shape))
    assert (wide, high) == (round(width * scale), round(height * scale))
    small = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert abs(small[high // 2, wide // 8] - [200, 30, 30]).max() < 30
    assert abs(small[high // 2, -1 - wide // 8] - [30, 30, 200]).max() < 30


@pytest.mark.parametrize(
    ("part", "whole", "words"),
    [
        (0, 5, "0 %"),
        (1, 10_000, "&lt; 0.1 %"),
        (9_999, 10_000, "&gt; 99.9 %"),
        (996, 1000, "99.6 %"),
        (5, 5, "100 %"),
        (1, 40, "2.5 %"),
        (1, 0, "0 %"),
    ],
)
def test_share__is_never_nothing_of_something_nor_all_of_less(part, whole, words):
    assert share(part, whole) == words


def test_numbers__are_as_exact_as_one_reads_them():
    assert [number(value) for value in (48.0, 12345.6, 0.123456, 1e6)] == ["48", "12,346", "0.1235", "1,000,000"]
    assert [size(count) for count in (0, 999, 12_345, 2_500_000)] == [
        "0&nbsp;B",
        "999&nbsp;B",
        "12.3&nbsp;kB",
        "2.5&nbsp;MB",
    ]
