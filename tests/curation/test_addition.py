"""A further batch: what was there stays as it is, and the whole is what one ingest would have made."""

import io
import json
import re
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raydino.config import ConfigError
from raydino.curation import features as features_module
from raydino.curation.archives import SourceError
from raydino.curation.features import features
from raydino.curation.ingest import ingest
from raydino.shards.keep import KeepMask, write_mask
from raydino.shards.manifest import Manifest, load
from raydino.shards.reader import open_collection
from raydino.shards.schema import Folder, ShardError, content_id


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, size=(10, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def tree(root: Path, files: Mapping[str, bytes]) -> str:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return str(root)


A = {f"cat/{n:02d}.png": png(n) for n in range(14)} | {f"dog/{n}.png": png(n) for n in range(20, 26)}
A |= {"dog/again.png": png(3), "dog/bad.png": b"junk"}
B = {f"ant/{n}.png": png(n) for n in range(30, 37)} | {f"dog/{n}.png": png(n) for n in range(40, 45)}
B |= {"ant/old.png": png(21), "ant/twice.png": png(33), "dog/empty.png": b"", "dog/old too.png": png(0)}
C = {f"cat/{n}.png": png(n) for n in range(50, 53)} | {"cow/old.png": png(41)}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sources")
    for name, files in (("a", A), ("b", B), ("c", C)):
        tree(root / name, files)
    return root


def first(place: Path, out: Path) -> Manifest:
    return ingest([str(place / "a")], str(out), max_bad=0.5, eval_fraction=0.3, seed=7)


def second(place: Path, out: Path) -> Manifest:
    return ingest([str(place / "b")], str(out), add=True, max_bad=0.5)


def shards_of(out: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (out / "data").iterdir()}


def table(out: Path, name: str) -> list[dict[str, Any]]:
    return pq.read_table(out / name).to_pylist()


def rows(out: Path, split: str) -> pa.Table:
    collection = open_collection(str(out), split=split)
    return collection.rows(np.arange(len(collection)))


def no_decoding(monkeypatch: pytest.MonkeyPatch, files: Mapping[str, bytes]) -> None:
    """From now on, the decoding of one of these images is an error."""
    forbidden = set(files.values())
    for name in ("decode", "header"):
        whole: Callable[[bytes], Any] = getattr(features_module, name)

        def guarded(data: bytes, whole: Callable[[bytes], Any] = whole) -> Any:
            assert data not in forbidden, "an old image is decoded"
            return whole(data)

        monkeypatch.setattr(features_module, name, guarded)


def known_features(out: Path, split: str) -> tuple[bytes, ...]:
    collection = open_collection(str(out), split=split)
    found = features(collection, split, keep_in=Folder(out), threads=1, progress=lambda *_: None)
    assert list(found.ids) == rows(out, split)["id"].to_pylist()
    assert len(found.table.hashes) == len(found.size) == len(collection)
    return found.ids


def test_add__is_what_one_ingest_would_have_made(place: Path, tmp_path: Path) -> None:
    first(place, tmp_path / "two")
    added = second(place, tmp_path / "two")
    once = ingest([str(place / "a"), str(place / "b")], str(tmp_path / "one"), max_bad=0.5, eval_fraction=0.3, seed=7)
    assert added.classes == once.classes == ("cat", "dog", "ant")
    assert set(added.splits) == set(once.splits) == {"train", "test"}
    for split in once.splits:
        assert rows(tmp_path / "two", split).equals(rows(tmp_path / "one", split))
        one, two = (table(tmp_path / name, f"features/{split}.parquet") for name in ("one", "two"))
        assert one == two
    for name in ("decisions.parquet", "quarantine.parquet"):
        assert table(tmp_path / "two", name) == table(tmp_path / "one", name)
    one, two = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "two"))
    assert two["digest"] == added.digest
    assert len(two["batches"]) == 2
    for name in ("rows_in", "rows_out", "splits", "labelled", "classes", "stages", "skipped"):
        assert two[name] == one[name], name


