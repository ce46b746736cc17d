"""Target normalisers against the textbook iteration and closed forms."""

import math

import pytest
import torch

from raydino.nn.centering import NoCentering, SoftmaxCentering, sinkhorn_knopp


def _textbook_sinkhorn(scores: torch.Tensor, temperature: float, iterations: int) -> torch.Tensor:
    q = torch.exp(scores.double() / temperature)
    q /= q.sum()
    samples, prototypes = q.shape
    for _ in range(iterations):
        q /= q.sum(dim=0, keepdim=True) * prototypes
        q /= q.sum(dim=1, keepdim=True) * samples
    return q * samples


def test_sinkhorn_knopp__equals_the_textbook_iteration():
    scores = 0.3 * torch.randn(24, 10)
    torch.testing.assert_close(
        sinkhorn_knopp(scores, temperature=0.05).double(), _textbook_sinkhorn(scores, 0.05, 3), rtol=1e-4, atol=1e-7
    )


def _in_log_space(scores: torch.Tensor, temperature: float) -> torch.Tensor:
    """Three iterations in which nothing can overflow or underflow."""
    logs = scores.double() / temperature
    for _ in range(3):
        logs = logs - logs.logsumexp(dim=0, keepdim=True)
        logs = logs - logs.logsumexp(dim=1, keepdim=True)
    return logs.exp()


def _grid(*shape: int, spread: float) -> torch.Tensor:
    """Random multiples of 1/64: at a temperature of 1/32 float32 holds their quotients and differences exactly."""
    return (64 * spread * torch.randn(*shape, generator=torch.Generator().manual_seed(2))).round() / 64


FAR_APART = {
    "a_head's": _grid(64, 300, spread=0.3),
    "unnormalised": _grid(64, 300, spread=30.0),  # quotients of some thousand; exp reaches 88 in float32
    "more_samples_than_prototypes": _grid(300, 7, spread=30.0),
    "samples_far_below_others": _grid(64, 50, spread=0.3) + 50 * torch.arange(64)[:, None],
    "prototypes_far_below_others": _grid(64, 50, spread=0.3) + 50 * torch.arange(50),
    "prototypes_met_by_low_samples_alone": torch.block_diag(torch.full((4, 4), 500.0), _grid(4, 4, spread=0.3)) - 1000,
}


@pytest.mark.parametrize("name", FAR_APART)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sinkhorn_knopp__of_scores_any_distance_apart(name: str, dtype: torch.dtype):
    scores = FAR_APART[name]
    targets = sinkhorn_knopp(scores.to(dtype), temperature=1 / 32)
    assert targets.dtype == torch.float32
    torch.testing.assert_close(targets.double(), _in_log_space(scores, 1 / 32), rtol=1e-5, atol=1e-12)


def test_sinkhorn_knopp__of_bfloat16_scores_is_computed_in_float32_under_autocast():
    scores = _grid(64, 300, spread=0.3).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        targets = sinkhorn_knopp(scores, temperature=1 / 32)
    torch.testing.assert_close(targets.double(), _in_log_space(scores, 1 / 32), rtol=1e-5, atol=1e-12)


def test_sinkhorn_knopp__leaves_the_scores_alone():
    scores = _grid(5, 7, spread=0.3)
    sinkhorn_knopp(scores, temperature=1 / 32)
    assert torch.equal(scores, _grid(5, 7, spread=0.3))


def _shared_out(rank: int) -> tuple[torch.Tensor, list[str]]:
    from raydino import collectives

    called, names = [], ("all_max", "all_sum")
    plain = {name: getattr(collectives, name) for name in names}
    for name in names:
        setattr(collectives, name, lambda value, name=name: (called.append(name), plain[name](value))[1])
    world, scores = collectives.world_size(), FAR_APART["unnormalised"]
    shares = {1: [64], 2: [64, 0], 4: [3, 0, 20, 41]}[world]  # a rank may hold no masked patch
    targets = sinkhorn_knopp(scores.split(shares)[rank], temperature=1 / 32)
    for name in names:
        setattr(collectives, name, plain[name])
    return collectives.gather_rows(targets), called


@pytest.mark.parametrize("world", [1, 2, 4])
def test_sinkhorn_knopp__over_ranks_with_any_number_of_samples_asks_them_four_times(gloo, world: int):
    for targets, called in gloo(_shared_out, world):
        expected = _in_log_space(FAR_APART["unnormalised"], 1 / 32)
        torch.testing.assert_close(targets.double(), expected, rtol=1e-5, atol=1e-12)
        assert called == ["all_max", "all_sum", "all_sum", "all_sum"]


def test_sinkhorn_knopp__rows_sum_to_one_and_prototypes_share_alike():
    targets = sinkhorn_knopp(0.3 * torch.randn(512, 16), temperature=0.1, iterations=50)
    torch.testing.assert_close(targets.sum(1), torch.ones(512))
    torch.testing.assert_close(targets.sum(0), torch.full((16,), 512 / 16), rtol=1e-3, atol=0)


