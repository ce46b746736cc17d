"""What copies are looked for among: photographs, and pictures that look alike but are not copies.

Hard negatives: photographs of the same class, other shots of the same person or object, frames of one video far apart, pages and
forms of one layout, blank pages. Two pictures are the same only if their groups are equal.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

from copies.changes import saved
from raydino.keyed import generator
from raydino.shards.reader import open_collection

# Of caltech101's training split: photographs that occur twice, and drawings of which one was made from the other. Every pair that
# any method compared here reported within its radius (ours up to 72 bits, pHash and dHash 10, PDQ 31) was looked at.
CALTECH_TWINS = (
    ("stop_sign/0034", "stop_sign/0043", "stop_sign/0049"),
    ("stop_sign/0047", "stop_sign/0048"),
    ("platypus/0015", "platypus/0022"),
    ("Leopards/0046", "Leopards/0146"),
    ("Leopards/0090", "Leopards/0190"),
    ("Leopards/0096", "Leopards/0196"),
    ("beaver/0004", "beaver/0022"),
    ("nautilus/0020", "nautilus/0033"),
    ("cougar_face/0024", "cougar_face/0037"),
    ("cougar_body/0026", "cougar_body/0035"),
    ("metronome/0005", "metronome/0010", "metronome/0011"),
    ("octopus/0002", "octopus/0003", "octopus/0005", "octopus/0006"),
    ("dalmatian/0050", "dalmatian/0061"),
    ("garfield/0024", "garfield/0025", "garfield/0027"),
    ("menorah/0014", "menorah/0053"),
    ("strawberry/0002", "strawberry/0033"),
    ("kangaroo/0015", "kangaroo/0025"),
    ("lotus/0022", "lotus/0052"),
    ("minaret/0018", "minaret/0037"),
    ("water_lilly/0012", "water_lilly/0037"),
    ("stegosaurus/0028", "stegosaurus/0043"),
)
TWIN = {one: group[0] for group in CALTECH_TWINS for one in group}
VIDEO_STEP = 10  # frames of 1/24 s: the rider has moved by his own length
ROOM_STEP = 4  # of every tenth frame at 30 a second: 1.3 s
WORDS = (
    "of the and light to in a weights is that for image it as was with be by on not he his but at are this have".split()
)


@dataclass(frozen=True)
class Pictures:
    """Encoded pictures; those of one group show the same."""

    name: str
    files: list[bytes]
    groups: list[str]

    def __len__(self) -> int:
        return len(self.files)

    def some(self, rows: Sequence[int]) -> "Pictures":
        """Those with these numbers."""
        return Pictures(self.name, [self.files[row] for row in rows], [self.groups[row] for row in rows])


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the numbers below `count`, evenly."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist() if count else []


def photographs(data: Path, count: int) -> Pictures:
    """430 of imagenet-sample to 600 of caltech101, or so many fewer that there are `count`."""
    web, objects = real(data, "imagenet-sample", "train"), real(data, "caltech101", "train")
    share = min(1.0, count / (len(web) + 600))
    web = web.some(spread(len(web), round(len(web) * share)))
    objects = objects.some(spread(len(objects), round(600 * share)))
    return Pictures("photographs", web.files + objects.files, web.groups + objects.groups)


def negatives(data: Path) -> list[Pictures]:
    """The hard ones; see each."""
    video, room = real(data, "video-bmx-trees", "test"), real(data, "rgbd-redkitchen", "train")
    return [
        Pictures("same class (caltech101)", *_files_and_groups(real(data, "caltech101", "train"))),
        Pictures("same person, other shot (neardup-small)", *_files_and_groups(distinct_shots(data))),
        Pictures(
            "one video, 0.4 s apart (bmx-trees)", *_files_and_groups(video.some(range(0, len(video), VIDEO_STEP)))
        ),
        Pictures("one drive, 5 s apart (camvid)", *_files_and_groups(real(data, "camvid", "train"))),
        Pictures("one room, 1.3 s apart (redkitchen)", *_files_and_groups(room.some(range(0, len(room), ROOM_STEP)))),
        documents(60),
        blank_pages(),
    ]


def _files_and_groups(pictures: Pictures) -> tuple[list[bytes], list[str]]:
    return pictures.files, pictures.groups


def real(data: Path, name: str, split: str) -> Pictures:
    """A split in the order of its paths, each picture a group of its own but for known twins."""
    collection = open_collection(str(data / name), split=split)
    rows = collection.rows(np.arange(len(collection))).sort_by("path")
    paths = rows["path"].to_pylist()
    return Pictures(name, rows["bytes"].to_pylist(), [f"{name}/{_group(path)}" for path in paths])


def _group(path: str) -> str:
    short = path.removeprefix("101_ObjectCategories/").replace("image_", "").removesuffix(".jpg")
    return TWIN.get(short, short)


def distinct_shots(data: Path) -> Pictures:
    """One photograph of each group of neardup-small, uncropped: people recur, shots do not."""
    table = pq.read_table(next((data / "neardup-small" / "data").glob("*.parquet"))).sort_by("group")
    groups = table["group"].to_pylist()
    images = [(image["bytes"], image["path"]) for image in table["image"].to_pylist()]
    first: dict[str, bytes] = {}
    for group, (data_, path) in zip(groups, images, strict=True):
        if "Faces_easy" not in path:
            first.setdefault(f"neardup/{group}", data_)
    return Pictures("neardup-small", list(first.values()), list(first))


def documents(count: int) -> Pictures:
    """Scans of one layout: letters under one head, forms with other entries, slides of one template."""
    files = [saved(_page(number), quality=85) for number in range(count)]
    return Pictures("pages of one layout (made here)", files, [f"page {number}" for number in range(count)])


def _page(number: int) -> Image.Image:
    kind, rng = ("letter", "form", "slide")[number % 3], generator(0, "page", number)
    page = Image.new("RGB", (640, 480) if kind == "slide" else (600, 800), "white")
    draw, font, large = ImageDraw.Draw(page), ImageFont.load_default(14), ImageFont.load_default(26)

    def words(most: int) -> str:
        return " ".join(rng.choice(WORDS, int(rng.integers(most // 2, most + 1))))

    if kind == "letter":
        draw.rectangle((0, 0, 600, 70), fill="#204080")
        draw.text((30, 20), "Institute of Self-Distillation", "white", large)
        for y in range(120, 120 + 20 * int(rng.integers(12, 32)), 20):
            draw.text((40, y), words(14), "black", font)
    elif kind == "form":
        for row in range(12):
            draw.rectangle((30, 40 + 60 * row, 570, 90 + 60 * row), outline="black", width=2)
            draw.text((40, 45 + 60 * row), f"{row + 1}. {WORDS[row]}", "black", font)
            draw.text((200, 60 + 60 * row), words(5), "#102080", font)
    else:
        draw.rectangle((0, 0, 640, 60), fill="#802040")
        draw.text((20, 14), words(4), "white", large)
        for y in range(100, 100 + 45 * int(rng.integers(3, 8)), 45):
            draw.text((50, y), "- " + words(8), "black", large)
    return page


def blank_pages() -> Pictures:
    """Flat pages of other shades, with the noise of a scanner."""
    files = []
    for number, level in enumerate(range(200, 250, 5)):
        noise = generator(0, "blank", number).normal(level, 2, (400, 300, 1))
        files.append(saved(Image.fromarray(np.repeat(np.clip(noise, 0, 255).astype(np.uint8), 3, 2)), quality=85))
    return Pictures(
        "blank pages of other shades (made here)", files, [f"blank {number}" for number in range(len(files))]
    )
