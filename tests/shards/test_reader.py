"""Reading shards made here and elsewhere, and shards that were damaged."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raydino.shards import retries
from raydino.shards.manifest import build
from raydino.shards.reader import open_collection
from raydino.shards.retries import with_retries
from raydino.shards.schema import Folder, ShardError, split_of
from raydino.shards.writer import ShardWriter


def curated(root: Path, *, rows: int = 20) -> Path:
    rng = np.random.default_rng(1)
    with ShardWriter(Folder(root), "train", classes=("a", "b"), rows_per_group=4) as writer:
        for number in range(rows):
            writer.add(rng.bytes(400), path=f"{number}", label=number % 2, format="PNG", width=1, height=1, mode="L")
    build(Folder(root), writer.files, classes=("a", "b"), labelled=True, stages=[]).save(Folder(root))
    return root / writer.files[0].path


def foreign(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=3)


def images(count: int, *, start: int = 0) -> list[dict[str, object]]:
    return [{"bytes": f"image {n}".encode(), "path": f"{n}.jpg"} for n in range(start, start + count)]


@pytest.mark.parametrize("label", [pa.int32(), pa.int64(), pa.uint8(), None])
def test_open_collection__foreign_folder(label: pa.DataType | None, tmp_path: Path) -> None:
    columns: dict[str, object] = {"image": images(7), "caption": ["x"] * 7}
    if label is not None:
        columns["label"] = pa.array([0, 1, 2, 3, 4, 5, None], type=label)
    foreign(tmp_path / "data" / "train-00000-of-00001.parquet", pa.table(columns))
    collection = open_collection(str(tmp_path))
    assert collection.row_groups == (3, 3, 1)
    assert collection.manifest.labelled is (label is not None)
    np.testing.assert_array_equal(collection.labels(), [*range(6), -1] if label is not None else [-1] * 7)
    table = collection.read(1)
    assert table.column("bytes").to_pylist() == [b"image 3", b"image 4", b"image 5"]
    assert table.column("id").to_pylist() == [hashlib.sha256(f"image {n}".encode()).digest()[:16] for n in (3, 4, 5)]
    assert table.column("path").to_pylist() == ["3.jpg", "4.jpg", "5.jpg"]
    assert table.schema.types == [pa.binary(16), pa.binary(), pa.string(), pa.int64()]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_read__plain_binary_images_and_a_foreign_id(kind: pa.DataType, tmp_path: Path) -> None:
    table = pa.table({"image": pa.array([b"x", b"y"], type=kind), "id": ["one", "two"], "label": [-1, 3]})
    foreign(tmp_path / "anything.parquet", table)
    read = open_collection(str(tmp_path)).read(0)
    assert read.column("bytes").to_pylist() == [b"x", b"y"]
    assert read.column("id").to_pylist() == [hashlib.sha256(b).digest()[:16] for b in (b"x", b"y")]
    assert read.column("label").to_pylist() == [None, 3]


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("data/train-00000-of-00004.parquet", "train"),
        ("test-00001-of-00002.parquet", "test"),
        ("data/train-b001-00000-of-00001.parquet", "train"),
        ("data/my-b2-b1000-00000-of-00001.parquet", "my-b2"),
        ("data/my_split-00000-of-00001-abc123.parquet", "my_split"),
        ("validation/0000.parquet", "validation"),
        ("default/test/part-7.parquet", "test"),
        ("val.parquet", "val"),
        ("part-000017.parquet", "train"),
    ],
)
def test_split_of__names_and_folders(path: str, split: str) -> None:
    assert split_of(path) == split


def test_rows__any_order_and_repeats_against_the_whole(tmp_path: Path) -> None:
    curated(tmp_path)
    collection = open_collection(str(tmp_path))
    whole = pa.concat_tables([collection.read(g) for g in range(5)])
    asked = np.random.default_rng(0).integers(0, 20, size=33)
    reads: list[int] = []
    inner = collection.read
    collection.read = lambda group: (reads.append(group), inner(group))[1]  # type: ignore[method-assign]
    assert collection.rows(asked).to_pylist() == [whole.slice(i, 1).to_pylist()[0] for i in asked.tolist()]
    assert sorted(reads) == sorted(set(reads))
    assert collection.rows(np.array([], dtype=np.int64)).num_rows == 0
    with pytest.raises(IndexError, match="has 20"):
        collection.rows(np.array([20]))


def test_collection__pickles_small_and_equal(tmp_path: Path) -> None:
    curated(tmp_path)
    collection = open_collection(str(tmp_path))
    collection.read(0)  # what is cached must not travel
    sent = pickle.dumps(collection)
    assert len(sent) < 2000
    assert pickle.loads(sent).read(4).equals(collection.read(4))


def test_column__further_columns_by_row_group_and_what_is_not_there_is_named(tmp_path: Path) -> None:
    table = pa.table({"image": pa.array([b"a", b"b", b"c"], pa.binary()), "depth": [1.5, 2.5, 3.5]})
    pq.write_table(table, tmp_path / "train-00000-of-00001.parquet", row_group_size=2)
    opened = open_collection(str(tmp_path))
    assert opened.columns == {"image", "depth"}
    assert [opened.column(group, "depth").to_pylist() for group in (0, 1)] == [[1.5, 2.5], [3.5]]
    with pytest.raises(ShardError, match="no column 'mask' in \\['depth', 'image'\\]"):
        opened.column(0, "mask")


def test_open_collection__unknown_split(tmp_path: Path) -> None:
    curated(tmp_path)
    with pytest.raises(ShardError, match="split = 'test': there is no such split; there are: train"):
        open_collection(str(tmp_path), split="test")


def test_open_collection__no_folder(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"no such folder, or neither manifest\.json nor Parquet files in it"):
        open_collection(str(tmp_path / "absent"))


def test_open_collection__unknown_scheme() -> None:
    with pytest.raises(ShardError, match="nosuch://host/x"):
        open_collection("nosuch://user:secret@host/x")


def test_read__flipped_bit_is_found_by_the_page_checksum(tmp_path: Path) -> None:
    shard = curated(tmp_path)
    whole = shard.read_bytes()
    victim = open_collection(str(tmp_path)).read(2).column("bytes").to_pylist()[1]
    place = whole.index(victim) + 100
    shard.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
    collection = open_collection(str(tmp_path))
    assert collection.read(1).num_rows == 4
    with pytest.raises(ShardError, match=r"train-00000-of-00001\.parquet, row group 2: cannot be read.*CRC"):
        collection.read(2)


def test_read__shard_changed_since_the_manifest(tmp_path: Path) -> None:
    shard = curated(tmp_path / "a", rows=8)
    other = curated(tmp_path / "b", rows=9)
    shard.write_bytes(other.read_bytes())
    with pytest.raises(ShardError, match=r"changed since the manifest: .* the manifest says"):
        open_collection(str(tmp_path / "a")).read(0)


def test_open_collection__torn_footer(tmp_path: Path) -> None:
    foreign(tmp_path / "train.parquet", pa.table({"image": images(5)}))
    shard = tmp_path / "train.parquet"
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(ShardError, match=r"train\.parquet: no Parquet footer"):
        open_collection(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"PAR1", b"\xff\xff\xff\xffPAR1", b"x" * 50 + b"\x20\0\0\0PAR1"])
def test_open_collection__not_parquet(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(content)
    with pytest.raises(ShardError, match=r"train\.parquet"):
        open_collection(str(tmp_path))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"picture": [b"x"]}, "no column 'image'"),
        ({"image": ["x"]}, "column 'image' is string"),
        ({"image": [b"x"], "label": ["cat"]}, "column 'label' is string"),
    ],
)
def test_open_collection__wrong_columns(columns: dict[str, list[object]], message: str, tmp_path: Path) -> None:
    foreign(tmp_path / "train.parquet", pa.table(columns))
    with pytest.raises(ShardError, match=message):
        open_collection(str(tmp_path))


def test_read__null_image_names_row_group_and_row(tmp_path: Path) -> None:
    foreign(tmp_path / "train.parquet", pa.table({"image": [*images(4), {"bytes": None, "path": "far"}]}))
    with pytest.raises(ShardError, match=r"row group 1: 1 of 2 images have no bytes \(first: row 1\)"):
        open_collection(str(tmp_path)).read(1)


def test_open_collection__shards_that_disagree_on_classes(tmp_path: Path) -> None:
    for name, labels in (("train", b'["a", "b"]'), ("test", b'["b", "a"]')):
        table = pa.table({"image": images(2), "label": [0, 1]}).replace_schema_metadata({b"label_names": labels})
        foreign(tmp_path / f"{name}.parquet", table)
    with pytest.raises(ShardError, match="label numbers would mean different things"):
        open_collection(str(tmp_path))


def test_with_retries__passing_and_lasting_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(retries.time, "sleep", waits.append)
    outcomes = [OSError("503 slow down"), OSError("timeout"), "done"]

    def action() -> str:
        outcome = outcomes.pop(0)
        if isinstance(outcome, OSError):
            raise outcome
        return outcome

    assert with_retries(action) == "done"
    assert len(waits) == 2
    tries = []

    def always(error: OSError) -> None:
        tries.append(error)
        raise error

    for error, expected in ((OSError("503"), 4), (FileNotFoundError("x"), 1), (OSError("AWS Error ACCESS_DENIED"), 1)):
        tries.clear()
        with pytest.raises(OSError):
            with_retries(lambda error=error: always(error))
        assert len(tries) == expected


@pytest.mark.data
def test_open_collection__cifar10_as_it_lies(data_folder: Path) -> None:
    collection = open_collection(str(data_folder / "cifar10"), split="train")
    assert collection.manifest.classes[0] == "airplane"
    assert len(collection.manifest.classes) == 10
    assert collection.manifest.rows == len(collection) == sum(collection.row_groups) == 50_000
    np.testing.assert_array_equal(np.bincount(collection.labels()), [5000] * 10)
    rows = collection.rows(np.array([49_999, 0]))
    assert rows.column("path").to_pylist() == ["train/automobile/4999.jpg", "train/frog/0000.jpg"]
    assert rows.column("label").to_pylist() == [1, 6]
