"""Which images a run refuses, and that its workers ask the owners of its driver."""

import hashlib
import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raydino.config import ConfigError, read_yaml_file
from raydino.data.claims import NOBODY, Claims
from raydino.launch.cluster import ClusterConfig
from raydino.launch.engine.owners import evaluation_ids
from raydino.launch.engine.trainer import fit
from raydino.launch.inputs import open_against, open_inputs
from raydino.launch.job import Job
from raydino.recipe import Recipe

TRAIN = [
    *range(100),
    *range(60),
    *range(200, 230),
    *range(10),
]  # pictures; 200 to 209 are queries, 210 to 229 a benchmark's
QUERIES, BENCH = range(200, 210), range(210, 230)


def png(picture: int) -> bytes:
    pixels, out = np.random.default_rng(picture).integers(0, 256, (24, 24, 3), dtype=np.uint8), io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG")
    return out.getvalue()


def identity(picture: int) -> bytes:
    return hashlib.sha256(png(picture)).digest()[:16]


def write(path: Path, pictures, **columns) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": png(picture), "path": None} for picture in pictures]
    pq.write_table(pa.table({"image": images, **columns}), path, row_group_size=8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A folder that nobody curated, and an evaluation set of another kind."""
    root = tmp_path_factory.mktemp("folders")
    for split, pictures in (("train", TRAIN), ("test", QUERIES)):
        write(root / "photos" / f"{split}-0.parquet", pictures, label=[picture % 2 for picture in pictures])
    write(root / "bench" / "a" / "test-0.parquet", BENCH[:9])
    write(root / "bench" / "b" / "train-0.parquet", BENCH[9:])
    return {"data.path": str(root / "photos"), "data.stream_against": (str(root / "bench"),), "data.stream_dedup": True}


def test_evaluation_ids__queries_and_every_split_of_the_named_folders(folders):
    recipe = Recipe().override(folders)
    found = evaluation_ids(recipe, open_inputs(recipe, recipe.data.path))
    assert {bytes(name).ljust(16, b"\0") for name in found} == {identity(p) for p in [*QUERIES, *BENCH]}
    without = recipe.override({"data.stream_against": ()})
    assert len(evaluation_ids(without, open_inputs(without, without.data.path))) == len(QUERIES)


def test_open_against__a_folder_that_is_not_there_is_named(tmp_path):
    gone = str(tmp_path / "gone")
    with pytest.raises(ConfigError, match="gone"):
        open_against(Recipe().override({"data": {"stream_dedup": True, "stream_against": (gone,)}}))


@pytest.mark.ray
@pytest.mark.slow
def test_fit__two_workers_refuse_each_copy_and_each_leak_once(ray_cluster, tiny: Path, folders, tmp_path: Path):
    recipe = Recipe().override({**read_yaml_file(tiny), **folders, "data.max_bad": 0.0})
    inputs = open_inputs(recipe, recipe.data.path)
    digest = inputs.collection.manifest.digest
    cluster = ClusterConfig(workers=2, cpus_per_worker=0.5, threads=1, storage=str(tmp_path))
    fit(Job(recipe, cluster, tmp_path, recipe.data.path, digest, "", None))
    rows = np.concatenate([inputs.plan.slots(step) for step in range(12)])  # 192 of 200: one epoch
    copies = Counter(TRAIN[row] for row in rows)
    lines = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    expected = Counter(leaked=sum(copies.pop(picture, 0) for picture in [*QUERIES, *BENCH]))
    expected["duplicate"] = copies.total() - len(copies)
    assert Counter(line["reason"] for line in lines) == expected and expected["leaked"] > 20
    assert {line["rank"] for line in lines} == {0, 1}
    saved = Claims(tmp_path / "claims" / "0-of-1.npz", digest)
    asked = [*copies, *QUERIES, *BENCH]
    owners = saved.claim(np.array([identity(picture) for picture in asked], dtype="S16"), np.full(len(asked), 999))
    assert [TRAIN[row] for row in owners[: len(copies)]] == list(copies)
    assert (owners[len(copies) :] == NOBODY).all()
