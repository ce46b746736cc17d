"""Why an image cannot be used: a closed set of reasons, and which of them it is that a decoder meant."""

from typing import Literal

from PIL import Image

Reason = Literal[
    "empty",
    "not an image",
    "format not allowed",
    "mode not supported",
    "truncated",
    "too large",
    "too small",
    "extreme aspect",
    "wrong channels",
    "corrupt",
]

FORMATS = (
    "JPEG",
    "PNG",
    "WEBP",
    "GIF",
    "BMP",
    "TIFF",
    "PPM",
)  # the rest of Pillow's decoders are where its holes are found

# First bytes of what Pillow or others could open, but we do not; (offset, bytes).
_FOREIGN = (
    (0, b"%!PS"),
    (0, b"%PDF"),
    (0, b"SIMPLE  ="),
    (4, b"ftyp"),
    (0, b"8BPS"),
    (0, b"\x00\x00\x01\x00"),
    (0, b"\x00\x00\x00\x0cjP"),
    (0, b"\xff\x4f\xff\x51"),
    (0, b"DDS "),
    (0, b"icns"),
    (0, b"\xff\x0a"),
    (0, b"gimp xcf"),
    (0, b"\x76\x2f\x31\x01"),
)
_OURS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+", b"RIFF")
_PPM = tuple(b"P" + bytes([digit, space]) for digit in b"1234567Ff" for space in b" \t\r\n")


class Undecodable(ValueError):
    """An image that cannot be used. `reason` is one of a closed set, fit for counting; `detail` is for people."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason: Reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


def unidentified(data: bytes) -> Undecodable:
    """The Undecodable for bytes that no allowed decoder takes for its own."""
    if data.startswith(_OURS + _PPM):
        return Undecodable("corrupt", "the header cannot be read")
    if any(data.startswith(magic, offset) for offset, magic in _FOREIGN):
        return Undecodable("format not allowed", f"allowed are {', '.join(FORMATS)}")
    return Undecodable("not an image", f"starts with {data[:12]!r}")


def judged(error: Exception) -> Exception:
    """The Undecodable for what a decoder raised."""
    if isinstance(error, Undecodable | MemoryError):
        return error  # running out of memory is this machine's fault, not the image's
    message = str(error)
    if isinstance(error, Image.DecompressionBombError):
        return Undecodable("too large", message)
    missing = ("truncated", "not enough", "unexpected end", "premature")
    if isinstance(error, EOFError) or any(word in message.lower() for word in missing):
        return Undecodable("truncated", message)
    return Undecodable("corrupt", f"{type(error).__name__}: {message}"[:200])
