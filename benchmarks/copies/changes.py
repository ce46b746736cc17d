"""What photographs go through on their way around the web: each change makes another file of the same picture.

Changes of tone, size, frame and overlay, two of them after each other, and changes of the file alone: other formats, metadata,
orientation, depth, transparency, animation. What is not itself about compression is saved as JPEG of quality 90, as editors do.
Goals are those of deduplication at scale: exact copies always, plain re-uploads in 99.5 % of cases, small crops and logos nearly
so. Changes without a goal take more of the picture away than hashes of low frequencies are made for; they are measured as well.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont

from raydino.data.decode import decode
from raydino.keyed import generator

EXACT = 1.0  # files that decode to the same pixels
PLAIN = 0.995  # recompression, size, format, grey, tone, border, flip
CROP = 0.95  # crops of 5 % of the area
LOGO = 0.90  # overlays of 3 % of the area
QUALITY = 90  # JPEG, where a change is not about compression itself
Turned = Image.Transpose


@dataclass(frozen=True)
class Photo:
    """An original file and its upright picture."""

    data: bytes
    image: Image.Image

    @classmethod
    def of(cls, data: bytes) -> "Photo":
        """Raises Undecodable."""
        return cls(data, Image.fromarray(decode(data)))


Picture = Callable[[Image.Image, np.random.Generator], Image.Image]
"""From an RGB picture to another."""
File = Callable[[Photo, np.random.Generator], bytes]
"""From a photograph to another file of it."""


@dataclass(frozen=True)
class Change:
    """One way to make a copy; `goal` is the least share of copies to be found, None where there is none."""

    make: File
    goal: float | None = None

    def files(self, name: str, photos: list[Photo]) -> list[bytes]:
        """A copy of each photograph, a pure function of its place, the name and its bytes."""
        return [self.make(photo, generator(0, name, number)) for number, photo in enumerate(photos)]


def saved(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()


def picture(*steps: Picture) -> File:
    """The picture after each step in turn, saved as JPEG."""

    def make(photo: Photo, rng: np.random.Generator) -> bytes:
        image = photo.image
        for step in steps:
            image = step(image, rng)
        return saved(image, quality=QUALITY)

    return make


def as_file(kind: str, mode: str = "RGB", **options: object) -> File:
    return lambda photo, _: saved(photo.image.convert(mode), kind, **options)


def jpeg(quality: int) -> Picture:
    return lambda image, _: Image.open(io.BytesIO(saved(image, quality=quality))).convert("RGB")


def resized(factor: float) -> Picture:
    def change(image: Image.Image, _: np.random.Generator) -> Image.Image:
        width, height = (max(8, round(side * factor)) for side in image.size)  # 8 pixels: the least that is decoded
        return image.resize((width, height), Image.Resampling.LANCZOS)

    return change


def cropped(share: float, *, centre: bool = False) -> Picture:
    """A crop that loses `share` of the area, anywhere or in the middle."""

    def change(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        width, height = (round(side * (1 - share) ** 0.5) for side in image.size)
        spare = image.width - width, image.height - height
        left, top = (side // 2 if centre else int(rng.integers(0, side + 1)) for side in spare)
        return image.crop((left, top, left + width, top + height))

    return change


def bordered(share: float) -> Picture:
    """A white border, `share` of the shorter side wide."""
    return lambda image, _: framed(image, *[round(share * min(image.size))] * 4, "white")


def framed(image: Image.Image, left: int, top: int, right: int, bottom: int, colour: str) -> Image.Image:
    out = Image.new("RGB", (image.width + left + right, image.height + top + bottom), colour)
    out.paste(image, (left, top))
    return out


def logo(share: float) -> Picture:
    """A noisy block in a corner that hides `share` of the area."""

    def change(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        width, height = (round(side * share**0.5) for side in image.size)
        noise = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        out = image.copy()
        out.paste(noise, (image.width - width, image.height - height))
        return out

    return change


def turned(degrees: float) -> Picture:
    """Corners become black."""
    return lambda image, _: image.rotate(degrees, Image.Resampling.BICUBIC)


def text_bar(image: Image.Image, _: np.random.Generator) -> Image.Image:
    """A black bar with white text over the lowest 13 % of the height."""
    out = image.copy()
    draw = ImageDraw.Draw(out)
    draw.rectangle((0, round(image.height * 0.87), image.width, image.height), fill="black")
    draw.text((8, round(image.height * 0.9)), "when the loss goes down", fill="white")
    return out


def meme(image: Image.Image, _: np.random.Generator) -> Image.Image:
    """White text with a black edge over the upper and the lower end."""
    out, size = image.copy(), max(8, image.height // 9)
    draw, font = ImageDraw.Draw(out), ImageFont.load_default(size)
    for text, y, anchor in (("ONE DOES NOT SIMPLY", 4, "ma"), ("TRAIN WITHOUT CURATION", image.height - 4, "md")):
        draw.text(
            (image.width // 2, y), text, "white", font, anchor, stroke_width=max(1, size // 12), stroke_fill="black"
        )
    return out


def screenshot(image: Image.Image, _: np.random.Generator) -> Image.Image:
    """The picture in a window: a bar with three buttons above (8 % of the height), dark edges of 2 % elsewhere."""
    edge, bar = round(0.02 * image.height), round(0.08 * image.height)
    out = framed(image, edge, bar, edge, edge, "#303030")
    draw = ImageDraw.Draw(out)
    for place in range(3):
        x = edge + place * bar * 0.7
        draw.ellipse((x, bar * 0.25, x + bar * 0.5, bar * 0.75), fill=("#e05050", "#e0c050", "#50c050")[place])
    return out


def noisy(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Noise of 12 grey levels."""
    noise = rng.standard_normal((image.height, image.width, 3), dtype=np.float32)
    return Image.fromarray(np.clip(np.asarray(image) + 12 * noise, 0, 255).astype(np.uint8))


