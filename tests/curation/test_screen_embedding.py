"""Screening with descriptors: what is kept towards queries, by either published way, and how an epoch is balanced."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raydino.curation.embed import Descriptor
from raydino.curation.ingest import ingest
from raydino.curation.screen import NOT_RETRIEVED, Embedding, screen
from raydino.curation.synthetic import scene
from raydino.shards.reader import open_collection

TOPICS = {"red": (20, [1.6, 0.3, 0.3]), "green": (20, [0.3, 1.6, 0.3]), "blue": (4, [0.3, 0.3, 1.6])}
QUERIES = {"green": 5, "blue": 2}


def colour(images: np.ndarray) -> np.ndarray:
    """float32 [B, 3]: the mean colour, from grey."""
    return images.reshape(len(images), 3, -1).mean(axis=2).astype(np.float32) - 128


COLOUR = Descriptor(
    name="mean colour",
    kind="semantic",
    dim=3,
    size=8,
    digest="0" * 64,
    prepare=lambda image: np.asarray(Image.fromarray(image).resize((8, 8), Image.Resampling.BOX)).transpose(2, 0, 1),
    encode=colour,
)


def ingested(root: Path, counts: dict[str, int], *, first: int) -> str:
    """Scenes in the topics' colours, a folder for each topic."""
    for topic, count in counts.items():
        (root / "in" / topic).mkdir(parents=True)
        for number in range(count):
            tinted = (scene(first + 100 * list(TOPICS).index(topic) + number) * np.array(TOPICS[topic][1])).clip(0, 255)
            buffer = io.BytesIO()
            Image.fromarray(tinted.astype(np.uint8)).save(buffer, "PNG")
            (root / "in" / topic / f"{number}.png").write_bytes(buffer.getvalue())
    ingest([str(root / "in")], str(root / "out"))
    return str(root / "out")


def rows_of(out: str) -> tuple[list[str], np.ndarray]:
    """Topic and unit vector of each training image, without the code that curation uses for it."""
    collection = open_collection(out, split="train")
    rows = [row for group in range(len(collection.row_groups)) for row in collection.read(group).to_pylist()]
    images = [np.asarray(Image.open(io.BytesIO(row["bytes"])).resize((8, 8), Image.Resampling.BOX)) for row in rows]
    vectors = np.stack([image.reshape(-1, 3).mean(axis=0) - 128 for image in images])
    return [Path(row["path"]).parent.name for row in rows], vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A pool and a folder of queries."""
    root = tmp_path_factory.mktemp("retrieval")
    pool = ingested(root / "pool", {topic: count for topic, (count, _) in TOPICS.items()}, first=0)
    return pool, ingested(root / "queries", QUERIES, first=50)


def test_screen__towards_keeps_the_nearest_of_each_query(places: tuple[str, str]):
    pool, queries = places
    mask = screen(pool, embedding=Embedding(COLOUR, towards=queries, retrieved=3)).mask
    _, vectors = rows_of(pool)
    nearest = np.argsort(-rows_of(queries)[1] @ vectors.T, axis=1)[:, :3]
    assert set(np.flatnonzero(mask.keep)) == set(nearest.ravel().tolist())
    assert mask.counts() == {NOT_RETRIEVED: 44 - len(set(nearest.ravel().tolist()))}


def test_screen__towards_by_cells_keeps_the_cells_with_more_than_three_queries(places: tuple[str, str]):
    pool, queries = places
    screen(pool, embedding=Embedding(COLOUR, towards=queries, cells=3))
    reasons = pq.read_table(f"{pool}/keep/train.parquet")["reason"].to_pylist()
    topics, _ = rows_of(pool)
    assert reasons.count(NOT_RETRIEVED) == 24
    assert all((reason == NOT_RETRIEVED) == (topic != "green") for reason, topic in zip(reasons, topics, strict=True))


def test_screen__balance_shows_rare_topics_more_often(places: tuple[str, str]):
    pool, _ = places
    mask = screen(pool, embedding=Embedding(COLOUR, balance=0.5)).mask
    topics = np.array(rows_of(pool)[0])
    assert mask.weight is not None and mask.keep.all()
    assert mask.weight.sum() == pytest.approx(22)
    share = {topic: float(mask.weight[topics == topic].mean()) for topic in TOPICS}
    assert share["blue"] > 1.5 * max(share["red"], share["green"])
