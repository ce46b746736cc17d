"""Screening of curated folders: planted copies and leaks, nothing else, whatever the order; and training follows the mask."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raydino.config import ConfigError
from raydino.curation.ingest import ingest
from raydino.curation.judge import LEAKED, SAME_PICTURE, SAME_PIXELS, Limits
from raydino.curation.screen import screen
from raydino.curation.synthetic import scene
from raydino.launch.inputs import open_inputs
from raydino.recipe import Recipe
from raydino.shards.reader import open_collection
from raydino.shards.schema import ShardError, content_id

ROOT = Path(__file__).resolve().parents[2]


def encoded(image: np.ndarray, kind: str = "PNG", **options: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def smaller(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((35, 28), Image.Resampling.LANCZOS))


PLANTED: dict[str, bytes] = {
    **{f"train/a/{seed:02d}.png": encoded(scene(seed)) for seed in range(20)},
    **{f"test/a/{seed:02d}.png": encoded(scene(seed)) for seed in range(100, 106)},
    "train/b/recompressed.jpg": encoded(scene(0), "JPEG", quality=50),
    "train/b/small.png": encoded(smaller(scene(1))),
    "train/b/mirrored.png": encoded(scene(2)[:, ::-1]),
    "train/b/same_pixels.bmp": encoded(scene(3), "BMP"),
    "train/b/leak.jpg": encoded(scene(100), "JPEG", quality=60),
    "train/b/leak_small.png": encoded(smaller(scene(100))),
}
REASONS = {
    "recompressed.jpg": SAME_PICTURE,
    "small.png": SAME_PICTURE,
    "leak.jpg": LEAKED,
    "leak_small.png": LEAKED,
}


def folder(root: Path, files: dict[str, bytes]) -> str:
    for name, data in files.items():
        (root / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "in" / name).write_bytes(data)
    ingest([str(root / "in")], str(root / "out"))
    return str(root / "out")


def left_out(out: str) -> dict[str, str]:
    """Reason by file name of the training images that the mask leaves out."""
    collection = open_collection(out, split="train")
    paths = [path for group in range(len(collection.row_groups)) for path in collection.read(group)["path"].to_pylist()]
    reasons = pq.read_table(f"{out}/keep/train.parquet")["reason"].to_pylist()
    return {path.rpartition("/")[2]: reason for path, reason in zip(paths, reasons, strict=True) if reason}


def test_screen__finds_each_planted_copy_and_leak_and_nothing_else(tmp_path: Path):
    out = folder(tmp_path, PLANTED)
    found = screen(out)
    dropped = left_out(out)
    assert {name: dropped.pop(name, None) for name in REASONS} == REASONS
    # of a picture and its mirror image, and of equal pixels, the copy with more bytes for each pixel stays, whichever it is
    assert sorted(dropped.values()) == [SAME_PICTURE, SAME_PIXELS]
    assert len(set(dropped) & {"mirrored.png", "02.png"}) == len(set(dropped) & {"same_pixels.bmp", "03.png"}) == 1
    assert found.mask.counts() == {LEAKED: 2, SAME_PICTURE: 3, SAME_PIXELS: 1}
    assert found.verdict.inside == {"test": 0} and found.verdict.leaks["test"] == 2


def test_screen__larger_copy_stays_and_evidence_names_it(tmp_path: Path):
    out = folder(tmp_path, PLANTED)
    found = screen(out)
    ids = _ids(out)
    row = list(ids).index("small.png")
    assert found.mask.evidence[row] == ids["01.png"] and 0 <= found.mask.distance[row] <= 48


def _ids(out: str) -> dict[str, bytes]:
    collection = open_collection(out, split="train")
    rows = [row for group in range(len(collection.row_groups)) for row in collection.read(group).to_pylist()]
    return {row["path"].rpartition("/")[2]: row["id"] for row in rows}


def test_screen__same_decisions_whatever_the_names_and_so_the_order_of_files(tmp_path: Path):
    renamed = {}
    for number, (name, data) in enumerate(sorted(PLANTED.items(), key=lambda item: item[1][-30:])):
        split, group, file = name.split("/")
        renamed[f"{split}/{group}/{number:03d}-{file}"] = data
    one, other = folder(tmp_path / "one", PLANTED), folder(tmp_path / "other", renamed)
    screen(one)
    screen(other, threads=1)
    assert {name.partition("-")[2]: reason for name, reason in left_out(other).items()} == left_out(one)


def test_screen__against_another_collection(tmp_path: Path):
    out = folder(tmp_path / "mine", PLANTED)
    bench = folder(tmp_path / "bench", {f"test/x/{n}.jpg": encoded(scene(n), "JPEG", quality=70) for n in (5, 6, 300)})
    found = screen(out, against=[bench])
    dropped = left_out(out)
    assert dropped["05.png"] == dropped["06.png"] == LEAKED
    assert found.verdict.leaks[f"against {bench}"] == 2


def test_screen__a_collection_named_like_a_split_is_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = folder(tmp_path / "mine", PLANTED)
    Path(folder(tmp_path / "bench", {"test/x/5.jpg": encoded(scene(5), "JPEG", quality=70)})).rename(tmp_path / "train")
    monkeypatch.chdir(tmp_path)
    found = screen(out, against=["train"])
    assert len(found.mask.keep) == 26 and left_out(out)["05.png"] == LEAKED


def test_screen__leaks_do_not_come_back_when_an_evaluation_set_is_forgotten(tmp_path: Path):
    out = folder(tmp_path / "mine", PLANTED)
    bench = folder(tmp_path / "bench", {"test/x/5.jpg": encoded(scene(5), "JPEG", quality=70)})
    screen(out, against=[bench])
    before = open_collection(out).manifest.digest
    with pytest.raises(ConfigError, match="name it again with --against"):
        screen(out, limits=Limits(radius=32))
    assert open_collection(out).manifest.digest == before
    screen(out, limits=Limits(radius=32), against=[bench])


def test_screen__leaving_nothing_is_refused_and_changes_nothing(tmp_path: Path):
    out = folder(tmp_path, {name: data for name, data in PLANTED.items() if name.startswith("train")})
    with pytest.raises(ConfigError, match="nothing would be left"):
        screen(out, against=[out])
    assert open_collection(out).keep() is None


def test_screen__evidence_of_a_leak_is_the_nearest_evaluation_image_whatever_its_name(tmp_path: Path):
    test = {"near": encoded(scene(7), "JPEG", quality=90), "far": encoded(smaller(scene(7)), "JPEG", quality=10)}
    found = []
    for order in (("a", "b"), ("b", "a")):
        files = {f"test/x/{name}.jpg": data for name, data in zip(order, test.values(), strict=True)}
        out = folder(tmp_path / order[0], {**PLANTED, **files})
        mask = screen(out).mask
        row = list(_ids(out)).index("07.png")
        found.append((mask.reason[row], mask.evidence[row], int(mask.distance[row])))
    assert found[0] == found[1] and found[0][1] == content_id(test["near"])


def test_screen__torn_features_are_computed_again(tmp_path: Path):
    out = folder(tmp_path, PLANTED)
    first = screen(out).mask
    torn = Path(out) / "features" / "train.parquet"
    torn.write_bytes(torn.read_bytes()[:-200])
    assert screen(out).mask.digest == first.digest


def test_screen__another_radius_needs_no_decoding_and_is_another_collection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = folder(tmp_path, PLANTED)
    before = open_collection(out).manifest.digest
    screen(out)
    wide = open_collection(out).manifest.digest
    monkeypatch.setattr("raydino.curation.features.decode", lambda data: pytest.fail("decoded again"))
    strict = screen(out, limits=Limits(radius=0, leak_radius=0))
    narrow = open_collection(out).manifest
    assert len({before, wide, narrow.digest}) == 3
    assert strict.mask.keep.sum() > 20 and [stage.name for stage in narrow.stages].count("screen") == 1


def test_screen__training_and_the_bank_follow_the_mask(tmp_path: Path):
    out = folder(tmp_path, PLANTED)
    screen(out)
    recipe = Recipe().override(
        {"global_batch": 8, "data.path": out, "method.global_crops.size": 32, "method.local_crops.size": 16}
    )
    inputs = open_inputs(recipe, out)
    kept = np.flatnonzero(inputs.collection.keep())
    assert inputs.plan.kept == len(kept) == 20
    seen = {int(row) for step in range(inputs.plan.steps_per_epoch * 3) for row in inputs.plan.slots(step)}
    assert seen <= set(kept.tolist())
    assert set(inputs.labelled.bank.rows.tolist()) <= set(kept.tolist())
    assert len(inputs.labelled.queries) == 6


def test_keep__a_mask_that_is_not_the_manifests_is_refused(tmp_path: Path):
    out = folder(tmp_path, PLANTED)
    screen(out)
    path = Path(out) / "keep" / "train.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)
    with pytest.raises(ShardError, match="Screen the folder again"):
        open_collection(out, split="train").keep()
    path.unlink()
    with pytest.raises(ShardError, match="cannot be read"):
        open_collection(out).keep()


def test_keep__a_folder_without_a_mask_keeps_all(tmp_path: Path):
    out = folder(tmp_path, PLANTED)
    assert open_collection(out).keep() is None
    screen(out)
    assert open_collection(out, split="test").keep() is None


def test_keep__of_a_whole_folder_covers_all_splits(tmp_path: Path):
    out = folder(tmp_path, PLANTED)
    found = screen(out)
    whole = open_collection(out)
    assert len(whole.keep()) == len(whole) == len(found.mask.keep) + 6
    assert whole.keep().sum() == found.mask.keep.sum() + 6


@pytest.mark.parametrize(
    ("options", "message"), [({"radius": 73}, "radius = 73"), ({"leak_radius": -1}, "leak_radius = -1")]
)
def test_screen__refuses_radii_out_of_range(tmp_path: Path, options: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        screen(folder(tmp_path, PLANTED), limits=Limits(**options))


def test_screen__refuses_a_folder_that_is_not_curated(tmp_path: Path):
    with pytest.raises(ConfigError, match="curate the images first"):
        screen(str(tmp_path))


@pytest.mark.data
def test_screen__groups_of_real_near_duplicates(data_folder: Path):
    """One bridge photo in 19 versions: its twelve changes of tone, blur and scale meet; the seven single images meet nobody."""
    from raydino.curation.duplicates import within
    from raydino.curation.features import features

    table = pq.read_table(next((data_folder / "neardup-small" / "data").glob("*.parquet")))
    found = features(
        open_collection(str(data_folder / "neardup-small")), "test", keep_in=None, threads=1, progress=lambda *_: None
    )
    pairs = within(found.table)
    group = np.array(table["group"].to_pylist())
    assert (group[pairs.first] == group[pairs.second]).all()
    bridge = group == 0
    met = np.zeros(len(group), dtype=bool)
    met[pairs.first] = met[pairs.second] = True
    assert met[bridge].sum() >= 12
    assert not met[(group > 0) & (group < 100)].any()


def test_screen__named_masks_lie_side_by_side_and_training_chooses(tmp_path: Path):
    """One set of shards under three decisions: the folder's own, a stricter one by name, and none."""
    out = folder(tmp_path, PLANTED)
    own = screen(out).mask
    strict = screen(out, limits=Limits(radius=0, leak_radius=0), name="strict").mask
    assert own.keep.sum() < strict.keep.sum() < len(strict.keep)
    kept, digests = [], set()
    for name in ("", "strict", "all"):
        recipe = Recipe().override(
            {
                "global_batch": 8,
                "data.path": out,
                "data.keep": name,
                "method.global_crops.size": 32,
                "method.local_crops.size": 16,
            }
        )
        inputs = open_inputs(recipe, out)
        kept.append(inputs.plan.kept)
        digests.add(inputs.collection.manifest.digest)
    assert kept == [own.keep.sum(), strict.keep.sum(), len(own.keep)] and len(digests) == 3
    with pytest.raises(ShardError, match="screen it with --name loose"):
        open_collection(out, mask="loose")
    with pytest.raises(ConfigError, match="name = 'all'"):
        screen(out, name="all")
