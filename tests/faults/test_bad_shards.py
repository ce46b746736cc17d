"""Rows 31 to 36, 39 and parts of 37 and 40 of the matrix of bad input (docs/reliability.md): shards and storage that fails.

Damage is judged against an undamaged golden run, in order and by content hash: an error is right, another image without a
word is not.
"""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raydino.config import ConfigError
from raydino.curation.ingest import ingest
from raydino.data.batches import batches
from raydino.data.fetch import BadImage, TooManyBadImages, local_windows
from raydino.data.plan import Plan
from raydino.launch.inputs import open_inputs
from raydino.recipe import Recipe
from raydino.shards import retries
from raydino.shards.manifest import build, load
from raydino.shards.reader import Collection, open_collection
from raydino.shards.schema import Folder, ShardError, ShardUnreachable, content_id
from raydino.shards.writer import ShardWriter
from raydino.views import Crops, Views

VIEWS = Views(crops={"global": Crops(count=1, size=8, scale=(0.4, 1.0))})


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, size=(8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def shelve(root: Path, images: list[bytes], *, group_rows: int = 8) -> Path:
    """A curated folder of one split; returns its only shard."""
    folder = Folder(root)
    with ShardWriter(folder, "train", rows_per_group=group_rows) as writer:
        for number, data in enumerate(images):
            writer.add(data, path=f"{number}.png", label=None, format="PNG", width=8, height=8, mode="RGB")
    build(folder, writer.files, classes=(), labelled=False, stages=[]).save(folder)
    return root / writer.files[0].path


def train(
    root: Path, *, epochs: int = 1, max_bad: float = 0.05, shelf: Collection | None = None
) -> tuple[list[Any], list[BadImage]]:
    """What one worker would be given: per step the ids and a digest of the pixels; and what it was told of bad images."""
    shelf = shelf or open_collection(str(root))
    plan = Plan(shelf.row_groups, seed=3, global_batch=16, lanes=4, window=32)
    told: list[BadImage] = []
    steps, order = plan.steps_per_epoch * epochs, {"rank": 0, "world": 1, "start_step": 0}
    stream = batches(
        shelf, plan, VIEWS, seed=3, **order, steps=steps, max_bad=max_bad, on_bad=told.append, read=local_windows
    )
    seen = [(list(batch.ids), hashlib.sha256(batch.crops["global"].numpy().tobytes()).hexdigest()) for batch in stream]
    return seen, told


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[Any]]:
    """160 images: the folder, its shard, and what an undisturbed epoch sees, in order."""
    root = tmp_path_factory.mktemp("golden")
    shard = shelve(root, [png(seed) for seed in range(160)])
    return root, shard, train(root)[0]


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses before another try, which are noted and not kept."""
    noted: list[float] = []
    monkeypatch.setattr(retries.time, "sleep", noted.append)
    return noted


@pytest.mark.fault  # seconds of one core
def test_row_34__no_bit_of_a_hundred_flips_without_being_noticed(golden, waits) -> None:
    """F9. Either it is refused, or it struck a byte that means nothing and the same images come in the same order."""
    root, shard, expected = golden
    whole, rng, refused = shard.read_bytes(), np.random.default_rng(0), 0
    try:
        for _ in range(100):
            place, bit = int(rng.integers(len(whole))), int(rng.integers(8))
            shard.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
            try:
                assert train(root)[0] == expected, f"byte {place}, bit {bit}: other images without a word"
            except ShardError as error:
                assert str(shard) in str(error) or shard.name in str(error)
                assert not isinstance(error, ShardUnreachable), "damage was taken for storage that does not answer"
                refused += 1
    finally:
        shard.write_bytes(whole)
    assert refused >= 80  # the others lie in columns that training does not read, or mean nothing in a page's header
    assert train(root)[0] == expected


def _other(shard: Path) -> bytes:
    """Another whole shard of the same length."""
    swapped = [png(seed) for seed in range(160)]
    swapped[0], swapped[1] = swapped[1], swapped[0]
    data = shelve(shard.parents[1] / "other", swapped).read_bytes()
    assert len(data) == shard.stat().st_size and data != shard.read_bytes()
    return data


@pytest.mark.parametrize(
    ("kind", "damage", "says"),
    [
        ("0 bytes", lambda shard: b"", ["0 bytes", "the manifest says"]),
        ("truncated", lambda shard: shard.read_bytes()[:-20], ["changed since the manifest", "Restore the file"]),
        ("half", lambda shard: shard.read_bytes()[: shard.stat().st_size // 2], ["changed since the manifest"]),
        ("missing", lambda shard: None, ["1 of 1 shards", "not there", "restore"]),
        ("replaced", _other, ["changed since the manifest: digest", "the manifest says"]),
        ("zeros", lambda shard: bytes(shard.stat().st_size), ["no Parquet footer", "fetch it again"]),
    ],
)
def test_rows_33_and_35__a_shard_that_is_not_the_manifests(
    kind: str, damage: Callable[[Path], bytes | None], says: list[str], tmp_path: Path, waits
) -> None:
    """All but a shard replaced at the same length are told when the folder is opened, before anything starts."""
    shard = shelve(tmp_path, [png(seed) for seed in range(160)])
    data = damage(shard)
    shard.unlink()
    if data is not None:
        shard.write_bytes(data)
    with pytest.raises(ShardError) as refused:
        collection = open_collection(str(tmp_path))
        assert kind in ("replaced", "zeros")
        collection.read(0)
    assert all(word in str(refused.value) for word in (shard.name, *says)), str(refused.value)


def test_row_33__a_foreign_folder_with_a_torn_footer_is_refused_when_opened(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b"x"] * 9}), tmp_path / "train.parquet")
    whole = (tmp_path / "train.parquet").read_bytes()
    (tmp_path / "train.parquet").write_bytes(whole[:-7])
    with pytest.raises(ShardError, match=r"train\.parquet: no Parquet footer .* fetch it again"):
        open_collection(str(tmp_path))


def test_row_31__an_id_that_stands_twice_is_refused_with_the_count(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="12 rows have 10 distinct ids, 2 are repeats; remove"):
        shelve(tmp_path, [*(png(seed) for seed in range(10)), png(3), png(7)])


def test_row_31__equal_bytes_are_one_image_and_a_line_in_the_table(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2), ("c", 1)):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{name}.png").write_bytes(png(seed))
    assert ingest([str(tmp_path / "in")], str(tmp_path / "out")).rows == 2
    table = pq.read_table(tmp_path / "out" / "decisions.parquet").to_pylist()
    assert [(row["path"], row["reason"], row["evidence_id"]) for row in table if not row["kept"]] == [
        ("c.png", "duplicate", content_id(png(1)))
    ]


def test_row_31__an_id_without_content_is_never_trusted(tmp_path: Path) -> None:
    """F11, id missing: a foreign id is some other tool's; ours is computed from the bytes."""
    table = pa.table({"image": [png(1), png(2)], "id": ["same", "same"]})
    pq.write_table(table, tmp_path / "train.parquet")
    assert open_collection(str(tmp_path)).read(0)["id"].to_pylist() == [content_id(png(1)), content_id(png(2))]


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"picture": [b"x"]}, ["train.parquet", "no column 'image'", "rename"]),
        ({"image": ["text"]}, ["train.parquet", "column 'image' is string", "must be binary"]),
        ({"image": [1.5]}, ["column 'image' is double"]),
        ({"image": [{"bytes": "x", "path": "y"}]}, ["struct<bytes: string"]),
        ({"image": [b"x"], "label": ["cat"]}, ["column 'label' is string", "cast or rename"]),
        ({"image": [b"x", None, b"y"]}, ["row group 0", "1 of 3 images have no bytes", "first: row 1"]),
        (
            {"image": [{"bytes": None, "path": "far.jpg"}, {"bytes": b"x", "path": ""}]},
            ["row group 0", "embed the files"],
        ),
    ],
)
def test_row_32__columns_that_hold_no_images(table: dict[str, Any], says: list[str], tmp_path: Path) -> None:
    pq.write_table(pa.table(table), tmp_path / "train.parquet")
    with pytest.raises(ShardError) as refused:
        open_collection(str(tmp_path)).read(0)
    assert all(word in str(refused.value) for word in says), str(refused.value)


