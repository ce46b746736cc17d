"""Keep-masks: digests that stay, weights that travel, and only where there are some."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from raydino.shards.keep import KeepMask, mask_path, read_kept, read_mask, write_mask
from raydino.shards.manifest import build
from raydino.shards.reader import Collection, open_collection
from raydino.shards.schema import Folder, ShardError
from raydino.shards.writer import ShardWriter

REASONS = (None, "same picture", None, None, None)
WEIGHT = np.array([0.5, 0.125, 1, 0.25, 2**-24], dtype=np.float32)


def mask(weight: np.ndarray | None = None) -> KeepMask:
    return KeepMask(REASONS, (None, b"i" * 16, None, None, None), np.array([0, 9, 0, 0, 0]), weight)


def curated(path: Path, kept: KeepMask) -> tuple[Folder, Collection]:
    """A folder with three images of a test split between two files of the training split, and a mask of the latter."""
    folder, files = Folder(path), []
    for split, count in (("train", 5), ("test", 3)):
        with ShardWriter(folder, split, rows_per_group=2, target_bytes=600) as writer:
            for number in range(count):
                writer.add(
                    f"{split} {number}".encode() * 60, path="a", label=None, format="PNG", width=1, height=1, mode="L"
                )
        files += writer.files
    train = [file for file in files if file.split == "train"]
    assert len(train) > 1
    manifest = build(
        folder, [train[0], files[-1], *train[1:], *files[len(train) : -1]], classes=(), labelled=False, stages=()
    )
    write_mask(folder, "train", kept, ids=[bytes([n]) * 16 for n in range(5)])
    manifest.override({"keep": {"train": kept.digest}}).save(folder)
    return folder, open_collection(str(path))


def test_digest__as_before_without_weights_or_with_ones():
    before = hashlib.sha256(bytes([0b10111000]) + b"5").hexdigest()
    assert mask().digest == mask(np.ones(5, np.float32)).digest == before
    assert mask(np.array([1, 0.3, 1, 1, 1], np.float32)).digest == before  # of a row left out


def test_digest__follows_the_weights_of_kept_rows():
    other = WEIGHT.copy()
    other[3] = np.nextafter(other[3], 1)
    assert len({mask().digest, mask(WEIGHT).digest, mask(other).digest}) == 3


def test_write_mask__column_of_weights_only_where_there_are_some(tmp_path: Path):
    folder, ids = Folder(tmp_path), [bytes([n]) * 16 for n in range(5)]
    write_mask(folder, "train", mask(np.ones(5, np.float32)), ids=ids)
    assert pq.read_table(tmp_path / mask_path("train")).column_names == [
        "id",
        "keep",
        "reason",
        "evidence_id",
        "distance",
    ]
    assert read_mask(folder, "train", rows=5, digest=mask().digest).weight is None
    write_mask(folder, "train", mask(WEIGHT), ids=ids)
    again = read_mask(folder, "train", rows=5, digest=mask(WEIGHT).digest)
    assert again.weights is not None and again.weights.tolist() == [0.5, 1, 1, 0.25, 2**-24]


def test_read_mask__a_changed_weight_is_noticed(tmp_path: Path):
    folder = Folder(tmp_path)
    write_mask(folder, "train", mask(WEIGHT), ids=[b"i" * 16] * 5)
    with pytest.raises(ShardError, match="Screen the folder again"):
        read_mask(folder, "train", rows=5, digest=mask(WEIGHT * np.float32(0.5)).digest)


@pytest.mark.parametrize("value", [0, -1, 1.5, np.nan])
def test_write_mask__refuses_weights_out_of_range(tmp_path: Path, value: float):
    weight = WEIGHT.copy()
    weight[3] = value
    with pytest.raises(ShardError, match=f"row 3 has weight {float(value)}"):
        write_mask(Folder(tmp_path), "train", mask(weight), ids=[b"i" * 16] * 5)


def test_weights__stand_at_the_rows_of_their_split(tmp_path: Path):
    _, whole = curated(tmp_path, mask(WEIGHT))
    splits = [file.split for file in whole.manifest.files for _ in range(file.rows)]
    weights, keep = whole.weights(), whole.keep()
    assert weights is not None and keep is not None and weights.dtype == np.float32
    train = np.array(splits) == "train"
    assert splits != sorted(splits, reverse=True)  # the test split stands in between
    assert weights[train].tolist() == [0.5, 1, 1, 0.25, 2**-24] and (weights[~train] == 1).all()
    assert keep[train].tolist() == [True, False, True, True, True] and keep[~train].all()
    assert open_collection(str(tmp_path), split="train").weights().tolist() == weights[train].tolist()
    assert open_collection(str(tmp_path), split="test").weights() is None


def test_weights__none_without_weights(tmp_path: Path):
    assert curated(tmp_path, mask())[1].weights() is None


def test_read_kept__is_the_mask_without_its_reasons_and_as_wary(tmp_path: Path):
    for weight in (None, WEIGHT):
        folder, whole = curated(tmp_path / str(weight is None), mask(weight))
        (kept,) = read_kept(folder, whole.manifest).values()
        whole_mask = mask(weight)
        assert (kept.keep == whole_mask.keep).all()
        assert (kept.weights is None) == (weight is None)
        assert weight is None or (kept.weights == whole_mask.weights).all()
        other = whole.manifest.model_copy(update={"keep": {"train": mask(WEIGHT / 2).digest}})
        with pytest.raises(ShardError, match="5 rows, digest .* Screen the folder again"):
            read_kept(folder, other)
        (Path(str(folder)) / mask_path("train")).unlink()
        with pytest.raises(ShardError, match="cannot be read"):
            read_kept(folder, whole.manifest)
