"""`ray job submit` against a real head node with token authentication, as the README says it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch.standing import StandingRay

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandingRay]:
    standing = StandingRay(tmp_path_factory.mktemp("head"), head_cpus=2)
    yield standing
    standing.end()


def test_job__trains_on_the_cluster_and_leaves_its_run(
    standing: StandingRay, tiny: Path, small_images: Path, storage: Path
):
    done = standing.submit(
        "--name", "job", "--config", str(tiny), "--data", str(small_images), "--cluster.storage", str(storage)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (summary,) = storage.glob("job-*/summary.json")
    assert json.loads(summary.read_text())["status"] == "finished"


def test_job__is_refused_without_the_token(standing: StandingRay, tmp_path: Path):
    wrong = tmp_path / "wrong"
    wrong.write_text("ffffffffffffffffffffffffffffffff")
    refused = standing.submit("--help", RAY_AUTH_TOKEN_PATH=str(wrong))
    assert refused.returncode != 0
    assert "token" in (refused.stdout + refused.stderr).lower()
