"""What is remarkable about images that are taken all the same: counted and told, never a reason to refuse them."""

from raydino.data.decode import FORMATS, ImageHeader

_EXTENSIONS = {"jpg": "JPEG", "jpe": "JPEG", "jpeg": "JPEG", "tif": "TIFF", "pgm": "PPM", "pbm": "PPM", "pnm": "PPM"}
"""What a file's name promises, where that is not the format's own name."""


def notes(found: ImageHeader, path: str) -> list[str]:
    """Notes on one image: its name promises another format, or only its first frame is used."""
    extension = path.rpartition("/")[2].rpartition(".")[2].lower()
    promised = _EXTENSIONS.get(extension, extension.upper())
    return ["named as another format"] * (promised != found.format and promised in FORMATS) + [
        "several frames, the first is used"
    ] * (found.frames > 1)
