"""What Ray's tasks load to read windows; that they bring the right ones is in test_batches.py."""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray

from raydino.curation.synthetic import write_builtin
from raydino.data import stream
from raydino.data.fetch import Fetch
from raydino.data.stream import COLLECTIONS, READERS, Lent, ReadPace
from raydino.shards.reader import open_collection

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's processes cannot import a test module
PLATFORM = Path(__file__).resolve().parents[2] / "platform"


def test_tasks_that_read__import_no_torch(tmp_path: Path):
    """Four processes that did took half a minute of two cores at every start. What Ray sends them is the function and the context
    of the dataset, with its callback."""
    write_builtin(str(tmp_path / "images"), train=16, test=8)
    fetch = Fetch(open_collection(str(tmp_path / "images"), split="train"), None)
    (tmp_path / "sent").write_bytes(pickle.dumps((fetch.asked, ReadPace)))
    script = (
        "import pickle, sys\n"
        "pickle.loads(open(sys.argv[1], 'rb').read())\n"
        "print([name for name in ('torch', 'albumentations', 'timm', 'mlflow') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(tmp_path / "sent")],
        env={**os.environ, "PYTHONPATH": str(PLATFORM)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


class Shard:
    """A collection of so many row groups, each a row."""

    loaded = 0

    def __init__(self, groups: int) -> None:
        self.names, self.key = [f"group {number}" for number in range(groups)], f"{groups} groups"

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        Shard.loaded += 1

    def read(self, group: int) -> pa.Table:
        return pa.table({"name": [self.names[group]]})


@pytest.mark.ray
def test_lent__a_task_is_sent_a_reference_and_a_process_keeps_what_it_stands_for(ray_cluster: None):
    few, many = Shard(2), Shard(10_000)
    sizes = [len(ray.cloudpickle.dumps(Fetch(Lent(shard), None))) for shard in (few, many)]
    assert abs(sizes[1] - sizes[0]) < 10
    lent = ray.cloudpickle.dumps(Fetch(Lent(many), None))
    Lent._here.clear()
    before = Shard.loaded
    for group in (3, 9_999, 3):  # a task each
        table = ray.cloudpickle.loads(lent).collection.read(group)
        assert table["name"].to_pylist() == [f"group {group}"]
    assert Shard.loaded == before + 1
    again = Lent(Shard(10_000))  # another worker's stream of the same images
    again.read(0)
    assert Shard.loaded == before + 1
    for number in range(COLLECTIONS):
        Lent(Shard(number + 5)).read(0)
    assert len(Lent._here) == COLLECTIONS and again.key not in Lent._here


@pytest.mark.ray
def test_readers__no_more_than_there_are_cpus_or_are_of_use(ray_cluster: None, monkeypatch: pytest.MonkeyPatch):
    assert stream._readers() == 2  # the cluster's
    monkeypatch.setattr(stream.ray, "cluster_resources", lambda: {"CPU": 64.0})
    assert stream._readers() == READERS
