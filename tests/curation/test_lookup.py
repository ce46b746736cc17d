"""Why an image is where it is: found by id and by path, from every table, and nothing guessed."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raydino.config import ConfigError
from raydino.curation.ingest import ingest
from raydino.curation.lookup import Known, why
from raydino.curation.screen import screen
from raydino.curation.synthetic import scene
from raydino.shards.schema import ShardError, content_id


def encoded(image: np.ndarray, kind: str = "PNG", **options: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


FILES = {
    **{f"train/a/{seed:02d}.png": encoded(scene(seed)) for seed in range(40)},
    "train/b/again.png": encoded(scene(0)),
    "train/b/recompressed.jpg": encoded(scene(1), "JPEG", quality=50),
    "train/b/leak.jpg": encoded(scene(50), "JPEG", quality=60),
    "train/b/cut.png": encoded(scene(2))[:500],
    "train/b/00.png": encoded(scene(3)[::-1]),
    "test/a/50.png": encoded(scene(50)),
}


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp("curated")
    for name, data in FILES.items():
        (root / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "in" / name).write_bytes(data)
    ingest([str(root / "in")], str(root / "out"), max_bad=0.5)
    screen(str(root / "out"), threads=1)
    return str(root / "out")


def id_of(path: str) -> str:
    return content_id(FILES[path]).hex()


def by_file(known: Known) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {}
    for record in known.records:
        found.setdefault(record["file"].partition("-")[0], []).append(record)
    return found


def test_why__a_kept_image_and_what_repeats_it(out):
    known = why(out, id_of("train/a/01.png")[:12])
    assert known.id == id_of("train/a/01.png")
    found = by_file(known)
    assert set(found) == {"decisions.parquet", "keep/train.parquet", "features/train.parquet", "data/train"}
    assert found["decisions.parquet"][0]["kept"] and found["keep/train.parquet"][0]["keep"]
    assert found["data/train"][0] | {"file": ""} == {
        **{
            "file": "",
            "id": known.id,
            "label": 0,
            "class": "a",
            "format": "PNG",
            "width": 100,
            "height": 80,
            "mode": "RGB",
        },
    }
    assert [(row["id"], row["path"], row["reason"]) for row in known.copies] == [
        (id_of("train/b/recompressed.jpg"), "train/b/recompressed.jpg", "same picture")
    ]
    assert "(train/b/recompressed.jpg), same picture, distance " in str(known)


def test_why__an_image_left_out_names_the_other_and_its_path(out):
    for path, reason, other in (
        ("train/b/recompressed.jpg", "same picture", "train/a/01.png"),
        ("train/b/leak.jpg", "leaked", "test/a/50.png"),
    ):
        known = why(out, path)
        row = by_file(known)["keep/train.parquet"][0]
        assert (row["keep"], row["reason"], row["evidence_id"]) == (False, reason, id_of(other))
        assert known.paths == {id_of(other): other}
        assert f"left out: {reason}, distance {row['distance']:g}, repeats {id_of(other)[:12]} ({other})" in str(known)


def test_why__files_of_the_same_bytes_are_one_image(out):
    known = why(out, "again.png")
    rows = by_file(known)["decisions.parquet"]
    assert [(row["path"], row["kept"], row["reason"]) for row in rows] == [
        ("train/a/00.png", True, None),
        ("train/b/again.png", False, "duplicate"),
    ]
    assert known.copies == () and "(the same bytes)" in str(known)


def test_why__a_broken_file_has_its_reason_and_detail(out):
    found = by_file(why(out, id_of("train/b/cut.png")))
    assert found["quarantine.parquet"][0]["reason"] == found["decisions.parquet"][0]["reason"] == "truncated"
    assert found["quarantine.parquet"][0]["detail"] and "keep/train.parquet" not in found


def test_why__every_prefix_that_means_one_image_finds_it(out):
    ids = sorted({content_id(data).hex() for data in FILES.values()})
    for digits in (1, 2, 5):
        for identity in ids[::3]:
            meant = [one for one in ids if one.startswith(identity[:digits])]
            if len(meant) == 1:
                assert why(out, identity[:digits].upper()).id == identity
            else:
                with pytest.raises(ConfigError, match=f"{len(meant)} images are meant.*give more digits"):
                    why(out, identity[:digits])
                assert digits < 5


def test_why__the_whole_path_comes_before_its_end(out):
    assert why(out, "train/b/00.png").id == id_of("train/b/00.png")
    with pytest.raises(ConfigError, match=r"2 images are meant .*train/a/00\.png.*give more digits"):
        why(out, "00.png")


@pytest.mark.parametrize("asked", ["0" * 32, "nowhere.png", "0.png", "%", ""])
def test_why__unknown_images_are_refused_with_a_remedy(out, asked):
    with pytest.raises(ConfigError, match="give the first digits of an id"):
        why(out, asked)


def test_why__is_fit_for_json_and_holds_no_pictures(out):
    known = why(out, "train/a/05.png")
    text = json.dumps(known.records)
    assert len(text) < 2000 and "thumb" not in text and "image" not in {key for row in known.records for key in row}


def test_why__folders_that_are_not_curated_or_damaged_say_so(out, tmp_path):
    with pytest.raises(ConfigError, match=r"no decisions\.parquet"):
        why(str(tmp_path), "00")
    table = pq.read_table(f"{out}/decisions.parquet")
    Path(tmp_path, "quarantine.parquet").write_bytes(b"PAR1 cut")
    pq.write_table(table, tmp_path / "decisions.parquet")
    with pytest.raises(ShardError, match=r"quarantine\.parquet: cannot be read"):
        why(str(tmp_path), "00")


def test_why__rows_are_found_in_any_row_group(out, tmp_path):
    table = pq.read_table(f"{out}/decisions.parquet")
    pq.write_table(table, tmp_path / "decisions.parquet", row_group_size=3)  # what an ingest that gave up leaves, too
    for path in ("train/a/00.png", "train/a/39.png", "train/b/leak.jpg"):
        assert [row["path"] for row in why(str(tmp_path), path).records][:1] == [path]


def test_why__a_whole_path_comes_before_digits_and_they_before_the_end_of_a_path(tmp_path):
    ids = [bytes([first]) * 16 for first in (0xAB, 0xCD, 0xEF, 0x12)]
    paths = ["x.png", "ab", "y/ab", "z/12"]
    columns = {"id": pa.array(ids, pa.binary(16)), "path": paths, "kept": [True] * 4}
    pq.write_table(pa.table(columns), tmp_path / "decisions.parquet")
    assert why(str(tmp_path), "ab").id == "cd" * 16
    assert why(str(tmp_path), "12").id == "12" * 16
    assert why(str(tmp_path), "abab").id == "ab" * 16