def test_add__old_rows_files_and_numbers_stay(place: Path, tmp_path: Path) -> None:
    before = first(place, tmp_path / "out")
    shards = shards_of(tmp_path / "out")
    old = {split: rows(tmp_path / "out", split) for split in before.splits}
    after = second(place, tmp_path / "out")
    assert after == load(Folder(tmp_path / "out"))
    assert after.files[: len(before.files)] == before.files
    assert after.classes[: len(before.classes)] == before.classes
    assert shards.items() <= shards_of(tmp_path / "out").items()
    for split, there in old.items():
        now = rows(tmp_path / "out", split)
        assert len(now) > len(there)
        assert now.slice(0, len(there)).equals(there)
    assert {file.path for file in after.files[len(before.files) :]} == {
        f"data/{split}-b001-00000-of-00001.parquet" for split in ("train", "test")
    }
    assert not (tmp_path / "out" / ".adding").exists()


def test_add__stages_say_what_was_there(place: Path, tmp_path: Path) -> None:
    before = first(place, tmp_path / "out")
    after = second(place, tmp_path / "out")
    assert after.stages[:2] == before.stages
    add, validate, deduplicate = after.stages[2:]
    assert (add.name, validate.name, deduplicate.name) == ("add", "validate", "deduplicate")
    assert add.parameters["rows"] == {split: before.of_split(split).rows for split in before.splits}
    assert add.parameters["files"] == {split: before.of_split(split).files_digest for split in before.splits}
    assert validate.parameters["batch"] == deduplicate.parameters["batch"] == 1
    assert (validate.rows_in, validate.rows_out, validate.by_reason) == (16, 15, {"empty": 1})
    assert (deduplicate.rows_out, deduplicate.by_reason, deduplicate.seed) == (12, {"duplicate": 3}, 7)


def test_add__copies_of_old_images_name_them(place: Path, tmp_path: Path) -> None:
    first(place, tmp_path / "out")
    second(place, tmp_path / "out")
    left_out = {
        row["path"]: row for row in table(tmp_path / "out", "decisions.parquet") if row["reason"] == "duplicate"
    }
    assert set(left_out) == {"dog/again.png", "ant/old.png", "ant/twice.png", "dog/old too.png"}
    assert left_out["ant/old.png"]["evidence_id"] == content_id(png(21))
    assert left_out["ant/old.png"]["distance"] == 0