def brightness(factor: float) -> Picture:
    return lambda image, _: ImageEnhance.Brightness(image).enhance(factor)


def contrast(factor: float) -> Picture:
    return lambda image, _: ImageEnhance.Contrast(image).enhance(factor)


def flipped(image: Image.Image, _: np.random.Generator) -> Image.Image:
    return image.transpose(Turned.FLIP_LEFT_RIGHT)


def other_metadata(photo: Photo, _: np.random.Generator) -> bytes:
    """Another comment, and what the JPEG said of camera, place and time gone; its pixels are the same stream. PNG for others."""
    data = photo.data
    if not data.startswith(b"\xff\xd8"):
        return saved(photo.image, "PNG", compress_level=1)
    parts, place = [b"\xff\xd8\xff\xfe\x00\x0bre-posted"], 2
    while data[place + 1] != 0xDA:  # start of scan: no more headers
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if data[place + 1] not in (0xE1, 0xE2, 0xED, 0xFE):  # EXIF and XMP, colour profile, IPTC, comment
            parts.append(data[place:end])
        place = end
    return b"".join([*parts, data[place:]])


def turned_by_exif(photo: Photo, _: np.random.Generator) -> bytes:
    """Pixels lie on their side and EXIF says so, as phones write them."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return saved(photo.image.transpose(Turned.ROTATE_90), quality=QUALITY, exif=exif)


def sixteen_bits(photo: Photo, _: np.random.Generator) -> bytes:
    grey = np.asarray(photo.image.convert("L")).astype(np.uint16) * 257
    return saved(Image.fromarray(grey), "PNG", compress_level=1)


def animated(photo: Photo, _: np.random.Generator) -> bytes:
    """The picture and then its negative, as GIF of 256 colours."""
    first, second = (
        image.quantize(method=Image.Quantize.FASTOCTREE)
        for image in (photo.image, Image.eval(photo.image, lambda value: 255 - value))
    )
    return saved(first, "GIF", save_all=True, append_images=[second])


CHANGES: dict[str, Change] = {
    "metadata": Change(other_metadata, EXACT),
    "png": Change(as_file("PNG", compress_level=1), EXACT),
    "webp_lossless": Change(as_file("WEBP", lossless=True, quality=0, method=0), EXACT),
    "tiff": Change(as_file("TIFF"), EXACT),
    "alpha": Change(as_file("PNG", "RGBA", compress_level=1), EXACT),
    "exif_turned": Change(turned_by_exif, PLAIN),
    "cmyk": Change(as_file("JPEG", "CMYK", quality=QUALITY), PLAIN),
    "grey_16_bits": Change(sixteen_bits, PLAIN),
    "gif_animated": Change(animated, PLAIN),
    "jpeg_90": Change(as_file("JPEG", quality=90), PLAIN),
    "jpeg_50": Change(as_file("JPEG", quality=50), PLAIN),
    "jpeg_15": Change(as_file("JPEG", quality=15), PLAIN),
    "webp_40": Change(as_file("WEBP", quality=40, method=2), PLAIN),
    "half": Change(picture(resized(0.5)), PLAIN),
    "quarter": Change(picture(resized(0.25)), PLAIN),
    "double": Change(picture(resized(2.0)), PLAIN),
    "squash": Change(picture(lambda image, _: image.resize((256, 256))), PLAIN),
    "grey": Change(as_file("JPEG", "L", quality=QUALITY), PLAIN),
    "brighter": Change(picture(brightness(1.4)), PLAIN),
    "darker": Change(picture(brightness(0.7)), PLAIN),
    "less_contrast": Change(picture(contrast(0.6)), PLAIN),
    "less_colour": Change(picture(lambda image, _: ImageEnhance.Color(image).enhance(0.4)), PLAIN),
    "blur_2": Change(picture(lambda image, _: image.filter(ImageFilter.GaussianBlur(2))), PLAIN),
    "noise_12": Change(picture(noisy), PLAIN),
    "flip": Change(picture(flipped), PLAIN),
    "border_5": Change(picture(bordered(0.05)), PLAIN),
    "border_10": Change(picture(bordered(0.10)), PLAIN),
    "centre_crop_5": Change(picture(cropped(0.05, centre=True)), CROP),
    "centre_crop_10": Change(picture(cropped(0.10, centre=True))),
    "centre_crop_25": Change(picture(cropped(0.25, centre=True))),
    "crop_5": Change(picture(cropped(0.05)), CROP),
    "crop_10": Change(picture(cropped(0.10))),
    "crop_20": Change(picture(cropped(0.20))),
    "logo_3": Change(picture(logo(0.03)), LOGO),
    "text_bar": Change(picture(text_bar)),
    "meme": Change(picture(meme)),
    "screenshot": Change(picture(screenshot)),
    "rotate_2": Change(picture(turned(2))),
    "rotate_5": Change(picture(turned(5))),
    "half_then_jpeg_50": Change(picture(resized(0.5), jpeg(50)), PLAIN),
    "flip_then_half": Change(picture(flipped, resized(0.5)), PLAIN),
    "crop_5_then_jpeg_50": Change(picture(cropped(0.05), jpeg(50)), CROP),
    "half_jpeg_50_crop_5": Change(picture(resized(0.5), jpeg(50), cropped(0.05)), CROP),
    "screenshot_then_half": Change(picture(screenshot, resized(0.5))),
}
EXTENSIONS = {b"\x89PNG": ".png", b"RIFF": ".webp", b"II*\x00": ".tiff", b"GIF8": ".gif"}


def extension(data: bytes) -> str:
    return EXTENSIONS.get(data[:4], ".jpg")


def write(folder: Path, stem: str, data: bytes) -> None:
    (folder / (stem + extension(data))).write_bytes(data)


WORSE = (
    "jpeg_50",
    "jpeg_15",
    "webp_40",
    "half",
    "quarter",
    "blur_2",
    "crop_5",
    "centre_crop_25",
    "half_then_jpeg_50",
    "flip_then_half",
    "grey",
    "grey_16_bits",
    "gif_animated",
)
"""Changes after which the original is plainly the better copy: smaller, blurred, harder compressed, fewer colours."""
