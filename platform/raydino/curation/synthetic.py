"""The built-in images: eight classes of procedural textures, with the faults of real collections planted among them.

They let anyone see the whole platform work without a download. Grey on purpose: with random colours the colour alone
tells images apart, a network learns that shortcut, and the classes stay at chance. Orientation, frequency, phase,
contrast and its sign vary within a class, so that pixels alone say little about it: a weighted k-NN on raw pixels is
right on about half, and what is learned shows. Every image is a pure function of (seed, split, number).
"""

import io
from collections.abc import Callable, Iterator
from itertools import chain

import numpy as np
from PIL import Image

from raydino.config import ConfigError
from raydino.curation.ingest import ingest_inputs
from raydino.curation.ledger import Input, Rules
from raydino.curation.sources import SourceImage
from raydino.keyed import generator
from raydino.shards.manifest import Manifest
from raydino.shards.writer import ROWS_PER_GROUP

SIDE = 48  # pixels; global crops of 32 and local ones of 16 leave room to move
CLASSES = ("stripes", "checker", "dots", "rings", "bars", "blocks", "star", "grid")
DUPLICATES = 8
BROKEN = 0.01  # share of the training images that is added as broken files
GREY = (112.0, 144.0)  # range of an image's mean, grey levels; wider, and brightness alone would tell images apart
CONTRAST = (30.0, 55.0)  # range of the pattern's standard deviation, grey levels; its sign is random
NOISE = (2.0, 12.0)  # range of the additive noise's standard deviation, grey levels
FREQUENCY = (3.0, 5.0)  # periods per half side
_X, _Y = np.meshgrid(np.linspace(-1, 1, SIDE), np.linspace(-1, 1, SIDE))
_HTML = b"<!DOCTYPE html><html><body><h1>403 Forbidden</h1></body></html>\n"

Field = Callable[[np.random.Generator, np.ndarray, np.ndarray], np.ndarray]
"""From coordinates in units of the image's half side, turned and shifted, to values around 0."""


def builtin_images(*, train: int = 4096, test: int = 1024, seed: int = 0) -> Iterator[SourceImage]:
    """The images of both splits as PNG, training split first; classes take turns. The splits share no image."""
    for split, count in (("train", train), ("test", test)):
        for number in range(count):
            name = CLASSES[number % len(CLASSES)]
            path = f"{split}/{name}/{number:05d}.png"
            yield SourceImage(_png(texture(name, seed, split, number)), path, None, name, split)


def texture(name: str, *key: int | str) -> np.ndarray:
    """One texture of a class: uint8 [48, 48], a pure function of the class and the key (seed first)."""
    rng = generator(int(key[0]), "texture", name, *key[1:])
    angle = rng.uniform(0, 2 * np.pi)
    u = np.cos(angle) * _X + np.sin(angle) * _Y + rng.uniform(-0.8, 0.8)
    v = -np.sin(angle) * _X + np.cos(angle) * _Y + rng.uniform(-0.8, 0.8)
    values = _FIELDS[name](rng, u, v)
    values = (values - values.mean()) / (values.std() + 1e-6)
    grey = rng.uniform(*GREY) + rng.choice([-1.0, 1.0]) * rng.uniform(*CONTRAST) * values
    grey += rng.normal(0, rng.uniform(*NOISE), grey.shape)
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8)


def scene(seed: int, *, height: int = 80, width: int = 100) -> np.ndarray:
    """A picture with structure at all scales, the coarse ones counting for more, as in photographs: uint8 [height, width, 3].

    For trying out what tells copies from other pictures; textures repeat themselves, photographs do not.
    """
    rng, out = generator(seed, "scene"), np.zeros((height, width, 3))
    for cells in (3, 6, 12, 24):
        coarse = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        out += (
            np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), dtype=float) / cells
        )
    out -= out.min()
    return (out * 255 / out.max()).astype(np.uint8)


