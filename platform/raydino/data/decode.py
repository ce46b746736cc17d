"""Bytes to pixels, one fixed way for the whole platform: what is accepted here is what a run can see.

`decode` is a pure function of the bytes. Every header is judged before a pixel is allocated, nothing is ever filled in
for missing data, and each kind of image has one conversion to 8-bit RGB: CMYK, YCbCr, grey and palettes as Pillow
converts them; transparency laid over white, as a page shows it (dropping it would uncover whatever colour lies hidden
under it); 16-bit scaled by 1/257 and float stretched, where Pillow alone would clip them to white; EXIF orientation
applied; the first frame of animations. Pillow rather than OpenCV: it refuses truncated files, which OpenCV fills with
grey. Most JPEGs have the same values from libjpeg-turbo itself, without Pillow around it (jpeg.py).
"""

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from raydino.data.jpeg import flawless_rgb, plain_header
from raydino.data.refusals import FORMATS, Undecodable, judged, unidentified

MAX_BYTES = 32 << 20
MAX_SIDE = 16_384
MAX_PIXELS = 50_000_000  # 150 MB as RGB; a 48-megapixel photo passes
MIN_SIDE = 8  # one patch of the finest published DINO backbone; CIFAR and MNIST pass
MAX_ASPECT = 20.0  # longer strips are rulers and banners: a random crop of one is a few stretched pixels

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_QUIET = threading.Lock()


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What an image says about itself. Width and height are those of the decoded picture, after orientation."""

    format: str
    width: int
    height: int
    mode: str
    frames: int
    orientation: int


def decode(data: bytes, *, channels: int = 3, least: int = 0) -> np.ndarray:
    """The picture in an encoded image: uint8 [H, W, channels], contiguous, not necessarily writeable.

    With `least`, a JPEG is decoded at a half, a quarter or an eighth of its size, as long as both sides keep `least` pixels.

    3 channels are RGB, 1 is grey (of colours, their luminance). Any other number is that of the pages of a TIFF, each a grey
    picture of one size, as microscopes and satellites write them, or of the image's own bands (4 for RGBA or CMYK, 2 for
    grey with transparency).

    Raises Undecodable.
    """
    rgb = _plain(data, least) if channels in (1, 3) else None
    if rgb is None:
        image, orientation = _open(data)
        with image:
            try:
                if least:
                    image.draft(None, (least, least))
                image.load()
                if channels not in (1, 3):
                    return _to_bands(image, orientation, channels)
                rgb = _to_rgb(_upright(image, orientation))
            except Exception as error:  # a decoder fed with arbitrary bytes can raise nearly anything
                raise judged(error) from None
    return rgb if channels == 3 else _luminance(rgb)


def header(data: bytes) -> ImageHeader:
    """Format, size, mode, frames and orientation, without decoding pixels. Raises Undecodable where `decode` would for
    the header's sake.
    """
    image, orientation = _open(data)
    with image:
        try:
            with _quiet():
                frames = int(getattr(image, "n_frames", 1))
        except Exception:  # later frames are never used, so their damage is no fault of the image
            frames = 1
        width, height = image.size
        if orientation >= 5 and image.format != "TIFF":
            width, height = height, width
        return ImageHeader(_format(image), width, height, image.mode, frames, orientation)


@contextmanager
def _quiet() -> Iterator[None]:
    """No Pillow warnings. Under a lock, since Python's warning filters are global and threads decode side by side; only
    the parsing of headers is inside, which holds the interpreter lock anyway.
    """
    with _QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _plain(data: bytes, least: int) -> np.ndarray | None:
    """uint8 [H, W, 3] of a plain JPEG without a flaw, None of anything else."""
    _check_bytes(data)
    found = plain_header(data)
    if found is None:
        return None
    _check_size(found.width, found.height)
    rgb = flawless_rgb(data, found, least)
    if rgb is None or not found.metadata:
        return rgb
    image, orientation = _open(data)
    with image:
        return rgb if orientation == 1 else np.asarray(_upright(Image.fromarray(rgb), orientation))


def _open(data: bytes) -> tuple[Image.Image, int]:
    """The image with its header read and judged, and its EXIF orientation (1 to 8)."""
    _check_bytes(data)
    try:
        with _quiet():
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            orientation = _orientation(image)
    except UnidentifiedImageError:
        raise unidentified(data) from None
    except Exception as error:
        raise judged(error) from None
    _check_size(*image.size)
    return image, orientation


def _check_bytes(data: bytes) -> None:
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise RuntimeError("PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set: missing pixels would be grey; leave it False.")
    if not data:
        raise Undecodable("empty")
    if len(data) > MAX_BYTES:
        raise Undecodable("too large", f"more than {MAX_BYTES:,} bytes")


def _check_size(width: int, height: int) -> None:
    short, long = sorted((width, height))
    size = f"{width} × {height}"
    if long > MAX_SIDE or short * long > MAX_PIXELS:
        raise Undecodable("too large", f"{size}; at most {MAX_SIDE} a side and {MAX_PIXELS:,} pixels")
    if short < MIN_SIDE:
        raise Undecodable("too small", f"{size}; at least {MIN_SIDE} a side")
    if long > MAX_ASPECT * short:
        raise Undecodable("extreme aspect", f"{size}; at most {MAX_ASPECT:g} to 1")


def _orientation(image: Image.Image) -> int:
    """EXIF or XMP orientation, 1 where there is none or it is broken. In a PNG only EXIF that stands before the pixels
    counts: to look behind them Pillow would decode the image here, before its size is judged.
    """
    sources = {"exif"} if image.format == "PNG" else {"exif", "xmp"}
    if image.format != "TIFF" and sources.isdisjoint(image.info):
        return 1  # also saves the 40 µs of parsing nothing
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken EXIF is dropped like any other broken metadata
        return 1
    return value if value in _TRANSPOSE else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    if orientation == 1 or image.format == "TIFF":  # Pillow turns TIFFs by itself while loading
        return image
    return image.transpose(_TRANSPOSE[orientation])


def _to_rgb(image: Image.Image) -> np.ndarray:
    mode = image.mode
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        if mode == "I;16":
            return _grey(
                _to_eight_bits(np.asarray(image))
            )  # one grey level marked transparent: too rare for a rule of its own
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    elif mode.startswith("I") or mode == "F":
        return _grey(_to_eight_bits(np.asarray(image)))
    elif mode == "L":
        return _grey(np.asarray(image))
    elif mode != "RGB":
        try:
            image = image.convert("RGB")
        except ValueError as error:
            raise Undecodable("mode not supported", f"{mode}: {error}") from None
    return np.asarray(image)


def _luminance(rgb: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 1]; grey pictures come back as they were."""
    if (rgb[..., 0] == rgb[..., 1]).all() and (rgb[..., 1] == rgb[..., 2]).all():
        return np.ascontiguousarray(rgb[..., :1])
    return np.asarray(Image.fromarray(rgb).convert("L"))[:, :, None]