def test_add__no_old_image_is_decoded(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    first(place, out)
    files = {name: data for name, data in B.items() if data not in A.values()}
    tree(tmp_path / "b", files)
    no_decoding(monkeypatch, A)
    with pytest.raises(AssertionError, match="an old image is decoded"):
        ingest([str(place / "a")], str(tmp_path / "again"))
    ingest([str(tmp_path / "b")], str(out), add=True, max_bad=0.5)
    no_decoding(monkeypatch, B)
    assert sum(len(known_features(out, split)) for split in ("train", "test")) == 32


def test_add__again_and_again(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    first(place, out)
    second(place, out)
    after = ingest([str(place / "c")], str(out), add=True)
    assert after.classes == ("cat", "dog", "ant", "cow")
    names = [file.path for file in after.files if file.split == "train"]
    assert names == sorted(names)
    assert [re.sub(r"-\d{5}-.*", "", name) for name in names] == ["data/train", "data/train-b001", "data/train-b002"]
    no_decoding(monkeypatch, A | B | C)  # a split without a new image still has a new class
    assert sum(len(known_features(out, split)) for split in after.splits) == 35
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["rows_in"], summary["rows_out"], len(summary["batches"])) == (42, 35, 3)
    assert len(table(out, "decisions.parquet")) == 42
    assert {row["path"] for row in table(out, "quarantine.parquet")} == {"dog/bad.png", "dog/empty.png"}


def test_add__keep_mask_goes_with_the_first_new_image(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    manifest = first(place, out)
    ids = rows(out, "train")["id"].to_pylist()
    count = len(ids)
    mask = KeepMask(("near",) + (None,) * (count - 1), (None,) * count, np.zeros(count, np.float32))
    write_mask(Folder(out), "train", mask, ids=ids)
    manifest = manifest.override({"keep": {"train": mask.digest}})
    manifest.save(Folder(out))
    nothing_new = ingest([tree(tmp_path / "copies", {"x.png": png(1)})], str(out), add=True)
    assert nothing_new.keep == manifest.keep
    assert nothing_new.rows == manifest.rows
    assert not open_collection(str(out), split="train").keep()[0]  # pyright: ignore[reportOptionalSubscript]
    after = second(place, out)
    assert after.keep == {}
    assert open_collection(str(out), split="train").keep() is None
    assert not (out / "keep" / "train.parquet").exists()
    assert "screen the folder again" in caplog.text


def test_add__stale_features_are_left_to_screening(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first(place, out)
    path = out / "features" / "train.parquet"
    stale = pq.read_table(path).replace_schema_metadata({b"raydino.fingerprint": b"of other software"})
    pq.write_table(stale, path)
    second(place, out)
    assert pq.read_table(path).equals(stale)
    assert len(known_features(out, "train")) > len(stale)


def test_add__new_split_of_a_batch(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first(place, out)
    split = tree(tmp_path / "val", {"val/dog/1.png": png(70), "val/cat/2.png": png(71)})
    after = ingest([split], str(out), add=True)
    assert set(after.splits) == {"train", "test", "val"}
    assert rows(out, "val")["label"].to_pylist() == [0, 1]
    assert len(known_features(out, "val")) == 2


def test_add__names_that_mean_other_splits_do_not_clash(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    other = tmp_path / "other"
    manifest = ingest([tree(tmp_path / "a", {"1.png": png(1), "2.png": png(2)})], str(other))
    (other / manifest.files[0].path).rename(other / "data" / "train-b001-b001-00000-of-00001.parquet")
    (other / "manifest.json").unlink()
    for name in ("decisions", "quarantine", "features/train"):
        (other / f"{name}.parquet").unlink()
    assert ingest([str(other)], out).splits == ("train-b001",)
    after = ingest([tree(tmp_path / "b", {"3.png": png(3)})], out, add=True)
    assert [file.path for file in after.files] == [
        "data/train-b001-00000-of-00001.parquet",
        "data/train-b002-00000-of-00001.parquet",
    ]


def test_add__labels_without_names_and_names_do_not_meet(place: Path, tmp_path: Path) -> None:
    archive = tmp_path / "n.tar"
    with tarfile.open(archive, "w") as tar:
        for name, data in {"1.png": png(80), "1.cls": b"4", "2.png": png(81), "2.cls": b"0"}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    named, bare = tmp_path / "named", tmp_path / "bare"
    first(place, named)
    with pytest.raises(SourceError, match="without a name"):
        ingest([str(archive)], str(named), add=True)
    assert ingest([str(archive)], str(bare)).labelled
    with pytest.raises(SourceError, match="numbers without names"):
        ingest([str(place / "b")], str(bare), add=True, max_bad=0.5)
    assert load(Folder(bare)).rows == 2


def test_add__refusals_name_the_remedy(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match=r"no manifest\.json to add to; ingest without add"):
        ingest([str(place / "b")], str(out), add=True)
    first(place, out)
    with pytest.raises(ConfigError, match=r"seed = 0: .* was curated with 7"):
        ingest([str(place / "b")], str(out), add=True, seed=0)
    with pytest.raises(ConfigError, match=r"eval_fraction = 0\.1: .* was curated with 0\.3"):
        ingest([str(place / "b")], str(out), add=True, eval_fraction=0.1)
    whole = (out / "summary.json").read_text()
    (out / "summary.json").write_text(whole.replace('"rows_in": 22', '"rows_in": 21'))
    with pytest.raises(ConfigError, match=r"summary\.json is not that of manifest\.json"):
        second(place, out)
    (out / "summary.json").write_text(whole)
    pq.write_table(pq.read_table(out / "decisions.parquet").slice(1), out / "decisions.parquet")
    with pytest.raises(ConfigError, match=r"decisions\.parquet: 21 rows, the manifest says 22"):
        second(place, out)


def test_add__into_a_uri(place: Path) -> None:
    out = "memory://raydino-addition/out"
    ingest([str(place / "a")], out, max_bad=0.5)
    ingest([str(place / "b")], out, add=True, max_bad=0.5)
    assert len(open_collection(out)) == 32
    assert not any(entry.path.startswith(".adding") for entry in Folder(out).files())


def test_add__a_damaged_shard_is_told(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = first(place, out)
    (out / manifest.files[0].path).write_bytes(b"torn")
    with pytest.raises(ShardError, match=re.escape(manifest.files[0].path)):
        second(place, out)
    assert load(Folder(out)) == manifest
