"""Splits and held-back rows against set arithmetic."""

from pathlib import Path

import numpy as np
import pytest

from raydino.config import ConfigError
from raydino.evals import images as images_module
from raydino.evals.evaluation import Labelled, holdout_rows, labelled_sets
from raydino.shards.manifest import Manifest, ShardFile
from raydino.shards.reader import open_collection
from raydino.shards.schema import Folder, ShardError
from tests.evals.test_images import png, write_split


def sets(folder: Path, **changes: object) -> Labelled | None:
    arguments = {"train_split": "train", "eval_split": None, "holdout": 0.25, "seed": 3, "bank": 100, "queries": 100}
    return labelled_sets(open_collection(str(folder)), size=32, **{**arguments, **changes})


def test_labelled_sets__takes_the_test_split_and_skips_unlabelled_rows(tmp_path: Path) -> None:
    write_split(tmp_path, "train", [png(i) for i in range(12)], [0, 1, -1] * 4)
    write_split(tmp_path, "test", [png(100 + i) for i in range(5)], [0, 1, 2, 1, -1])
    labelled = sets(tmp_path)
    assert labelled is not None and labelled.keep is None
    assert labelled.bank.rows.tolist() == [0, 1, 3, 4, 6, 7, 9, 10] and labelled.queries.rows.tolist() == [0, 1, 2, 3]
    assert labelled.classes == ("0", "1", "2")  # a class that the bank has not, counts
    assert "4 queries against 8 images, 3 classes" in labelled.description


def test_labelled_sets__holds_rows_back_when_there_is_one_split(tmp_path: Path) -> None:
    write_split(tmp_path, "train", [png(i) for i in range(20)], [0, 1] * 8 + [-1] * 4)
    labelled = sets(tmp_path)
    assert labelled is not None and labelled.keep is not None
    held = set(np.flatnonzero(~labelled.keep).tolist())
    assert held == set(labelled.queries.rows.tolist()) and len(held) == 4
    assert set(labelled.bank.rows.tolist()) == set(range(16)) - held


def test_labelled_sets__none_without_labels(tmp_path: Path) -> None:
    write_split(tmp_path / "a", "train", [png(i) for i in range(4)], None)
    write_split(tmp_path / "b", "train", [png(i) for i in range(4)], [0, 1, 0, 1])
    assert sets(tmp_path / "a") is None
    assert sets(tmp_path / "b", holdout=0.0) is None


@pytest.mark.parametrize("split", ["train", "nowhere", "hidden"])
def test_labelled_sets__bad_eval_split_is_named(tmp_path: Path, split: str) -> None:
    write_split(tmp_path, "train", [png(i) for i in range(4)], [0, 1, 0, 1])
    write_split(tmp_path, "hidden", [png(i) for i in range(4)], [-1] * 4)
    with pytest.raises(ConfigError, match=rf"data\.eval_split = '{split}'"):
        sets(tmp_path, eval_split=split)


@pytest.mark.parametrize(
    ("rows", "share", "held"), [(100, 0.1, 10), (3, 0.01, 1), (2, 0.9, 1), (1, 0.5, 0), (50, 0.0, 0)]
)
def test_holdout_rows__counts(rows: int, share: float, held: int) -> None:
    assert int((~holdout_rows(np.zeros(rows, dtype=np.int64), share=share, seed=0)).sum()) == held


def test_holdout_rows__never_takes_unlabelled_rows_and_depends_on_the_seed_alone() -> None:
    labels = np.where(np.arange(200) % 2, 1, -1)
    keep = holdout_rows(labels, share=0.3, seed=5)
    assert keep[labels < 0].all() and (~keep).sum() == 30
    np.testing.assert_array_equal(keep, holdout_rows(labels, share=0.3, seed=5))
    assert (keep != holdout_rows(labels, share=0.3, seed=6)).any()
    with pytest.raises(ConfigError, match=r"data\.holdout = 1\.0"):
        holdout_rows(labels, share=1.0, seed=0)


@pytest.mark.data
def test_labelled_sets__cifar10(data_folder: Path) -> None:
    labelled = labelled_sets(
        open_collection(str(data_folder / "cifar10")),
        train_split="train",
        eval_split=None,
        holdout=0.1,
        seed=0,
        bank=60,
        queries=40,
        size=32,
    )
    assert labelled is not None and labelled.keep is None
    assert (len(labelled.bank), len(labelled.queries), len(labelled.classes)) == (60, 40, 10)
    pixels, _ = next(labelled.queries.chunks(np.arange(40), batch=40))
    assert pixels.shape == (40, 3, 32, 32) and 90 < pixels.float().mean() < 150  # mean brightness of CIFAR-10 is 121


def test_labelled_sets__memory_is_that_of_the_chosen_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_split(tmp_path, "train", [png(i) for i in range(20)], [0, 1] * 10)
    write_split(tmp_path, "test", [png(100 + i) for i in range(5)], [0, 1, 0, 1, 0])
    monkeypatch.setattr(images_module, "CACHE_BYTES", 6 * 3 * 32 * 32)  # room for six images of twenty
    labelled = sets(tmp_path, bank=6)
    assert labelled is not None and len(labelled.bank) == 6
    list(labelled.bank.chunks(np.arange(6), batch=6))
    monkeypatch.setattr(images_module, "decode", lambda data: pytest.fail("decoded again"))
    [(pixels, _)] = labelled.bank.chunks(np.arange(6), batch=6)
    assert len(pixels) == 6


def test_labelled_sets__a_curated_folder_without_labels_is_known_for_it_without_opening_a_shard(tmp_path: Path) -> None:
    """100,000 of them would be opened one by one at every start, by the driver and by every worker."""
    names = [f"data/train-{number:05d}-of-00003.parquet" for number in range(3)]
    (tmp_path / "data").mkdir()
    for name in names:
        (tmp_path / name).touch()
    one = {"split": "train", "rows": 8, "row_groups": (8,), "bytes": 0, "digest": "0" * 64}
    manifest = Manifest(files=tuple(ShardFile(path=name, **one) for name in names))
    manifest.save(Folder(tmp_path))
    assert sets(tmp_path) is None
    manifest.override({"labelled": True}).save(Folder(tmp_path))
    with pytest.raises(ShardError):
        sets(tmp_path)