def _to_bands(image: Image.Image, orientation: int, channels: int) -> np.ndarray:
    """Pages or bands as channels, uint8 [H, W, channels]."""
    pages, bands = int(getattr(image, "n_frames", 1)), len(image.getbands())
    if pages == 1 and bands == channels:
        return np.asarray(_upright(image, orientation))
    if image.format != "TIFF" or pages != channels:
        raise Undecodable("wrong channels", f"{bands} bands and {pages} pages, {channels} channels are asked for")
    size, values = image.size, list[np.ndarray]()
    for page in range(pages):
        image.seek(page)
        if image.size != size or len(image.getbands()) != 1 or image.mode == "P":
            raise Undecodable("wrong channels", f"page {page} is {image.size} {image.mode}, not grey of {size}")
        image.load()
        values.append(np.asarray(image.convert("L") if image.mode == "1" else image))
    if any(page.dtype.kind == "f" for page in values):  # one stretch for all: what they are to each other is the signal
        return _to_eight_bits(np.stack(values, axis=2))
    return np.stack([page if page.dtype == np.uint8 else _to_eight_bits(page) for page in values], axis=2)


def _grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[:, :, None], 3, axis=2)


def _to_eight_bits(values: np.ndarray) -> np.ndarray:
    """Grey of more than 8 bits to uint8 of the same shape.

    16-bit values (and 32-bit ones that fit) are divided by 257 and rounded, so 65535 is white; float in [0, 1] is
    multiplied by 255; any other range is stretched from its least value to its greatest.
    """
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise Undecodable("corrupt", "pixels are NaN or infinite")
    low, high = float(values.min()), float(values.max())
    if values.dtype.kind == "f" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    elif values.dtype.kind != "f" and low >= 0 and high <= 65_535:
        low, high = 0.0, 65_535.0
    span = high - low or 1.0
    # float32 is exact enough for 16 bits (no quotient by 257 lies on a half) and halves the memory of a large scan.
    wide = values.astype(np.float32 if values.dtype.itemsize <= 2 else np.float64)
    return np.rint((wide - low) * (255.0 / span)).astype(np.uint8)


def _format(image: Image.Image) -> str:
    """Name of the format; a JPEG with further pictures inside (MPO, from phones) is a JPEG."""
    return "JPEG" if image.format == "MPO" else str(image.format)