@pytest.mark.parametrize("rows", [0, 3])
def test_row_36__nothing_or_less_than_a_global_batch(rows: int, tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"image": pa.array([png(n) for n in range(rows)], pa.binary())}), tmp_path / "train.parquet"
    )
    with pytest.raises(ConfigError) as refused:
        inputs = open_inputs(Recipe(), str(tmp_path))
        assert inputs.plan.steps_per_epoch > 0, inputs
    assert "0 images in 1 files" in str(refused.value) if rows == 0 else "3" in str(refused.value)


@pytest.mark.parametrize(
    "path", ["../secret.parquet", "/etc/x.parquet", "a/../../x.parquet", "s3://b/x.parquet", "..\\x"]
)
def test_row_37__a_manifest_that_leads_out_of_its_folder(path: str, tmp_path: Path) -> None:
    shard = shelve(tmp_path, [png(1)])
    text = (tmp_path / "manifest.json").read_text()
    (tmp_path / "manifest.json").write_text(text.replace(f"data/{shard.name}", path.replace("\\", "\\\\")))
    with pytest.raises(ShardError, match="leads out of the folder"):
        load(Folder(tmp_path))


class Flaky:
    """A file system that fails to open files at first."""

    def __init__(self, inner: Any, faults: list[OSError]) -> None:
        self._inner, self.faults = inner, faults

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def open_input_file(self, path: str) -> Any:
        if self.faults:
            raise self.faults.pop(0)
        return self._inner.open_input_file(path)


