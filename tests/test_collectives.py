import torch

from raydino import collectives as c


def _on_ranks(rank):
    own = torch.arange(4.0).view(2, 2) + 10 * rank
    kept = own.clone().requires_grad_()
    rows = torch.full((rank, 3), float(rank))
    return {
        "rank": c.rank(),
        "world": c.world_size(),
        "sum": c.all_sum(kept).tolist(),
        "mean": c.all_mean(own).tolist(),
        "max": c.all_max(own).tolist(),
        "rows": c.gather_rows(rows).tolist(),
        "untouched": bool((kept == own).all()),
        "grad": c.all_sum(kept).requires_grad or c.gather_rows(kept).requires_grad,
        "bytes": c.gather_rows(torch.tensor([[rank]], dtype=torch.uint8)).tolist(),
        "barrier": c.barrier(),
    }


def test_collectives__three_gloo_processes_agree_with_plain_tensors(gloo):
    results = gloo(_on_ranks, 3)
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
    for function in (c.all_sum, c.all_mean, c.all_max, c.gather_rows):
        assert torch.equal(function(value), value)
        assert not function(value).requires_grad
    assert (c.rank(), c.world_size()) == (0, 1)
    c.barrier()


def test_all_sum__one_process_returns_a_new_tensor():
    value = torch.ones(3)
    c.all_sum(value).add_(1)
    assert value.tolist() == [1.0, 1.0, 1.0]
