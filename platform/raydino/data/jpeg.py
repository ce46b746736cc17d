"""JPEGs without anything unusual, by libjpeg-turbo itself: the values of Pillow, which decodes with the same library, in four
fifths of its time (benchmarks/crops.py), because nothing is parsed in Python and no row is copied twice.

Whatever is unusual or has a flaw gets no answer here, and Pillow judges it as it does all else. tests/data/test_jpeg.py holds
both against each other, on damaged files too.
"""

import struct
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray

# Markers (ITU-T T.81, table B.1). APP1 holds EXIF or XMP.
_SOI, _SOS, _APP1 = b"\xff\xd8", 0xDA, 0xE1
_SOF = (0xC0, 0xC1, 0xC2)  # baseline, extended and progressive, all of Huffman codes
_PASSED = frozenset({0xC4, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE})  # DHT, DQT, DRI, APPn, COM


class PlainHeader(NamedTuple):
    """Header of a JPEG of colours or grey in 8 bits."""

    width: int
    height: int
    metadata: bool
    """It has EXIF or XMP, which may say that the picture lies on its side."""


def plain_header(data: bytes) -> PlainHeader | None:
    """What the segments before the pixels say; None of all other images, and where a segment is not as expected."""
    size, metadata, at = None, False, 2
    if not data.startswith(_SOI):
        return None
    while len(data) >= at + 10 and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == _SOS:
            return size and PlainHeader(*size, metadata)
        if marker in _SOF:
            bits, height, width, components = struct.unpack_from(">BHHB", data, at + 4)
            if size or bits != 8 or components not in (1, 3) or 0 in (width, height):
                return None
            size = width, height
        elif marker not in _PASSED:
            return None
        metadata |= marker == _APP1
        at += 2 + length
    return None


def flawless_rgb(data: bytes, header: PlainHeader, least: int = 0) -> NDArray[np.uint8] | None:
    """uint8 [H, W, 3] of a plain JPEG as it is stored, or None where it has any flaw. With `least`, at a half, a quarter or an
    eighth of its size, as long as both sides keep `least` pixels, as Pillow's `draft` has it.

    Does not hold the interpreter lock while it decodes.
    """
    scale = next((by for by in (8, 4, 2) if least and min(header.width, header.height) // least >= by), 1)
    height, width = -(-header.height // scale), -(-header.width // scale)
    try:  # it takes least sizes, and of all its scales the smallest that reaches both
        pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width)
    except Exception:  # a decoder fed with arbitrary bytes can raise nearly anything; Pillow says what it is
        return None
    return pixels if pixels.shape == (height, width, 3) else None