PASSING = [
    OSError(5, "Input/output error"),
    TimeoutError("timed out"),
    ConnectionResetError(104, "Connection reset by peer"),
    OSError(
        "When reading information: AWS Error SLOW_DOWN during GetObject operation: Please reduce your request rate."
    ),
    OSError("AWS Error UNKNOWN (HTTP status 503) during GetObject operation"),
    OSError("AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 28, Timeout was reached"),
]


@pytest.mark.parametrize("fault", PASSING, ids=lambda fault: str(fault)[:30])
def test_row_39__an_error_that_passes_is_tried_again_and_never_a_verdict(fault: OSError, golden, waits) -> None:
    root, _, expected = golden
    shelf = open_collection(str(root))
    shelf.folder.fs = Flaky(shelf.folder.fs, [fault] * 3)
    seen, told = train(root, shelf=shelf)
    assert (seen, told) == (expected, [])
    assert len(waits) == 3
    assert all(0.1 * 2**n <= wait <= 0.3 * 2**n for n, wait in enumerate(waits)) and len(set(waits)) == 3  # jitter


@pytest.mark.parametrize("fault", PASSING, ids=lambda fault: str(fault)[:30])
def test_row_39__storage_that_stays_away_ends_the_attempt_and_accuses_no_image(fault: OSError, golden, waits) -> None:
    """What kind of error it is decides in workers/worker.py: workers start again at their checkpoint, the run is not given up."""
    root, *_ = golden
    shelf = open_collection(str(root))
    shelf.folder.fs = Flaky(shelf.folder.fs, [fault] * 99)
    told: list[BadImage] = []
    with pytest.raises(ShardUnreachable, match="storage does not answer"):
        train(root, shelf=shelf)
    assert (told, len(waits)) == ([], 3)


def test_row_40__a_path_in_a_foreign_shard_breaks_no_line_of_a_message(tmp_path: Path) -> None:
    image = [{"bytes": b"junk", "path": "x\nerror: all is well"}] * 16
    pq.write_table(pa.table({"image": image}), tmp_path / "train.parquet")
    with pytest.raises(TooManyBadImages) as stopped:
        train(tmp_path)
    assert len(str(stopped.value).splitlines()) == 1


@pytest.mark.parametrize("every", [100, pytest.param(33, marks=pytest.mark.fault)])
def test_f10__a_bad_image_is_named_once_and_filled_by_one_that_depends_on_bytes_alone(
    every: int, tmp_path: Path
) -> None:
    """1 % and 3 % of 400 rows: nothing stops, every batch is whole, no good image is lost, and it all repeats bit for bit."""
    images = [png(seed) if seed % every else png(seed)[:60] for seed in range(400)]
    shelve(tmp_path, images)
    bad = {content_id(data) for seed, data in enumerate(images) if seed % every == 0}
    seen, told = train(tmp_path, epochs=2, max_bad=0.05)
    assert (seen, told) == train(tmp_path, epochs=2, max_bad=0.05)
    assert sorted(one.id for one in told) == sorted(bad) and {one.reason for one in told} == {"truncated"}
    assert all(len(ids) == 16 for ids, _ in seen)
    first = [identity for ids, _ in seen[: len(seen) // 2] for identity in ids]
    assert set(first) == {content_id(data) for data in images} - bad
    # Beside the run without damage, in order: only the slots of bad images hold another one.
    shelve(tmp_path / "whole", [png(seed) for seed in range(400)])
    same = {content_id(png(seed)): content_id(images[seed]) for seed in range(400)}
    undamaged = [same[i] for ids, _ in train(tmp_path / "whole", epochs=2)[0] for i in ids]
    damaged = [identity for ids, _ in seen for identity in ids]
    assert [a for a, b in zip(undamaged, damaged, strict=True) if a != b] == [i for i in undamaged if i in bad]


def test_f10__a_third_of_bad_images_stops_the_run_with_counts_and_remedies(tmp_path: Path) -> None:
    shelve(tmp_path, [png(seed) if seed % 10 > 2 else png(seed)[:60] for seed in range(400)])
    with pytest.raises(
        TooManyBadImages, match=r"\d+ of 1\d\d images cannot be decoded by step \d+, more than max_bad = 0\.05"
    ):
        train(tmp_path)
