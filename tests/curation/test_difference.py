"""What two curated folders decide otherwise, against a slow comparison of their tables."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raydino.config import ConfigError
from raydino.curation.difference import Difference, diff
from raydino.curation.ingest import ingest
from raydino.curation.judge import Limits
from raydino.curation.screen import screen
from raydino.curation.synthetic import scene
from raydino.shards.manifest import load
from raydino.shards.schema import Folder, ShardError, content_id


def encoded(image: np.ndarray, kind: str = "PNG", **options: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


COPY = encoded(np.asarray(Image.fromarray(scene(1)).resize((50, 40))), "JPEG", quality=30)
COMMON = {f"train/a/{seed:02d}.png": encoded(scene(seed)) for seed in range(8)} | {"train/b/copy.jpg": COPY}
FIRST = COMMON | {
    "train/b/only.png": encoded(scene(20)),
    "train/b/moved.png": encoded(scene(21)),
    "train/b/again.png": COMMON["train/a/00.png"],
    "train/b/cut.png": encoded(scene(22))[:400],
    "test/a/50.png": encoded(scene(50)),
    "test/a/51.png": encoded(scene(51)),
}
SECOND = COMMON | {
    "train/c/moved.png": encoded(scene(21)),
    "train/c/new.png": encoded(scene(23)),
    "train/c/leak.jpg": encoded(scene(51), "JPEG", quality=60),
    "test/a/50.png": encoded(scene(50)),
    "test/a/51.png": encoded(scene(51)),
    "test/b/02.png": COMMON["train/a/02.png"],
}
del SECOND["train/a/02.png"]


def curated(root: Path, files: dict[str, bytes], *, radius: int) -> str:
    for name, data in files.items():
        (root / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "in" / name).write_bytes(data)
    ingest([str(root / "in")], str(root / "out"), max_bad=0.5)
    screen(str(root / "out"), limits=Limits(radius=radius), threads=1)
    return str(root / "out")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[str, str]:
    root = tmp_path_factory.mktemp("curated")
    return curated(root / "a", FIRST, radius=48), curated(root / "b", SECOND, radius=0)


@pytest.fixture(scope="module")
def found(folders) -> Difference:
    return diff(*folders)


def last_word(folder: str) -> dict[bytes, str]:
    """Slowly, row by row: what became of each id."""
    state: dict[bytes, str] = {}
    for row in pq.read_table(f"{folder}/decisions.parquet").to_pylist():
        if row["kept"] or row["id"] not in state:
            state[row["id"]] = row["reason"] or "kept"
    for row in pq.read_table(f"{folder}/keep/train.parquet").to_pylist():
        if not row["keep"]:
            state[row["id"]] = row["reason"]
    return state


def stored(folder: str) -> dict[bytes, tuple[str, str]]:
    """Class and split of each id in the shards."""
    manifest = load(Folder(folder))
    return {
        row["id"]: (manifest.classes[row["label"]], file.split)
        for file in manifest.files
        for row in pq.read_table(f"{folder}/{file.path}", columns=["id", "label"]).to_pylist()
    }


def grouped(pairs) -> dict:
    out: dict = {}
    for key, identity in pairs:
        out.setdefault(key, set()).add(identity)
    return out


def plain(moves) -> dict:
    assert all(list(ids) == sorted(ids, key=bytes) for ids in moves.values())
    return {key: {one.tobytes() for one in ids} for key, ids in moves.items()}


def test_diff__equals_a_slow_comparison(folders, found):
    a, b = map(last_word, folders)
    assert plain(found.only_a) == grouped((a[one], one) for one in a if one not in b)
    assert plain(found.only_b) == grouped((b[one], one) for one in b if one not in a)
    assert plain(found.decisions) == grouped(((a[one], b[one]), one) for one in a if one in b and a[one] != b[one])
    x, y = map(stored, folders)
    for number, moves in enumerate((found.labels, found.splits)):
        both = [one for one in x if one in y and x[one][number] != y[one][number]]
        assert plain(moves) == grouped(((x[one][number], y[one][number]), one) for one in both)
    for side, state in ((found.a, a), (found.b, b)):
        assert (side.images, side.kept) == (len(state), list(state.values()).count("kept"))


def test_diff__finds_what_was_planted(found):
    def ids(*names: str, of: dict[str, bytes]) -> set[bytes]:
        return {content_id(of[name]) for name in names}

    assert plain(found.only_a) == {
        "kept": ids("train/b/only.png", of=FIRST),
        "truncated": ids("train/b/cut.png", of=FIRST),
    }
    assert plain(found.only_b) == {
        "kept": ids("train/c/new.png", of=SECOND),
        "leaked": ids("train/c/leak.jpg", of=SECOND),
    }
    assert plain(found.decisions) == {("same picture", "kept"): {content_id(COPY)}}
    assert plain(found.labels)[("b", "c")] == ids("train/c/moved.png", of=SECOND)
    assert plain(found.splits) == {("train", "test"): ids("test/b/02.png", of=SECOND)}
    assert found.settings["screen"] == {"radius": (48, 0)}


def test_diff__reads_as_text_and_as_json(found):
    text = str(found)
    for words in (
        "radius: 48 → 0",
        "same picture → kept",
        "train/b/copy.jpg",
        "train → test",
        "b → c",
        "only in b: 2 images",
    ):
        assert words in text
    data = json.loads(json.dumps(found.as_dict()))
    assert data["decisions"] == [{"a": "same picture", "b": "kept", "images": 1, "ids": [content_id(COPY).hex()]}]
    assert found.as_dict(ids=0)["only_a"]["kept"] == {"images": 1, "ids": []}
    assert data["settings"]["screen"] == {"radius": [48, 0]} and data["a"]["images"] == found.a.images


def test_diff__turned_round_says_the_same(folders, found):
    turned = diff(folders[1], folders[0])
    assert plain(turned.only_a) == plain(found.only_b)
    for one, other in (
        (turned.decisions, found.decisions),
        (turned.labels, found.labels),
        (turned.splits, found.splits),
    ):
        assert plain(one) == {(b, a): ids for (a, b), ids in plain(other).items()}


def test_diff__of_a_folder_with_itself_is_nothing(folders):
    assert str(diff(folders[0], folders[0])).endswith("no difference")


def test_diff__a_folder_never_screened_is_compared_by_its_ingest(folders, tmp_path):
    root = tmp_path / "plain"
    for name, data in FIRST.items():
        (root / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "in" / name).write_bytes(data)
    ingest([str(root / "in")], str(root / "out"), max_bad=0.5)
    found = diff(str(root / "out"), folders[0])
    assert plain(found.decisions) == {("kept", "same picture"): {content_id(COPY)}}
    assert found.settings["screen"]["radius"] == ("absent", 48)


def test_diff__a_foreign_mask_and_a_foreign_folder_are_refused(folders, tmp_path):
    with pytest.raises(ConfigError, match=r"no decisions\.parquet"):
        diff(folders[0], str(tmp_path))
    for name in ("decisions.parquet", "manifest.json", "keep/train.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(Path(folders[0], name).read_bytes())
    table = pq.read_table(tmp_path / "decisions.parquet")
    pq.write_table(table.slice(0, 2), tmp_path / "decisions.parquet")
    with pytest.raises(ShardError, match="are not in decisions"):
        diff(str(tmp_path), folders[0])


def test_diff__the_order_of_decisions_does_not_matter(folders, found, tmp_path):
    # an image is kept if any of its files is, also where a file that was left out comes first
    shutil.copytree(folders[0], tmp_path / "a")
    table = pq.read_table(tmp_path / "a" / "decisions.parquet")
    pq.write_table(table.take(np.arange(len(table))[::-1]), tmp_path / "a" / "decisions.parquet", row_group_size=4)
    assert diff(str(tmp_path / "a"), folders[1]).as_dict()["decisions"] == found.as_dict()["decisions"]
    assert str(diff(str(tmp_path / "a"), folders[0])).endswith("no difference")
