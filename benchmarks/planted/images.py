"""Real pictures with planted faults: changed copies, pools full of them, and cifar10 without those that it comes with."""

import io
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageEnhance

from raydino.curation.ingest import ingest
from raydino.curation.screen import screen
from raydino.keyed import generator
from raydino.shards.reader import Collection, open_collection

POPULAR = 50  # pictures that all copies of a pool fall on, the n-th with weight 1 / n: the first has 22 % of them


class Picture(NamedTuple):
    """An image with its label and where it comes from."""

    data: bytes
    label: int
    name: str


def changed(picture: Picture, name: str, rng: np.random.Generator) -> Picture:
    """A copy as others would upload it: resized, mirrored, with another tone, and always compressed again."""
    image = Image.open(io.BytesIO(picture.data)).convert("RGB")
    sizes, mirror, light, contrast = rng.integers(24, 41), rng.random() < 0.5, *rng.uniform(0.8, 1.25, 2)
    if rng.random() < 0.5:
        image = image.resize((int(sizes), int(sizes)), Image.Resampling.LANCZOS)
    if mirror:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.5:
        image = ImageEnhance.Contrast(ImageEnhance.Brightness(image).enhance(light)).enhance(contrast)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(rng.integers(50, 91)))
    return Picture(buffer.getvalue(), picture.label, name)


def write(folder: Path, split: str, pictures: list[Picture]) -> str:
    """`pictures` as a Parquet shard in Hugging Face layout; returns the folder."""
    images = [{"bytes": one.data, "path": one.name} for one in pictures]
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table({"image": images, "label": pa.array([one.label for one in pictures], pa.int32())})
    pq.write_table(table, folder / f"{split}-00000-of-00001.parquet", row_group_size=64)
    return str(folder)


def pictures_of(collection: Collection, rows: np.ndarray) -> list[Picture]:
    table = collection.rows(rows).to_pydict()
    return [Picture(*one) for one in zip(table["bytes"], table["label"], table["path"], strict=True)]


def names(collection: Collection) -> np.ndarray:
    return np.array(collection.rows(np.arange(len(collection)))["path"].to_pylist())


def curated(folder: Path, pictures: list[Picture], queries: list[Picture] | None = None) -> Collection:
    """`pictures` through ingest and screen, as anybody's would go; its keep-mask is there to be followed or not."""
    source = write(folder / "source", "train", pictures)
    ingest([source], str(folder / "out"))
    screen(str(folder / "out"), against=[] if queries is None else [write(folder / "queries", "test", queries)])
    return open_collection(str(folder / "out"), split="train")


class Clean(NamedTuple):
    """Pictures of cifar10 without the copies and leaks that it comes with."""

    pools: list[list[Picture]]  # one for each seed, in an order without meaning
    bank: list[Picture]
    queries: list[Picture]


def clean(data: Path, scratch: Path, *, pools: int, pool: int, bank: int, queries: int) -> Clean:
    """`pools` pools of `pool` pictures and a bank from its training split, `queries` from its test split, by key."""
    train, test = (open_collection(str(data / "cifar10"), split=split) for split in ("train", "test"))
    order, judged = generator(0, "train").permutation(len(train)), generator(0, "test").permutation(len(test))
    asked, wanted = pictures_of(test, np.sort(judged[:queries])), bank + pools * pool
    found = curated(scratch / "clean", pictures_of(train, order[: wanted * 21 // 20]), asked)  # under 3 % of it go
    keep = found.keep()
    assert keep is not None
    kept = pictures_of(found, np.flatnonzero(keep))[:wanted]
    if len(kept) < wanted:
        sys.exit(f"void: {len(kept)} clean pictures, {wanted} are needed")
    rest = kept[bank:]
    return Clean([rest[i * pool :][:pool] for i in range(pools)], kept[:bank], asked)


def pool_with_copies(pictures: list[Picture], share: float, seed: int) -> list[Picture]:
    """As many pictures as given, `share` of them changed copies of the first few of the others."""
    count, rng = round(share * len(pictures)), generator(seed, "copies", str(share))
    distinct, weight = pictures[: len(pictures) - count], 1 / np.arange(1, POPULAR + 1)
    sources = rng.choice(POPULAR, size=count, p=weight / weight.sum())
    copies = [changed(distinct[source], f"{i}:{distinct[source].name}", rng) for i, source in enumerate(sources)]
    pool = distinct + copies
    return [pool[place] for place in rng.permutation(len(pool))]
