"""Ingest: what is kept, what is not and why, and that nobody suffers for a neighbour."""

import io
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raydino.config import ConfigError
from raydino.curation.archives import SourceError
from raydino.curation.ingest import ingest
from raydino.curation.ledger import TooManyBad
from raydino.shards.reader import open_collection
from raydino.shards.schema import content_id

ROOT = Path(__file__).resolve().parents[2]


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, size=(10, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def tree(root: Path, files: dict[str, bytes]) -> str:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return str(root)


def kept_bytes(out: Path, split: str | None = None) -> list[bytes]:
    collection = open_collection(str(out), split=split)
    return [data for g in range(len(collection.row_groups)) for data in collection.read(g).column("bytes").to_pylist()]


def test_ingest__bad_images_leave_their_neighbours_alone(tmp_path: Path) -> None:
    good = {f"{n:02d}.png": png(n) for n in range(0, 40, 2)}
    bad = {"01.png": b"", "03.jpg": b"<html></html>", "05.png": png(99)[:200], "07.pdf": b"%PDF-1.4"}
    out = tmp_path / "out"
    manifest = ingest([tree(tmp_path / "in", good | bad)], str(out), max_bad=0.2)
    assert kept_bytes(out) == [good[name] for name in sorted(good)]
    quarantine = pq.read_table(out / "quarantine.parquet").to_pylist()
    assert {row["path"]: row["reason"] for row in quarantine} == {
        "01.png": "empty",
        "03.jpg": "not an image",
        "05.png": "truncated",
        "07.pdf": "format not allowed",
    }
    assert all(row["id"] == content_id(bad[row["path"]]) for row in quarantine)
    decisions = pq.read_table(out / "decisions.parquet").to_pylist()
    assert [row["path"] for row in decisions] == sorted(good | bad)
    assert [row["path"] for row in decisions if not row["kept"]] == sorted(bad)
    validate, deduplicate = manifest.stages
    assert (validate.rows_in, validate.rows_out, deduplicate.rows_out) == (24, 20, 20)
    assert sum(validate.by_reason.values()) == 4
    assert json.loads((out / "summary.json").read_text())["rows_out"] == 20


def test_ingest__first_of_equal_images_stays(tmp_path: Path) -> None:
    files = {"a.png": png(1), "b.png": png(2), "c.png": png(1), "d.png": png(3), "e.png": png(1)}
    out = tmp_path / "out"
    manifest = ingest([tree(tmp_path / "in", files)], str(out))
    assert kept_bytes(out) == [png(1), png(2), png(3)]
    dropped = [row for row in pq.read_table(out / "decisions.parquet").to_pylist() if not row["kept"]]
    assert [(row["path"], row["reason"], row["evidence_id"], row["distance"]) for row in dropped] == [
        ("c.png", "duplicate", content_id(png(1)), 0.0),
        ("e.png", "duplicate", content_id(png(1)), 0.0),
    ]
    assert manifest.stages[1].by_reason == {"duplicate": 2}


def test_ingest__splits_and_labels_of_several_sources(tmp_path: Path) -> None:
    one = tree(tmp_path / "one", {"train/cat/1.png": png(1), "train/dog/2.png": png(2), "test/cat/3.png": png(3)})
    two = tree(tmp_path / "two", {"dog/4.png": png(4), "ant/5.png": png(5)})
    out = tmp_path / "out"
    manifest = ingest([one, two], str(out))
    assert manifest.classes == ("cat", "dog", "ant")
    assert manifest.labelled
    assert kept_bytes(out, "test") == [png(3)]
    train = open_collection(str(out), split="train")
    by_data = dict(zip(kept_bytes(out, "train"), train.labels().tolist(), strict=True))
    assert by_data == {png(1): 0, png(2): 1, png(4): 1, png(5): 2}


def test_ingest__eval_fraction_depends_on_content_alone(tmp_path: Path) -> None:
    files = {f"{n}.png": png(n) for n in range(60)}
    renamed = {f"x/{59 - n}.png": data for n, data in enumerate(files.values())}
    tests = []
    for name, content in (("a", files), ("b", renamed)):
        ingest([tree(tmp_path / name, content)], str(tmp_path / f"{name}-out"), eval_fraction=0.3)
        tests.append(set(kept_bytes(tmp_path / f"{name}-out", "test")))
    assert tests[0] == tests[1]
    assert 8 <= len(tests[0]) <= 28  # binomial(60, 0.3): 18 ± 3 standard deviations


def test_ingest__same_input_same_digest_whatever_the_threads(tmp_path: Path) -> None:
    source = tree(tmp_path / "in", {f"{n:03d}.png": png(n) for n in range(70)})
    digests = {ingest([source], str(tmp_path / f"out{t}"), threads=t).digest for t in (1, 4)}
    assert len(digests) == 1


def test_ingest__too_many_bad(tmp_path: Path) -> None:
    files = {f"{n}.png": png(n) for n in range(9)} | {"x.png": b"junk"}
    out = tmp_path / "out"
    with pytest.raises(TooManyBad, match=r"max_bad = 0\.05: 1 of 10 images cannot be decoded \(1 not an image\)"):
        ingest([tree(tmp_path / "in", files)], str(out))
    assert pq.read_table(out / "quarantine.parquet").num_rows == 1
    assert list(out.rglob("*train*")) == []
    assert not (out / "manifest.json").exists()


def test_ingest__out_that_is_not_empty(tmp_path: Path) -> None:
    source = tree(tmp_path / "in", {"1.png": png(1)})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(ConfigError, match="not empty"):
        ingest([source], str(tmp_path / "out"))


def test_ingest__nothing_to_ingest(tmp_path: Path) -> None:
    source = tree(tmp_path / "in", {"1.txt": b"x"})
    with pytest.raises(SourceError, match="0 images found, 1 other files"):
        ingest([source], str(tmp_path / "out"))
    with pytest.raises(SourceError, match="at least one"):
        ingest([], str(tmp_path / "out"))
    with pytest.raises(ConfigError, match=r"max_bad = 1\.5"):
        ingest([source], str(tmp_path / "out"), max_bad=1.5)


def test_ingest__into_a_uri(tmp_path: Path) -> None:
    source = tree(tmp_path / "in", {"1.png": png(1), "2.png": png(2)})
    manifest = ingest([source], "memory://raydino-ingest/out")
    read = open_collection("memory://raydino-ingest/out")
    assert read.manifest == manifest
    assert read.read(0).column("bytes").to_pylist() == [png(1), png(2)]


def run_recipe(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["curate.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "recipes" / "curate.py"), run_name="__main__")
    return ended.value.code


def test_recipe__table_and_one_line_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tree(tmp_path / "in", {"1.png": png(1), "2.png": png(1), "3.png": b""})
    arguments = ("--source", source, "--out", str(tmp_path / "out"), "--max-bad", "0.5")
    assert run_recipe(monkeypatch, *arguments) == 0
    printed = capsys.readouterr().out
    for name, count in (("images in", 3), ("validate: empty", -1), ("deduplicate: duplicate", -1), ("images kept", 1)):
        assert any(line.split() == [*name.split(), str(count)] for line in printed.splitlines()), name
    assert run_recipe(monkeypatch, *arguments) == 1
    complaint = capsys.readouterr().err
    assert complaint.startswith("error: out = ")
    assert complaint.count("\n") == 1
