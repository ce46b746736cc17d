"""A cluster of four nodes that asks for a token: two with room for a worker, one that only decodes. A job is submitted from
outside, a worker's node is lost, and the job finishes on what is left, with the images it would have seen."""

import contextlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from raydino.faults import Fault
from raydino.recipe import Recipe
from tests.launch.standing import StandingRay

pytestmark = [pytest.mark.fault, pytest.mark.ray, pytest.mark.slow]
SLOW = Fault("step", "sleep", rank=0, seconds=2.0, times=1000)  # so that the run cannot end before the node is lost


@pytest.fixture
def standing(stage: Any, tmp_path: Path) -> Iterator[StandingRay]:
    (tmp_path / "ray").mkdir()
    standing = StandingRay(tmp_path / "ray", head_cpus=0, environment=stage.environment)
    yield standing
    standing.end()


def titles(node: Any) -> list[str]:
    """What the processes of a node call themselves; Ray's workers take the name of what they carry out."""
    found = []
    for process in psutil.Process(node.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            found.append(" ".join(process.cmdline()))
    return found


def test_job__a_node_is_lost_and_the_job_finishes(
    standing: StandingRay, stage: Any, undisturbed: Any, small: Recipe, tmp_path: Path
):
    # A worker takes all of its node, so nothing is decoded there, and the third is too small for one.
    workers = [standing.add_node(cpus=2), standing.add_node(cpus=2)]
    decoder = standing.add_node(cpus=1)
    stage.clear(SLOW)
    config, storage = tmp_path / "recipe.yaml", tmp_path / "runs"
    config.write_text(small.to_yaml())
    cluster = {
        "workers": 2,
        "min-workers": 1,
        "cpus-per-worker": 2,
        "decode-in": "cluster",
        "storage": storage,
        "threads": 1,
    }
    flags = [word for name, value in cluster.items() for word in (f"--cluster.{name}", str(value))]
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(standing.submit, "--config", str(config), *flags)
        try:
            stage.wait_for(lambda: answer.done() or any("Map" in title for title in titles(decoder)))
            stage.wait_for(lambda: answer.done() or (3 in stage.steps(0) and 3 in stage.steps(1)))
            assert not answer.done(), answer.result().stdout[-3000:] + answer.result().stderr[-2000:]
            assert all(any("TrainWorker" in title for title in titles(node)) for node in workers)
            assert not any("TrainWorker" in title for title in titles(decoder))
            standing.lose(workers[1])
            stage.wait_for(lambda: answer.done() or len(stage.begins(0)) == 2)
        finally:
            stage.list.write_text("[]")
        done = answer.result()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert [line["world"] for line in stage.begins(0)] == [2, 1]
    assert stage.order() == undisturbed.order()
    (summary,) = storage.glob("small-*/summary.json")
    assert json.loads(summary.read_text())["status"] == "finished"
