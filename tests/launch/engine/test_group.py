"""Several processes of a real Ray: what they find together, and that none waits for one that has failed."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from raydino.config import ConfigError
from raydino.launch import evaluate
from raydino.launch.cluster import ClusterConfig
from raydino.launch.engine.group import in_group
from raydino.launch.results import JSON_FILE

pytestmark = pytest.mark.ray
TWO = ClusterConfig(workers=2, gpu=False)


@pytest.mark.fault
def test_in_group__what_a_worker_raises_ends_all_and_one_that_is_lost_is_said(ray_cluster: None):
    def work(rank: int, device: torch.device, *, fault: str) -> Any:
        import torch.distributed as dist

        total = torch.tensor([float(rank + 1)])
        if rank == 1 and fault == "raises":
            raise ConfigError("data = 'x': not there.")
        if rank == 1 and fault == "dies":
            os._exit(1)
        dist.all_reduce(total)
        return rank, device.type, float(total)

    assert in_group(lambda rank, device: work(rank, device, fault=""), TWO) == (0, "cpu", 3.0)
    with pytest.raises(ConfigError, match=r"data = 'x': not there\."):
        in_group(lambda rank, device: work(rank, device, fault="raises"), TWO)
    with pytest.raises(ConfigError, match="workers = 2: one of them was lost"):
        in_group(lambda rank, device: work(rank, device, fault="dies"), TWO)
    with pytest.raises(ConfigError, match="workers = 3: the cluster has 2 CPUs, and 3 are needed"):
        in_group(work, TWO.override({"workers": 3}))


def test_evaluate__two_workers_of_ray_find_what_one_process_finds(
    ray_cluster: None,
    run_folder: Path,
    small_images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    """Also where the run is named from a directory that Ray was not started in."""
    monkeypatch.chdir(run_folder.parent)
    words = ["--model", run_folder.name, "--data", str(small_images), "--evals", "knn", "--untracked"]
    words += ["--set", "knn.k=5", "--set", "knn.ks=[]", "--set", "knn.shots=[]"]
    found = {}
    for workers in (1, 2):
        out = tmp_path / str(workers)
        assert evaluate.main("", [*words, "--out", str(out), "--workers", str(workers)]) == 0
        assert str(out) in capsys.readouterr().out
        (found[workers],) = json.loads((out / JSON_FILE).read_text())
    assert found[1]["metrics"] == pytest.approx(found[2]["metrics"], abs=1e-4)
    assert found[1]["digest"] == found[2]["digest"]
