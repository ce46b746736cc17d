import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from raydino import collectives

RANK = """
import json, sys
import torch, torch.distributed as dist
from raydino import collectives as c
rank, world, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=world)
own = torch.arange(4.0).view(2, 2) + 10 * rank
kept = own.clone().requires_grad_()
rows = torch.full((rank, 3), float(rank))
out = {
    "rank": c.rank(), "world": c.world_size(), "sum": c.all_sum(kept).tolist(), "mean": c.all_mean(own).tolist(),
    "max": c.all_max(own).tolist(), "rows": c.gather_rows(rows).tolist(), "untouched": bool((kept == own).all()),
    "grad": c.all_sum(kept).requires_grad or c.gather_rows(kept).requires_grad,
    "bytes": c.gather_rows(torch.tensor([[rank]], dtype=torch.uint8)).tolist(),
}
c.barrier()
dist.destroy_process_group()
print(json.dumps(out))
"""


def run_ranks(world, folder):
    root = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root / "platform"), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", RANK, str(rank), str(world), str(folder / "store")],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        return [json.loads(process.communicate(timeout=120)[0]) for process in processes]
    finally:
        for process in processes:
            process.kill()


def test_collectives__three_gloo_processes_agree_with_plain_tensors(tmp_path):
    results = run_ranks(3, tmp_path)
    each = torch.stack([torch.arange(4.0).view(2, 2) + 10 * rank for rank in range(3)])
    for rank, result in enumerate(results):
        assert (result["rank"], result["world"]) == (rank, 3)
        assert torch.equal(torch.tensor(result["sum"]), each.sum(0))
        assert torch.allclose(torch.tensor(result["mean"]), each.mean(0))
        assert torch.equal(torch.tensor(result["max"]), each.amax(0))
        # rank r brings r rows: none of rank 0, and the order is the ranks'
        assert result["rows"] == [[1.0] * 3, [2.0] * 3, [2.0] * 3]
        assert result["bytes"] == [[0], [1], [2]]
        assert result["untouched"]
        assert not result["grad"]


def test_collectives__one_process_is_the_identity():
    value = torch.tensor([[1.0, 2.0]], requires_grad=True)
    for function in (collectives.all_sum, collectives.all_mean, collectives.all_max, collectives.gather_rows):
        assert torch.equal(function(value), value)
        assert not function(value).requires_grad
    assert (collectives.rank(), collectives.world_size()) == (0, 1)
    collectives.barrier()


def test_all_sum__one_process_returns_a_new_tensor():
    value = torch.ones(3)
    collectives.all_sum(value).add_(1)
    assert value.tolist() == [1.0, 1.0, 1.0]
