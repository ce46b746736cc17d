"""The built-in images: the same every time, disjoint splits, planted faults found."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from raydino.config import ConfigError
from raydino.curation.synthetic import CLASSES, builtin_images, texture, write_builtin
from raydino.data.decode import decode
from raydino.shards.reader import open_collection


def test_builtin_images__same_seed_same_bytes() -> None:
    one = list(builtin_images(train=30, test=20, seed=3))
    assert one == list(builtin_images(train=30, test=20, seed=3))
    longer = list(builtin_images(train=40, test=20, seed=3))
    assert longer[:30] == one[:30]
    assert longer[40:] == one[30:]
    other = list(builtin_images(train=30, test=20, seed=4))
    assert not {image.data for image in one} & {image.data for image in other}


def test_builtin_images__classes_are_balanced_and_splits_disjoint() -> None:
    images = list(builtin_images(train=80, test=40))
    train = [image for image in images if image.split == "train"]
    test = [image for image in images if image.split == "test"]
    assert (len(train), len(test)) == (80, 40)
    assert {name: sum(image.class_name == name for image in train) for name in CLASSES} == dict.fromkeys(CLASSES, 10)
    assert len({image.data for image in images}) == 120


@pytest.mark.parametrize("name", CLASSES)
def test_texture__grey_levels_are_used_and_images_differ(name: str) -> None:
    pixels = np.stack([texture(name, 0, "train", number) for number in range(20)]).astype(float)
    assert pixels.shape == (20, 48, 48)
    assert pixels.std(axis=(1, 2)).min() > 15
    flat = pixels.reshape(20, -1) - pixels.mean(axis=(1, 2))[:, None]
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    assert np.abs((flat @ flat.T)[~np.eye(20, dtype=bool)]).mean() < 0.3  # no common picture behind them


def test_builtin_images__raw_pixels_say_something_but_little() -> None:
    images = list(builtin_images(train=1000, test=200))
    pixels = np.stack([decode(image.data)[:, :, 0].ravel() for image in images]) / 255 - 0.5
    pixels /= np.linalg.norm(pixels, axis=1, keepdims=True)
    labels = np.array([CLASSES.index(str(image.class_name)) for image in images])
    similar = pixels[1000:] @ pixels[:1000].T
    nearest = np.argsort(-similar, axis=1)[:, :20]
    votes = np.zeros((200, len(CLASSES)))
    for row in range(200):
        for column in nearest[row]:
            votes[row, labels[column]] += np.exp(similar[row, column] / 0.07)
    accuracy = (votes.argmax(axis=1) == labels[1000:]).mean()
    assert 0.25 < accuracy < 0.65  # about half: chance is 0.125, and what is learned must show


def test_write_builtin__faults_are_found_and_images_all_kept(tmp_path: Path) -> None:
    manifest = write_builtin(str(tmp_path / "out"), train=320, test=40, seed=1)
    validate, deduplicate = manifest.stages
    assert validate.by_reason == {"empty": 1, "not an image": 1, "truncated": 1}
    assert deduplicate.by_reason == {"duplicate": 8}
    assert manifest.classes == CLASSES
    for split, count in (("train", 320), ("test", 40)):
        collection = open_collection(str(tmp_path / "out"), split=split)
        assert len(collection) == count
        assert np.bincount(collection.labels()).tolist() == [count // len(CLASSES)] * len(CLASSES)
    rows = pq.read_table(tmp_path / "out" / "decisions.parquet").to_pylist()
    assert len(rows) == 320 + 40 + 8 + 3
    assert all(row["kept"] for row in rows if row["path"].startswith(("train/", "test/")))


def test_write_builtin__too_few_images(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="test = 5"):
        write_builtin(str(tmp_path / "out"), test=5)