def test_sinkhorn_knopp__survives_scores_that_overflow_exp():
    targets = sinkhorn_knopp(torch.tensor([[50.0, 0.0], [0.0, 50.0]]), temperature=0.04)
    torch.testing.assert_close(targets, torch.eye(2))


def test_sinkhorn_knopp__accepts_no_samples():
    assert sinkhorn_knopp(torch.zeros(0, 8), temperature=0.1).shape == (0, 8)


def test_softmax_centering__uses_the_centre_from_before_and_moves_it_after():
    centering = SoftmaxCentering(4, momentum=0.9)
    scores = torch.randn(6, 4)
    torch.testing.assert_close(centering(scores, temperature=0.5), torch.softmax(scores / 0.5, -1))
    assert centering.center.abs().sum() == 0
    centering.update()
    torch.testing.assert_close(centering.center, 0.1 * scores.mean(0))
    torch.testing.assert_close(
        centering(scores, temperature=0.5), torch.softmax((scores - 0.1 * scores.mean(0)) / 0.5, -1)
    )


def test_softmax_centering__two_micro_batches_count_as_one_batch():
    whole, parts, scores = SoftmaxCentering(4, 0.9), SoftmaxCentering(4, 0.9), torch.randn(6, 4)
    whole(scores, temperature=1.0)
    whole.update()
    parts(scores[:4], temperature=1.0)
    parts(scores[4:], temperature=1.0)
    parts.update()
    torch.testing.assert_close(parts.center, whole.center)


def test_softmax_centering__no_samples_leave_the_centre_alone():
    centering = SoftmaxCentering(4, 0.9)
    centering(torch.randn(3, 4), temperature=1.0)
    centering.update()
    before = centering.center.clone()
    centering(torch.zeros(0, 4), temperature=1.0)
    centering.update()
    torch.testing.assert_close(centering.center, before, rtol=0, atol=0)


def test_no_centering__is_a_softmax_that_remembers_nothing():
    centering, scores = NoCentering(), torch.randn(6, 4)
    for _ in range(3):
        targets = centering(scores, temperature=0.5)
        expected = [[math.exp(value / 0.5) for value in row] for row in scores.tolist()]
        expected = [[value / sum(row) for value in row] for row in expected]
        torch.testing.assert_close(targets, torch.tensor(expected))
        centering.update()
    assert centering.state_dict() == {}


def _on_ranks(rank: int) -> dict[str, torch.Tensor]:
    from raydino import collectives

    world = collectives.world_size()
    # rank 0 holds 3 samples and rank 1 holds 9, as happens with masked patches
    scores = torch.randn(12, 5, generator=torch.Generator().manual_seed(1))
    mine = scores if world == 1 else (scores[:3] if rank == 0 else scores[3:])
    centering = SoftmaxCentering(5, momentum=0.5)
    centering(mine, temperature=1.0)
    centering.update()
    targets = sinkhorn_knopp(0.2 * mine, temperature=0.1)
    return {"center": centering.center, "targets": collectives.gather_rows(targets)}


def _padded_on_ranks(rank: int) -> dict[str, torch.Tensor]:
    """What `_on_ranks` gives, with rows between its own that do not count; of three ranks the last has no others."""
    from raydino import collectives

    scores = torch.randn(12, 5, generator=torch.Generator().manual_seed(1))
    mine = {1: [scores], 3: [scores[:3], scores[3:], scores[:0]]}[collectives.world_size()][rank]
    valid = torch.zeros(20, dtype=torch.bool)
    valid[torch.randperm(20)[: len(mine)]] = True
    padded = torch.full((20, 5), math.nan)  # whatever stands there
    padded[~valid] = torch.tensor([math.nan, math.inf, 1e30, -1e30, 7.0])
    padded[valid] = mine
    centering = SoftmaxCentering(5, momentum=0.5)
    centering(padded, temperature=1.0, valid=valid)
    centering.update()
    targets = sinkhorn_knopp(0.2 * padded, temperature=0.1, valid=valid)
    assert not targets[~valid].any()
    return {"center": centering.center, "targets": collectives.gather_rows(targets[valid])}


def test_centering__samples_that_are_not_valid_count_for_nothing(gloo):
    expected = gloo(_on_ranks, 1)[0]
    for found in (*gloo(_padded_on_ranks, 1), *gloo(_padded_on_ranks, 3)):
        for name in expected:
            torch.testing.assert_close(found[name], expected[name])


def test_centering__no_valid_sample_at_all_leaves_the_centre_alone_and_targets_finite():
    centering, valid = SoftmaxCentering(4, 0.9), torch.zeros(6, dtype=torch.bool)
    centering(torch.randn(6, 4), temperature=1.0, valid=valid)
    centering.update()
    assert not centering.center.any()
    assert not sinkhorn_knopp(torch.randn(6, 4), temperature=0.1, valid=valid).any()


def test_centering__does_not_depend_on_the_number_of_workers(gloo):
    one, two = gloo(_on_ranks, 1)[0], gloo(_on_ranks, 2)
    for name in one:
        for rank in two:
            torch.testing.assert_close(rank[name], one[name])
