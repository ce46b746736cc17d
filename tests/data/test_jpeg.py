"""JPEGs without Pillow against Pillow: the same pixels, and the same files refused."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from raydino.data.decode import Undecodable, decode
from raydino.data.jpeg import flawless_rgb, plain_header
from raydino.shards.reader import open_collection


def photo(height: int = 41, width: int = 59, channels: int = 3) -> Image.Image:
    """Smooth colours, or grey, or four inks."""
    coarse = np.random.default_rng(height).integers(0, 256, (height // 8 + 2, width // 8 + 2, channels), dtype=np.uint8)
    image = Image.fromarray(coarse[..., 0] if channels == 1 else coarse, "CMYK" if channels == 4 else None)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def by_pillow(data: bytes, least: int = 0) -> np.ndarray | None:
    """uint8 [H, W, 3], or None where Pillow refuses the file."""
    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG",))
        if least:
            image.draft(None, (least, least))
        return np.asarray(image.convert("RGB"))
    except Exception:
        return None


def decoded(data: bytes) -> np.ndarray | None:
    try:
        return decode(data)
    except Undecodable:
        return None


TURNED = Image.Exif()
TURNED[ExifTags.Base.Orientation] = 1
KINDS = {
    "4:2:0": encoded(photo()),
    "4:2:2, tables of its own": encoded(photo(), subsampling=1, optimize=True),
    "4:4:4, quality 100": encoded(photo(), subsampling=0, quality=100),
    "progressive": encoded(photo(), progressive=True),
    "grey": encoded(photo(channels=1)),
    "restart markers": encoded(photo(64, 96), restart_marker_rows=1),
    "stored as RGB": encoded(photo(), keep_rgb=True),
    "with a profile and a comment": encoded(photo(), icc_profile=bytes(range(256)) * 4, comment=b"\xff\xd8\xff\xda"),
    "with EXIF": encoded(photo(), exif=TURNED),
}


@pytest.mark.parametrize("kind", KINDS)
def test_flawless_rgb__pixels_of_pillow(kind: str) -> None:
    data = KINDS[kind]
    expected, size = by_pillow(data), plain_header(data)
    assert expected is not None and size is not None
    assert (size.height, size.width) == expected.shape[:2] and size.metadata == (kind == "with EXIF")
    np.testing.assert_array_equal(flawless_rgb(data, size), expected)
    np.testing.assert_array_equal(decode(data), expected)


@pytest.mark.parametrize("shape", [(400, 300), (257, 1021), (799, 801)])
@pytest.mark.parametrize("least", [1, 37, 100, 150, 200, 399, 5000])
def test_flawless_rgb__sizes_of_pillows_draft(shape: tuple[int, int], least: int) -> None:
    data = encoded(photo(*shape))
    size = plain_header(data)
    assert size is not None
    np.testing.assert_array_equal(flawless_rgb(data, size, least), by_pillow(data, least))


def test_plain_header__what_pillow_has_to_look_at() -> None:
    png = io.BytesIO()
    photo().save(png, "PNG")
    inks, colours = encoded(photo(channels=4)), KINDS["4:2:0"]
    assert plain_header(inks) is None and plain_header(png.getvalue()) is None and plain_header(b"") is None
    for end in range(0, colours.index(b"\xff\xda")):  # cut short before the pixels
        assert plain_header(colours[:end]) is None
    frame = colours.index(b"\xff\xc0")
    assert plain_header(colours[:frame] + b"\xff\xc9" + colours[frame + 2 :]) is None  # arithmetic codes
    assert plain_header(colours[: frame + 4] + b"\x0c" + colours[frame + 5 :]) is None  # 12 bits
    assert plain_header(colours[: frame + 5] + b"\0\0" + colours[frame + 7 :]) is None  # a height that is told later
    assert plain_header(colours[:frame] + colours[frame : frame + 19] + colours[frame:]) is None  # two sizes


def test_decode__size_is_judged_before_pixels_are_asked_for() -> None:
    data = KINDS["4:2:0"]
    at = data.index(b"\xff\xc0") + 5
    with pytest.raises(Undecodable, match="too large: 60000 × 50000"):
        decode(data[:at] + (50_000).to_bytes(2, "big") + (60_000).to_bytes(2, "big") + data[at + 4 :])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "with EXIF"])
def test_decode__damaged_files_are_what_they_are_to_pillow(kind: str) -> None:
    """Refused where Pillow refuses them, and of the rest the same pixels; whatever libjpeg makes of damage, both have it."""
    data, draws = KINDS[kind], np.random.default_rng(7)
    damaged = [data[:end] for end in draws.integers(0, len(data), 60)]
    damaged += [data[:end] + b"\xff\xd9" for end in draws.integers(0, len(data), 60)]
    for _ in range(200):
        changed = bytearray(data)
        for place in draws.integers(2, len(data), draws.integers(1, 4)):
            changed[place] = draws.integers(256)
        damaged.append(bytes(changed))
    refused = 0
    for one in damaged:
        expected, found = by_pillow(one), decoded(one)
        if found is None:
            refused += 1
            assert expected is None or min(expected.shape[:2]) < 8 or max(expected.shape) > 20 * min(expected.shape[:2])
        else:
            np.testing.assert_array_equal(found, expected)
    assert 60 <= refused < len(damaged)


@pytest.mark.data
@pytest.mark.parametrize("name", ["imagenet-sample", "neardup-small"])
def test_flawless_rgb__photographs_as_pillow_has_them(data_folder: Path, name: str) -> None:
    rows = open_collection(str(data_folder / name)).read(0)["bytes"].to_pylist()
    photographs = [row for row in rows if row[:2] == b"\xff\xd8"][:60]
    sizes = [plain_header(data) for data in photographs]
    assert sum(size is not None for size in sizes) > 0.9 * len(photographs) > 30
    for data, size in zip(photographs, sizes, strict=True):
        if size is not None:
            np.testing.assert_array_equal(flawless_rgb(data, size), by_pillow(data))
