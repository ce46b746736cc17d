"""The one decoder: golden colours, orientation, scaling, and refusals."""

import io
import struct
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFile

from raydino.data.decode import Undecodable, decode, header
from raydino.shards.reader import open_collection


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def reason(data: bytes) -> str:
    with pytest.raises(Undecodable) as caught:
        decode(data)
    return caught.value.reason


def picture(height: int = 12, width: int = 20) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, size=(height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_decode__lossless_rgb_is_exact(kind: str) -> None:
    pixels = picture()
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(Image.fromarray(pixels), kind, **options)
    np.testing.assert_array_equal(decode(data), pixels)
    assert decode(data).flags.c_contiguous
    assert (header(data).format, header(data).width, header(data).height) == (kind, 20, 12)


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("LA", (0, 255), (0, 0, 0)),
        ("LA", (0, 51), (204, 204, 204)),  # 255 - 51
        ("RGBA", (255, 0, 0, 255), (255, 0, 0)),
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),  # hidden red is not seen
        ("RGBA", (0, 0, 255, 51), (204, 204, 255)),
        ("I;16", 30_000, (117, 117, 117)),  # 30000 / 257 = 116.7
        ("I;16", 65_535, (255, 255, 255)),
    ],
)
def test_decode__golden_pixel_png(mode: str, color: int | tuple[int, ...], expected: tuple[int, ...]) -> None:
    data = encoded(Image.new(mode, (9, 8), color), "PNG")
    np.testing.assert_array_equal(decode(data), np.broadcast_to(np.array(expected, np.uint8), (8, 9, 3)))
    assert header(data).mode == mode


@pytest.mark.parametrize(
    ("cmyk", "expected"),
    [
        ((0, 0, 0, 0), (255, 255, 255)),
        ((255, 0, 0, 0), (0, 255, 255)),
        ((0, 0, 255, 0), (255, 255, 0)),
        ((0, 0, 0, 204), (51, 51, 51)),
    ],
)
@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_decode__golden_pixel_cmyk(kind: str, cmyk: tuple[int, ...], expected: tuple[int, ...]) -> None:
    data = encoded(Image.new("CMYK", (16, 16), cmyk), kind)
    assert np.abs(decode(data).astype(int) - expected).max() <= (0 if kind == "TIFF" else 2)


def test_decode__golden_pixel_ycbcr() -> None:
    data = encoded(Image.new("YCbCr", (16, 16), (76, 85, 255)), "TIFF")  # pure red by the JFIF equations
    assert np.abs(decode(data).astype(int) - (254, 0, 0)).max() <= 1


def test_decode__palette_with_and_without_transparency() -> None:
    image = Image.new("P", (10, 10), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    np.testing.assert_array_equal(decode(encoded(image, "PNG"))[0, 0], (10, 200, 30))
    np.testing.assert_array_equal(decode(encoded(image, "PNG", transparency=1))[0, 0], (255, 255, 255))
    np.testing.assert_array_equal(decode(encoded(image, "PNG", transparency=bytes([255, 51])))[0, 0], (206, 244, 210))


def test_decode__16_bit_png_against_the_formula() -> None:
    values = np.random.default_rng(0).integers(0, 65_536, size=(16, 32)).astype(np.uint16)
    values[0, :3] = (0, 65_535, 257 * 128)
    shown = decode(encoded(Image.fromarray(values), "PNG"))
    slow = [[int(int(v) / 257 + 0.5) for v in row] for row in values]
    np.testing.assert_array_equal(shown, np.repeat(np.array(slow)[:, :, None], 3, axis=2))


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(0.0, 1.0, (0, 64, 255)), (-3.0, 5.0, (0, 64, 255)), (0.0, 1000.0, (0, 64, 255))]
)
def test_decode__float_is_scaled_not_clipped(low: float, high: float, expected: tuple[int, ...]) -> None:
    values = np.full((8, 9), low, dtype=np.float32)
    values[0, 1], values[0, 2] = low + (high - low) * 64 / 255, high
    shown = decode(encoded(Image.fromarray(values), "TIFF"))
    assert tuple(shown[0, :3, 0].tolist()) == expected


