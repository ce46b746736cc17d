"""Shards as written: layout, determinism, round trips, clean-up."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raydino.shards.manifest import Manifest, ShardFile, build, load
from raydino.shards.reader import open_collection
from raydino.shards.schema import Folder, ShardError
from raydino.shards.writer import ShardWriter


def payloads(count: int, *, size: int = 300) -> list[bytes]:
    rng = np.random.default_rng(0)
    return [rng.bytes(size) for _ in range(count)]


def write(
    folder: Folder, data: list[bytes], *, split: str = "train", target_bytes: int = 10_000
) -> tuple[ShardFile, ...]:
    with ShardWriter(folder, split, classes=("cat", "dog"), rows_per_group=4, target_bytes=target_bytes) as writer:
        for number, item in enumerate(data):
            label = None if number % 5 == 4 else number % 2
            writer.add(item, path=f"{number}.bin", label=label, format="PNG", width=3, height=2, mode="RGB")
    return writer.files


def test_add__file_is_hugging_face_layout(tmp_path: Path) -> None:
    data = payloads(10)
    (file,) = write(Folder(tmp_path), data)
    assert file.path == "data/train-00000-of-00001.parquet"
    assert file.row_groups == (4, 4, 2)
    parquet = pq.ParquetFile(tmp_path / file.path)
    table = parquet.read()
    assert table.schema.field("image").type == pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    assert table.schema.field("label").type == pa.int64()
    assert [row["bytes"] for row in table.column("image").to_pylist()] == data
    assert table.column("id").to_pylist() == [hashlib.sha256(item).digest()[:16] for item in data]
    assert table.column("label").to_pylist() == [0, 1, 0, 1, None, 1, 0, 1, 0, None]
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    assert features["label"] == {"names": ["cat", "dog"], "_type": "ClassLabel"}


def test_add__image_column_is_stored_as_it_is(tmp_path: Path) -> None:
    data = [b"a" * 5000] * 4  # would shrink a hundredfold
    (file,) = write(Folder(tmp_path), data)
    assert (tmp_path / file.path).read_bytes().count(b"a" * 5000) == 4


def test_close__files_are_cut_at_the_target_size_and_numbered(tmp_path: Path) -> None:
    files = write(Folder(tmp_path), payloads(30), target_bytes=2000)
    total = len(files)
    assert total > 2
    assert [file.path for file in files] == [f"data/train-{i:05d}-of-{total:05d}.parquet" for i in range(total)]
    assert sum(file.rows for file in files) == 30
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == [file.path[5:] for file in files]


def test_close__equal_input_gives_equal_files(tmp_path: Path) -> None:
    (one,) = write(Folder(tmp_path / "a"), payloads(9))
    (two,) = write(Folder(tmp_path / "b"), payloads(9))
    assert one == two
    assert (tmp_path / "a" / one.path).read_bytes() == (tmp_path / "b" / two.path).read_bytes()


def test_close__digest_changes_with_a_label(tmp_path: Path) -> None:
    digests = set()
    for name, labels in (("a", [0, 1, 0, 1]), ("b", [0, 0, 1, 1])):  # same extremes, so the footer's statistics agree
        with ShardWriter(Folder(tmp_path / name), "train", classes=("x", "y")) as writer:
            for item, label in zip(payloads(4), labels, strict=True):
                writer.add(item, path="p", label=label, format="PNG", width=1, height=1, mode="L")
        digests.add(writer.files[0].digest)
    assert len(digests) == 2


def test_exit__error_leaves_no_shard(tmp_path: Path) -> None:
    with pytest.raises(KeyError), ShardWriter(Folder(tmp_path), "train", rows_per_group=1) as writer:
        writer.add(b"x", path="x", label=None, format="PNG", width=1, height=1, mode="L")
        raise KeyError("stop")
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_add__label_outside_the_classes(tmp_path: Path) -> None:
    writer = ShardWriter(Folder(tmp_path), "train", classes=("cat", "dog"))
    with pytest.raises(ShardError, match="label = 2 is outside the 2 classes"):
        writer.add(b"x", path="x", label=2, format="PNG", width=1, height=1, mode="L")


@pytest.mark.parametrize("address", ["memory://raydino-round-trip/set", "local"])
def test_round_trip__manifest_and_rows(address: str, tmp_path: Path) -> None:
    folder = Folder(tmp_path if address == "local" else address)
    data = payloads(20)
    files = write(folder, data[:14], target_bytes=1500) + write(folder, data[14:], split="test")
    manifest = build(folder, files, classes=("cat", "dog"), labelled=True, stages=[])
    manifest.save(folder)
    assert load(folder) == manifest
    assert manifest.splits == ("train", "test")
    for split, expected in (("train", data[:14]), ("test", data[14:]), (None, data)):
        collection = open_collection(folder.address, split=split)
        read = pa.concat_tables([collection.read(g) for g in range(len(collection.row_groups))])
        assert read.column("bytes").to_pylist() == expected
        assert collection.manifest.digest == (manifest.of_split(split) if split else manifest).digest


def test_build__repeated_ids(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    data = payloads(5)
    files = write(folder, data) + write(folder, data[:2], split="test")
    with pytest.raises(ShardError, match="7 rows have 5 distinct ids, 2 are repeats"):
        build(folder, files, classes=(), labelled=False, stages=[])


def test_load__newer_version(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"version": 2, "files": []}')
    with pytest.raises(ShardError, match="version = 2, this software reads 1"):
        load(Folder(tmp_path))


def test_load__wrong_field_is_named(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"version": 1, "files": [], "clases": []}')
    with pytest.raises(ShardError, match="clases"):
        load(Folder(tmp_path))


def test_digest__depends_on_files_and_classes_not_on_stages() -> None:
    file = ShardFile(path="a", split="train", rows=1, row_groups=(1,), bytes=9, digest="d")
    base = Manifest(files=(file,))
    changed = [
        base.override({"files": (file.override({field: value}),)}) for field, value in (("digest", "e"), ("path", "b"))
    ]
    changed.append(base.override({"classes": ("x",)}))
    assert len({m.digest for m in (base, *changed)}) == 4
    staged = base.override({"stages": ({"name": "validate", "rows_in": 1, "rows_out": 1},)})
    assert staged.digest == base.digest
