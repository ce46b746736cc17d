"""Real images that trip decoders, trained on directly: the bad ones are named once, the good ones are all seen."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from raydino.data.batches import batches
from raydino.data.fetch import BadImage, local_windows
from raydino.data.plan import Plan
from raydino.shards.reader import open_collection
from raydino.views import Crops, Views

pytestmark = pytest.mark.data


def test_batches__every_bad_real_image_is_reported_once_and_every_good_one_is_seen(data_folder: Path):
    folder = data_folder / "decode-edge-cases"
    collection = open_collection(str(folder), split="test")
    decodable = pq.read_table(next((folder / "data").glob("*.parquet")), columns=["decodable"])["decodable"].to_pylist()
    plan = Plan(collection.row_groups, seed=0, global_batch=8, lanes=1, window=64)
    views = Views(crops={"global": Crops(count=2, size=32, scale=(0.4, 1.0))})
    reported: list[BadImage] = []
    seen: set[bytes] = set()
    for batch in batches(
        collection,
        plan,
        views,
        seed=0,
        rank=0,
        world=1,
        start_step=0,
        steps=plan.steps_per_epoch * 3,
        max_bad=1.0,
        on_bad=reported.append,
        read=local_windows,
    ):
        assert batch.images == 8
        seen.update(batch.ids)
    table = collection.rows(np.arange(len(collection)))
    ids = table["id"].to_pylist()
    bad = {bad.id for bad in reported}
    assert len(reported) == len(bad)
    # a strict decoder's verdict is the reference; ours may refuse more (a format or a size it does not allow), never less
    assert {i for i, good in zip(ids, decodable, strict=True) if not good} <= bad
    assert seen == set(ids) - bad
    assert len(bad) <= len(ids) // 2
