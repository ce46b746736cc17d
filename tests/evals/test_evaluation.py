"""Image sets against Pillow by hand; splits and held-back rows against set arithmetic."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raydino.config import ConfigError
from raydino.evals import evaluation
from raydino.evals.evaluation import ImageSet, centre_crop, holdout_rows, labelled_sets
from raydino.shards.manifest import Manifest, ShardFile
from raydino.shards.reader import open_collection
from raydino.shards.schema import Folder, ShardError


def png(seed: int, *, size: tuple[int, int] = (40, 32)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_split(folder: Path, split: str, images: list[bytes], labels: list[int] | None) -> None:
    columns: dict[str, object] = {"image": [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(images)]}
    if labels is not None:
        columns["label"] = pa.array(labels, pa.int64())
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / f"{split}-00000-of-00001.parquet", row_group_size=7)


def sets(folder: Path, **changes: object) -> evaluation.Labelled | None:
    arguments = {"train_split": "train", "eval_split": None, "holdout": 0.25, "seed": 3, "bank": 100, "queries": 100}
    return labelled_sets(open_collection(str(folder)), size=32, **{**arguments, **changes})


def by_hand(data: bytes, size: int) -> np.ndarray:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    side = round(size * 256 / 224)
    width, height = image.size
    short = min(width, height)
    image = image.resize((round(width * side / short), round(height * side / short)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size))).transpose(2, 0, 1)


@pytest.mark.parametrize("shape", [(40, 32), (32, 40), (300, 90), (9, 9)])
def test_centre_crop__is_what_pillow_does(shape: tuple[int, int]) -> None:
    data = png(1, size=shape)
    crop = centre_crop(np.asarray(Image.open(io.BytesIO(data))), 32)
    assert crop.shape == (3, 32, 32) and crop.dtype == np.uint8
    np.testing.assert_array_equal(crop, by_hand(data, 32))


def test_image_set__chunks_equal_single_images_and_bad_ones_are_left_out(tmp_path: Path) -> None:
    images = [png(i) for i in range(23)]
    images[5], images[20] = b"<html>not an image</html>", images[20][:90]
    write_split(tmp_path, "train", images, [i % 4 for i in range(23)])
    collection = open_collection(str(tmp_path), split="train")
    rows = np.array([22, 5, 3, 20, 0, 11])  # any order in, ascending out
    image_set = ImageSet(collection, rows, rows % 4, size=32)
    assert image_set.rows.tolist() == sorted(rows.tolist()) and image_set.labels.tolist() == [0, 3, 1, 3, 0, 2]
    for _ in range(2):  # decoded, then from memory
        seen = {}
        for pixels, places in image_set.chunks(np.arange(6), batch=4):
            seen |= dict(zip(image_set.rows[places].tolist(), pixels.numpy(), strict=True))
        assert sorted(seen) == [0, 3, 11, 22] and image_set.undecodable == 2
        for row, pixels in seen.items():
            np.testing.assert_array_equal(pixels, by_hand(images[row], 32))


def test_image_set__without_room_for_a_cache_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_split(tmp_path, "train", [png(i) for i in range(9)], list(range(9)))
    collection = open_collection(str(tmp_path), split="train")
    cached = ImageSet(collection, np.arange(9), np.arange(9), size=32)
    monkeypatch.setattr(evaluation, "CACHE_BYTES", 0)
    uncached = ImageSet(collection, np.arange(9), np.arange(9), size=32)
    for one, two in zip(cached.chunks(np.arange(9), batch=4), uncached.chunks(np.arange(9), batch=4), strict=True):
        np.testing.assert_array_equal(one[0].numpy(), two[0].numpy())


def test_at_most__is_a_keyed_subset_of_rows_with_their_labels(tmp_path: Path) -> None:
    write_split(tmp_path, "train", [png(i) for i in range(30)], list(range(30)))
    whole = ImageSet(open_collection(str(tmp_path), split="train"), np.arange(30), np.arange(30), size=32)
    part, again, other = whole.at_most(8, seed=1), whole.at_most(8, seed=1), whole.at_most(8, seed=2)
    assert len(part) == 8 and part.rows.tolist() == again.rows.tolist() != other.rows.tolist()
    assert part.labels.tolist() == part.rows.tolist() == sorted(set(part.rows.tolist()))
    pixels, _ = next(part.chunks(np.arange(1), batch=1))
    np.testing.assert_array_equal(pixels[0].numpy(), by_hand(png(int(part.rows[0])), 32))


def test_image_set__refuses_labels_that_do_not_match(tmp_path: Path) -> None:
    write_split(tmp_path, "train", [png(0)], [0])
    with pytest.raises(ValueError, match="3 rows, 2 labels"):
        ImageSet(open_collection(str(tmp_path), split="train"), np.arange(3), np.arange(2), size=32)


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
    monkeypatch.setattr(evaluation, "CACHE_BYTES", 6 * 3 * 32 * 32)  # room for six images of twenty
    labelled = sets(tmp_path, bank=6)
    assert labelled is not None and len(labelled.bank) == 6
    list(labelled.bank.chunks(np.arange(6), batch=6))
    monkeypatch.setattr(evaluation, "decode", lambda data: pytest.fail("decoded again"))
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