def write_builtin(out: str, *, train: int = 4096, test: int = 1024, seed: int = 0, copies: bool = False) -> Manifest:
    """Write the built-in images as a curated folder, by the same way as any other images, and return its manifest.

    Besides them 8 exact duplicates and broken files (1 % of the training images: cut short, empty, a web page named
    .jpg) go in, and are found. With `copies`, 8 changed copies and a leak, a changed copy of a test image, follow the training
    images; screening finds them. Raises ConfigError for counts that leave a class without an image, or an `out` that is
    not empty.
    """
    for name, count in (("train", train), ("test", test)):
        if count < len(CLASSES):
            raise ConfigError(
                f"{name} = {count}: there are {len(CLASSES)} classes; ask for at least one image of each."
            )
    broken = max(3, round(train * BROKEN))

    def images() -> Iterator[SourceImage]:
        whole = _with_faults(builtin_images(train=train, test=test, seed=seed), broken)
        return chain(whole, _changed_copies(seed)) if copies else whole

    total = train + test + DUPLICATES + broken + (DUPLICATES + 1) * copies
    item = Input("builtin", total, [images], CLASSES)
    # 4,096 images are 64 whole groups of 64, so no lane shares one; and their order stays what it always was.
    return ingest_inputs([item], out, rules=Rules(max_bad=0.5, seed=seed), group_rows=ROWS_PER_GROUP)


def _with_faults(images: Iterator[SourceImage], broken: int) -> Iterator[SourceImage]:
    """The images with broken files and duplicates strewn between the first ones, so that every shard has had a
    neighbour.
    """
    for number, image in enumerate(images):
        yield image
        if number < DUPLICATES:
            yield SourceImage(image.data, f"copies/{number:05d}.png", None, image.class_name, image.split)
        if number < broken:
            data = (image.data[: len(image.data) // 2], b"", _HTML)[number % 3]
            yield SourceImage(data, f"broken/{number:05d}.jpg", None, image.class_name, image.split)


def _changed_copies(seed: int) -> Iterator[SourceImage]:
    """Copies of the first training images, mirrored, enlarged or recompressed by turns, and one of the first test image."""
    for number in range(DUPLICATES + 1):
        split, of = ("train", number) if number < DUPLICATES else ("test", 0)
        name = CLASSES[of % len(CLASSES)]
        image = Image.fromarray(texture(name, seed, split, of))
        buffer = io.BytesIO()
        if number % 3 == 0:
            image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(buffer, "PNG")
        elif number % 3 == 1:
            image.resize((2 * SIDE, 2 * SIDE), Image.Resampling.BICUBIC).save(buffer, "PNG")
        else:
            image.save(buffer, "JPEG", quality=90)
        yield SourceImage(buffer.getvalue(), f"changed/{number:05d}.img", None, name, "train")


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _frequency(rng: np.random.Generator) -> float:
    """Periods per half side; the range overlaps between all classes, so that it says nothing about them."""
    return float(rng.uniform(*FREQUENCY))


def _stripes(rng: np.random.Generator, u: np.ndarray, _: np.ndarray) -> np.ndarray:
    return np.sin(np.pi * _frequency(rng) * u)


def _checker(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    f = np.pi * _frequency(rng)
    return np.sign(np.sin(f * u) * np.sin(f * v))


def _dots(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    f = _frequency(rng) / 2
    a, b = (f * u) % 1 - 0.5, (f * v) % 1 - 0.5
    return 1.0 * (a * a + b * b < 0.08)


def _rings(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.sin(np.pi * _frequency(rng) * np.hypot(u, v))


def _bars(rng: np.random.Generator, u: np.ndarray, _: np.ndarray) -> np.ndarray:
    edges = np.sort(rng.uniform(-2, 2, size=20))
    return rng.choice([-1.0, 0.0, 1.0], size=21)[np.searchsorted(edges, u)]


def _blocks(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    f = _frequency(rng) * 0.7  # several to a crop, or it passes for a star
    levels = rng.normal(size=(16, 16))
    return levels[np.floor(f * u).astype(int) % 16, np.floor(f * v).astype(int) % 16]


def _star(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.sign(np.sin(int(rng.integers(4, 9)) * np.arctan2(v, u)))


def _grid(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    f = _frequency(rng) / 2
    return 1.0 * (((f * u) % 1 < 0.2) | ((f * v) % 1 < 0.2))


_FIELDS: dict[str, Field] = {
    "stripes": _stripes,
    "checker": _checker,
    "dots": _dots,
    "rings": _rings,
    "bars": _bars,
    "blocks": _blocks,
    "star": _star,
    "grid": _grid,
}