def test_decode__dim_float_in_the_unit_range_stays_dim() -> None:
    shown = decode(encoded(Image.fromarray(np.full((8, 8), 0.2, dtype=np.float32)), "TIFF"))
    np.testing.assert_array_equal(shown, 51)


UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_decode__exif_orientation(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    pixels = picture(16, 24)
    data = encoded(Image.fromarray(pixels), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    stored = decode(encoded(Image.fromarray(pixels), kind)) if kind == "JPEG" else pixels
    expected = UPRIGHT[orientation](stored)
    np.testing.assert_array_equal(decode(data), expected)
    assert (header(data).height, header(data).width) == expected.shape[:2]
    assert header(data).orientation == orientation


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF"])
def test_decode__first_frame_of_many(kind: str) -> None:
    frames = [Image.new("RGB", (10, 10), color) for color in ("white", "black", "red")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(decode(data), 255)
    assert header(data).frames == 3


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header claims a size that its few bytes do not hold."""
    data = encoded(Image.new("L", (8, 8)), "PNG")
    body = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    import zlib

    return data[:12] + body + struct.pack(">I", zlib.crc32(body)) + data[33:]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html></html>", "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        (b"%PDF-1.7\n...", "format not allowed"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "format not allowed"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "format not allowed"),
        (b"SIMPLE  =                    T", "format not allowed"),
        (b"\xff\xd8\xff\xe0", "corrupt"),
        (b"\xff\xd8\xff" + b"\0" * (32 << 20), "too large"),
        (png_of_size(30_000, 30_000), "too large"),
        (png_of_size(2**31 - 1, 2**31 - 1), "too large"),
        (png_of_size(12_000, 12_000), "too large"),
        (png_of_size(20_000, 1000), "too large"),
        (png_of_size(1, 1), "too small"),
        (png_of_size(7, 100), "too small"),
        (png_of_size(10, 201), "extreme aspect"),
    ],
    ids=lambda value: f"{len(value)} bytes" if isinstance(value, bytes) else value,
)
def test_decode__refused_by_the_header(data: bytes, expected: str) -> None:
    assert reason(data) == expected
    with pytest.raises(Undecodable) as caught:
        header(data)
    assert caught.value.reason == expected


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_decode__cut_short_is_never_filled(kind: str, share: float) -> None:
    data = encoded(Image.fromarray(picture(64, 64)), kind)
    assert reason(data[: int(len(data) * share)]) in ("truncated", "corrupt")


def test_decode__not_a_number_is_refused() -> None:
    assert reason(encoded(Image.fromarray(np.full((8, 8), np.nan, dtype=np.float32)), "TIFF")) == "corrupt"


def test_decode__broken_metadata_is_dropped_without_a_warning() -> None:
    pixels = picture(16, 16)
    bad_exif = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12\xff\xff" * 30
    data = encoded(Image.fromarray(pixels), "JPEG", exif=bad_exif, icc_profile=b"not a profile" * 9)
    plain = encoded(Image.fromarray(pixels), "JPEG")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(decode(data + b"PK\x03\x04 a zip behind it"), decode(plain))
        assert reason(png_of_size(12_000, 10_000)) == "too large"


def test_decode__threads_agree() -> None:
    data = [encoded(Image.fromarray(picture(40, 40) // (n + 1)), "JPEG") for n in range(40)]
    with ThreadPoolExecutor(4) as pool:
        for one, other in zip(pool.map(decode, data), map(decode, data), strict=True):
            np.testing.assert_array_equal(one, other)


def test_decode__refuses_to_run_with_truncated_images_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(RuntimeError, match="LOAD_TRUNCATED_IMAGES"):
        decode(encoded(Image.new("RGB", (8, 8)), "PNG"))


@pytest.mark.data
def test_decode__edge_cases_as_labelled(data_folder: Path) -> None:
    import pyarrow.parquet as pq

    folder = data_folder / "decode-edge-cases"
    expected = pq.read_table(folder / "data" / "test-00000-of-00001.parquet").column("decodable").to_pylist()
    rows = open_collection(str(folder)).read(0)
    found = []
    for data in rows.column("bytes").to_pylist():
        try:
            found.append(decode(data).dtype == np.uint8)
        except Undecodable:
            found.append(False)
    assert found == expected


@pytest.mark.data
def test_decode__one_photo_in_many_modes_looks_the_same(data_folder: Path) -> None:
    rows = open_collection(str(data_folder / "decode-edge-cases")).read(0)
    by_name = dict(zip(rows.column("path").to_pylist(), rows.column("bytes").to_pylist(), strict=True))
    shown = {p.rsplit("/", 1)[-1]: decode(b)[::8, ::8].astype(float) for p, b in by_name.items() if "/modes/" in p}
    assert len(shown) == 8
    for name, pixels in shown.items():
        allowed = 60 if name in ("1.png", "L.png", "LA.png") else 6  # grey has no colour, 1 bit is dithered
        blur = np.abs(pixels.mean(axis=(0, 1)) - shown["RGB.jpg"].mean(axis=(0, 1)))
        assert blur.max() < allowed, name


def test_decode__one_channel_is_grey_and_of_colours_the_luminance() -> None:
    grey = picture()[..., 0]
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(grey), "PNG"), channels=1)[..., 0], grey)
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    np.testing.assert_array_equal(decode(encoded(deep, "PNG"), channels=1)[..., 0], grey)
    colours = picture()
    weights = colours.astype(float) @ (0.299, 0.587, 0.114)
    found = decode(encoded(Image.fromarray(colours), "PNG"), channels=1)
    assert found.shape == (12, 20, 1) and np.abs(found[..., 0] - weights).max() <= 1


def test_decode__pages_of_a_tiff_are_channels() -> None:
    pages = np.random.default_rng(1).integers(0, 256, (5, 12, 20), dtype=np.uint8)
    images = [
        Image.fromarray(page.astype(np.uint16) * 257 if number % 2 else page) for number, page in enumerate(pages)
    ]
    data = encoded(images[0], "TIFF", save_all=True, append_images=images[1:])
    np.testing.assert_array_equal(decode(data, channels=5), np.moveaxis(pages, 0, 2))
    assert decode(data).shape == (12, 20, 3)  # the first page, as for any animation


def test_decode__float_pages_are_stretched_together() -> None:
    """What bands are to each other is the signal: a page of half the range stays half as bright."""
    page = np.linspace(0, 100, 12 * 20, dtype=np.float32).reshape(12, 20)
    images = [Image.fromarray(page), Image.fromarray(page / 2)]
    found = decode(encoded(images[0], "TIFF", save_all=True, append_images=images[1:]), channels=2)
    assert found[..., 0].max() == 255 and found[..., 1].max() in (127, 128)


def test_decode__bands_of_an_image_are_channels() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (12, 20, 4), dtype=np.uint8)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(pixels, "RGBA"), "PNG"), channels=4), pixels)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(pixels, "CMYK"), "TIFF"), channels=4), pixels)


def test_decode__another_number_of_channels_is_refused() -> None:
    small, large = Image.fromarray(picture()[..., 0]), Image.fromarray(picture(16, 20)[..., 0])
    uneven = encoded(small, "TIFF", save_all=True, append_images=[large])
    for data, channels in [(encoded(Image.fromarray(picture()), "PNG"), 4), (encoded(small, "PNG"), 2), (uneven, 2)]:
        with pytest.raises(Undecodable, match="wrong channels"):
            decode(data, channels=channels)
