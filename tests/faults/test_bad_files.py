"""Rows 17 to 30 of the matrix of bad input (docs/reliability.md): image files.

Every refusal goes through a whole ingest, so the reason is the one in the quarantine table, and good files beside it are kept.
"""

import io
import json
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import ExifTags, Image

from raydino.curation.ingest import ingest
from raydino.curation.verify import verify
from raydino.data.decode import Undecodable, decode
from raydino.shards.reader import open_collection
from raydino.shards.schema import Folder, ShardError, content_id, read_footer


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(seed: int = 0, *, height: int = 24, width: int = 32) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, size=(height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, pixels: bytes = b"") -> bytes:
    """A one-bit PNG that claims a size, whatever it holds."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(pixels, 1)) + chunk(b"IEND", b"")


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def jpeg_of(side: int) -> bytes:
    data = saved(noise(), "JPEG")
    return patched(data, data.index(b"\xff\xc0") + 5, struct.pack(">HH", side, side))


SMALL = {kind: saved(noise(), kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP")}
DEEP = np.full((16, 16), np.inf, np.float32)

REFUSED = [  # row, file name, content, reason in the quarantine table
    ("17", "zero.jpg", b"", "empty"),
    *(("18", f"cut.{kind}", data[: len(data) * 3 // 5], "truncated") for kind, data in SMALL.items() if kind != "WEBP"),
    ("18", "cut.webp", SMALL["WEBP"][: len(SMALL["WEBP"]) * 3 // 5], "corrupt"),  # libwebp says no more
    ("18", "head.jpg", b"\xff\xd8\xff\xe0", "corrupt"),
    ("19", "page.jpg", b"<!DOCTYPE html><html>403</html>", "not an image"),
    ("19", "drawing.jpg", b"<svg xmlns='http://www.w3.org/2000/svg' onload='x()'/>", "not an image"),
    ("19", "json.png", b'{"error": "not found"}', "not an image"),
    ("22", "infinite.tif", saved(Image.fromarray(DEEP), "TIFF"), "corrupt"),
    ("25", "30000.png", png(30_000, 30_000), "too large"),
    ("25", "int.png", png(2**31 - 1, 2**31 - 1), "too large"),
    ("25", "65500.jpg", jpeg_of(65_500), "too large"),
    ("25", "65535.gif", patched(SMALL["GIF"], 6, struct.pack("<HH", 65_535, 65_535)), "too large"),
    ("25", "30000.bmp", patched(SMALL["BMP"], 18, struct.pack("<ii", 30_000, 30_000)), "too large"),
    ("25", "30000.ppm", b"P6 30000 30000 255\n" + b"x" * 99, "too large"),
    ("26", "bomb.png", png(12_000, 12_000, b"\0" * 1501 * 12_000), "too large"),
    ("27", "1x1.png", saved(Image.new("L", (1, 1)), "PNG"), "too small"),
    ("27", "ruler.png", png(10, 16_000), "extreme aspect"),
    ("27", "1x20000.png", png(1, 20_000), "too large"),
    ("27", "none.png", png(0, 10), "corrupt"),
    ("30", "a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "format not allowed"),
    ("30", "a.jpg.pdf", b"%PDF-1.7\n", "format not allowed"),
    ("30", "a.fits", b"SIMPLE  =                    T" + b" " * 50, "format not allowed"),
    ("30", "a.heic", b"\0\0\0\x18ftypheic\0\0\0\0heicmif1", "format not allowed"),
    ("30", "a.jp2", b"\0\0\0\x0cjP  \r\n\x87\n", "format not allowed"),
    ("30", "a.psd", b"8BPS\0\x01", "format not allowed"),
    ("30", "a.ico", saved(noise(height=16, width=16), "ICO"), "format not allowed"),
]


def test_rows_17_to_30__every_bad_file_has_its_reason_and_every_good_one_is_kept(tmp_path: Path) -> None:
    good = {f"good{number}.png": saved(noise(number), "PNG") for number in range(5)}
    assert len(REFUSED[-9][2]) < 420_000  # the bomb of row 26: 144 million pixels
    files = {f"{row}-{name}": data for row, name, data, _ in REFUSED} | good
    (tmp_path / "in").mkdir()
    for name, data in files.items():
        (tmp_path / "in" / name).write_bytes(data)
    ingest([str(tmp_path / "in")], str(tmp_path / "out"), max_bad=0.9, threads=2)
    table = pq.read_table(tmp_path / "out" / "quarantine.parquet").to_pylist()
    found = [(row["path"], row["reason"]) for row in table]
    assert sorted(found) == sorted((f"{row}-{name}", reason) for row, name, _, reason in REFUSED)
    assert all(row["id"] == content_id(files[row["path"]]) for row in table)
    kept = open_collection(str(tmp_path / "out")).read(0)["bytes"].to_pylist()
    assert kept == [good[name] for name in sorted(good)]


@pytest.mark.parametrize("name", [name for row, name, *_ in REFUSED if row in ("25", "26", "27", "30")])
def test_rows_25_to_27__nothing_is_allocated_for_pixels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def allocates(*_: object) -> None:
        raise AssertionError("pixels were allocated before the header was judged")

    monkeypatch.setattr(Image.core, "new", allocates)
    monkeypatch.setattr(Image.core, "fill", allocates)
    data, reason = next((data, reason) for _, other, data, reason in REFUSED if other == name)
    with pytest.raises(Undecodable) as refused:
        decode(data)
    assert refused.value.reason == reason


def test_rows_20_and_23__taken_and_counted(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 16), color) for color in ("white", "black")]
    files = {
        "lies.jpg": SMALL["PNG"],
        "lies.png": SMALL["JPEG"],
        "photo.JPEG": saved(noise(1), "JPEG"),
        "scan.tif": saved(noise(2), "TIFF"),
        "noname": saved(noise(3), "PNG"),
        "walk.gif": saved(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "walk.webp": saved(frames[0], "WEBP", lossless=True, save_all=True, append_images=frames[1:]),
        "pages.tiff": saved(frames[0], "TIFF", save_all=True, append_images=frames[1:]),
    }
    (tmp_path / "in").mkdir()
    for name, data in files.items():
        (tmp_path / "in" / name).write_bytes(data)
    assert ingest([str(tmp_path / "in")], str(tmp_path / "out")).rows == len(files)
    notes = json.loads((tmp_path / "out" / "summary.json").read_text())["notes"]
    assert notes == {"named as another format": 2, "several frames, the first is used": 3}
    for name in ("walk.gif", "walk.webp", "pages.tiff"):
        np.testing.assert_array_equal(decode(files[name]), 255)


def _palette() -> Image.Image:
    image = Image.new("P", (9, 8), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    return image


GOLDEN = [  # row, image, format and options, pixel
    ("21", Image.new("CMYK", (9, 8), (0, 255, 0, 51)), "TIFF", {}, (204, 0, 204)),
    ("21", _palette(), "PNG", {}, (10, 200, 30)),
    ("21", _palette(), "PNG", {"transparency": bytes([255, 51])}, (206, 244, 210)),
    ("21", Image.new("LA", (9, 8), (0, 51)), "PNG", {}, (204, 204, 204)),
    ("21", Image.new("1", (9, 8), 1), "PNG", {}, (255, 255, 255)),
    ("21", Image.new("RGBA", (9, 8), (255, 0, 0, 0)), "PNG", {}, (255, 255, 255)),
    ("21", Image.new("RGBA", (9, 8), (0, 0, 255, 51)), "PNG", {}, (204, 204, 255)),
    ("22", Image.new("I;16", (9, 8), 30_000), "PNG", {}, (117, 117, 117)),  # 30000 / 257; Pillow alone shows white
    ("22", Image.new("I;16", (9, 8), 257), "TIFF", {}, (1, 1, 1)),
    ("22", Image.new("F", (9, 8), 0.2), "TIFF", {}, (51, 51, 51)),
]


@pytest.mark.parametrize(("row", "image", "kind", "options", "pixel"), GOLDEN, ids=lambda value: str(value)[:20])
def test_rows_21_and_22__one_fixed_conversion(
    row: str, image: Image.Image, kind: str, options: dict, pixel: tuple[int, int, int]
) -> None:
    expected = np.broadcast_to(np.array(pixel, np.uint8), (8, 9, 3))
    np.testing.assert_array_equal(decode(saved(image, kind, **options)), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_row_24__exif_orientation_is_applied(orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    corners = np.zeros((10, 12, 3), np.uint8)
    corners[:2, :2] = 255  # the picture's upper left as stored
    found = decode(saved(Image.fromarray(corners), "PNG", exif=exif))[..., 0]
    # The EXIF standard's own words: on which sides the stored first row and first column are to be shown.
    top, left = {1: "tl", 2: "tr", 3: "br", 4: "bl", 5: "tl", 6: "tr", 7: "br", 8: "bl"}[orientation]
    assert found.shape == ((10, 12) if orientation <= 4 else (12, 10))
    assert found[0 if top == "t" else -1, 0 if left == "l" else -1] == 255 and (found == 255).sum() == 4


def test_row_28__a_byte_that_flipped_in_the_scan_is_noticed_though_it_decodes(tmp_path: Path) -> None:
    images = {f"{n}.jpg": saved(noise(n, height=64, width=64), "JPEG") for n in range(3)}
    (tmp_path / "in").mkdir()
    for name, data in images.items():
        (tmp_path / "in" / name).write_bytes(data)
    manifest = ingest([str(tmp_path / "in")], str(tmp_path / "out"))
    shard, victim = tmp_path / "out" / manifest.files[0].path, images["1.jpg"]
    flipped = patched(victim, len(victim) * 3 // 4, bytes([victim[len(victim) * 3 // 4] ^ 8]))
    assert decode(flipped).shape == (64, 64, 3)  # no decoder can tell
    whole = shard.read_bytes()
    shard.write_bytes(whole.replace(victim, flipped))
    with pytest.raises(ShardError, match="CRC"):
        open_collection(str(tmp_path / "out")).read(0)
    # Even where somebody made checksum and manifest agree, the id is the content's hash, and `curate.py verify` asks for it.
    shard.write_bytes(whole)
    rows = pq.read_table(shard).to_pylist()
    rows[1]["image"]["bytes"] = flipped
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(shard)), shard)
    footer = read_footer(Folder(tmp_path / "out"), manifest.files[0].path)
    forged = manifest.files[0].override({"bytes": footer.size, "digest": footer.digest})
    manifest.override({"files": (forged,)}).save(Folder(tmp_path / "out"))
    (fault,) = verify(str(tmp_path / "out"))
    assert f"1.jpg is not the image of its id {content_id(victim).hex()}" in fault


def test_row_29__metadata_that_is_broken_huge_or_foreign_is_dropped() -> None:
    image = noise()
    plain = decode(saved(image, "JPEG"))
    exif = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12\xff\xff" * 15_000
    data = saved(image, "JPEG", exif=exif, icc_profile=b"not a profile" * 4000) + b"PK\x03\x04 a zip behind it"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(decode(data), plain)
