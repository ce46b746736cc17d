"""An addition to a curated folder that is stopped at any moment leaves the folder as it was, and a second try works."""

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raydino.config import ConfigError
from raydino.curation import features as features_module
from raydino.curation import ingest as ingest_module
from raydino.curation.features import features
from raydino.curation.ingest import ingest
from raydino.curation.ledger import TooManyBad
from raydino.shards.manifest import Manifest, load
from raydino.shards.reader import open_collection
from raydino.shards.schema import Folder


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
B |= {"ant/old.png": png(21), "dog/empty.png": b""}
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


def files_of(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def table(out: Path, name: str) -> list[dict[str, Any]]:
    return pq.read_table(out / name).to_pylist()


def rows(out: Path, split: str) -> pa.Table:
    collection = open_collection(str(out), split=split)
    return collection.rows(np.arange(len(collection)))


def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: bytes) -> None:
        raise AssertionError("an image is decoded")

    monkeypatch.setattr(features_module, "header", refuse)


def known_features(out: Path, split: str) -> tuple[bytes, ...]:
    collection = open_collection(str(out), split=split)
    found = features(collection, split, keep_in=Folder(out), threads=1, progress=lambda *_: None)
    assert list(found.ids) == rows(out, split)["id"].to_pylist()
    assert len(found.table.hashes) == len(found.size) == len(collection)
    return found.ids


class Stopped(BaseException):
    """A stop that nothing catches, as of a lost machine."""


POINTS = [
    ("judge", 3),
    ("move .part", 1),
    ("create .adding/whole/features", 1),
    ("create .adding/whole/decisions", 1),
    ("move .adding/whole/features", 1),
    ("move .adding/whole/features", 2),
    ("move .adding/whole/decisions", 1),
    ("move .adding/whole/quarantine", 1),
    ("move .adding/whole/summary", 1),
    ("create manifest.json.part", 1),
    ("move manifest.json.part", 1),
]


def stop_at(monkeypatch: pytest.MonkeyPatch, what: str, time: int) -> None:
    """Stop before the work with the name is done for the `time`-th time; nothing is tidied up, either."""
    left = [time]
    stopped = []

    def reached(name: str) -> None:
        if stopped:
            raise Stopped
        if re.search(what.replace(" ", " .*"), name):
            left[0] -= 1
            if left[0] == 0:
                stopped.append(True)
                raise Stopped

    create, move, delete, judge = Folder.create, Folder.move, Folder.delete, ingest_module.judge
    monkeypatch.setattr(Folder, "create", lambda self, path: (reached(f"create {path}"), create(self, path))[1])
    monkeypatch.setattr(Folder, "move", lambda self, a, b: (reached(f"move {a}"), move(self, a, b))[1])
    monkeypatch.setattr(Folder, "delete", lambda self, path: None if stopped else delete(self, path))
    monkeypatch.setattr(ingest_module, "judge", lambda *given: (reached("judge"), judge(*given))[1])


@pytest.mark.parametrize(("what", "time"), POINTS)
def test_stop__anywhere_leaves_the_old_folder_and_a_second_try_works(
    place: Path, tmp_path: Path, what: str, time: int
) -> None:
    out = tmp_path / "out"
    before = first(place, out)
    old = {split: (rows(out, split), table(out, f"features/{split}.parquet")) for split in before.splits}
    decided = table(out, "decisions.parquet")
    with pytest.MonkeyPatch.context() as patched:
        stop_at(patched, what, time)
        with pytest.raises(Stopped):
            second(place, out)
    assert load(Folder(out)) == before
    assert table(out, "decisions.parquet")[: len(decided)] == decided
    with pytest.MonkeyPatch.context() as patched:
        no_decoding(patched)
        for split, (there, described) in old.items():
            assert rows(out, split).equals(there)
            assert known_features(out, split) == tuple(row["id"] for row in described)
    ingest([str(place / "c")], str(out), add=True)  # another batch than the one that was stopped
    first(place, tmp_path / "straight")
    ingest([str(place / "c")], str(tmp_path / "straight"), add=True)
    assert files_of(out) == files_of(tmp_path / "straight")


def test_stop__after_the_manifest_is_done(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first(place, out)
    with pytest.MonkeyPatch.context() as patched:

        def stop(*_: object) -> None:
            raise Stopped

        patched.setattr(Folder, "delete_folder", lambda *given: None if load(Folder(out)).rows == 20 else stop())
        with pytest.raises(Stopped):
            second(place, out)
    assert load(Folder(out)).rows == 32
    ingest([str(place / "c")], str(out), add=True)
    assert not (out / ".adding").exists()
    assert load(Folder(out)).rows == 35


def test_stop__too_many_bad(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first(place, out)
    before = files_of(out)
    bad = tree(tmp_path / "bad", {"x/1.png": b"junk", "x/2.png": png(60)})
    with pytest.raises(TooManyBad, match=r"\.adding/quarantine\.parquet"):
        ingest([bad], str(out), add=True)
    assert [row["path"] for row in table(out, ".adding/quarantine.parquet")] == ["x/1.png"]
    assert {name: data for name, data in files_of(out).items() if not name.startswith(".adding/")} == before


def test_stop__changed_meanwhile(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    before = first(place, out)
    screened = before.override({"keep": {"train": "0" * 64}})

    def done(number: int, _: int) -> None:
        if number == 5:
            screened.save(Folder(out))

    with pytest.raises(ConfigError, match="changed meanwhile"):
        ingest([str(place / "b")], str(out), add=True, max_bad=0.5, done=done)
    assert load(Folder(out)) == screened
    assert known_features(out, "train")
