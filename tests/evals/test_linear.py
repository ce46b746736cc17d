"""The grid of linear heads against torch's own layers, optimiser and schedule, one head at a time."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raydino.evals.config import LinearConfig
from raydino.evals.evaluation import Labelled
from raydino.evals.features import Features, extract_blocks
from raydino.evals.linear import Heads, Input, Linear, Scored, batches, choose, held_back_rows


def test_heads__equal_torch_layers_trained_one_by_one() -> None:
    rates, steps, batch = [0.01, 0.3, 2.0], 37, 16
    generator = torch.Generator().manual_seed(1)
    x, labels = torch.randn(50, 6, generator=generator), torch.randint(0, 4, (50,), generator=generator)
    heads = Heads(6, 4, rates, device=torch.device("cpu"), seed=3)
    layers = []
    for head in range(len(rates)):
        layer = nn.Linear(6, 4)
        layer.weight.data, layer.bias.data = heads.weight[head].T.clone(), torch.zeros(4)
        layers.append(layer)
    orders = [torch.from_numpy(rows) for rows in batches(np.arange(50), batch=batch, steps=steps, seed=3)]
    for step, rows in enumerate(orders):
        heads.step(x[rows], labels[rows], decay=0.5 * (1 + math.cos(math.pi * step / steps)))
    for layer, rate in zip(layers, rates, strict=True):
        optimizer = torch.optim.SGD(layer.parameters(), lr=rate, momentum=0.9, weight_decay=0)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=0)
        for rows in orders:
            optimizer.zero_grad()
            nn.functional.cross_entropy(layer(x[rows]), labels[rows]).backward()
            optimizer.step()
            schedule.step()
    for head, layer in enumerate(layers):
        torch.testing.assert_close(heads.logits(x)[head], layer(x), rtol=1e-4, atol=1e-4)


def test_heads__initial_weights_are_small_and_alike() -> None:
    heads = Heads(400, 30, [0.1, 0.2], device=torch.device("cpu"), seed=0)
    assert heads.weight[0].equal(heads.weight[1]) and not heads.bias.any()
    assert float(heads.weight[0].std()) == pytest.approx(0.01, rel=0.03)


def features(scores: Tensor, labels: list[int]) -> Features:
    return Features(scores[:, None], scores[:, :1], torch.tensor(labels), torch.arange(len(labels)))


def test_right__counts_the_label_among_the_highest_and_never_a_diverged_head() -> None:
    heads = Heads(3, 3, [1.0, 1.0], device=torch.device("cpu"), seed=0)
    heads.weight[0], heads.weight[1] = torch.eye(3), torch.full((3, 3), math.nan)
    found = features(torch.tensor([[3.0, 2, 1], [3, 2, 1], [3, 2, 1]]), [0, 1, 2])
    kind, rows = Input(1, pooled=False), np.arange(3)
    assert heads.right(found, kind, rows, top=1).tolist() == pytest.approx([1 / 3, 0])
    assert heads.right(found, kind, rows, top=2).tolist() == pytest.approx([2 / 3, 0])
    assert heads.right(found, kind, rows[:0], top=1).isnan().all()


def test_batches__each_epoch_shows_every_row_once_in_another_order() -> None:
    rows = np.arange(100, 112)
    found = list(batches(rows, batch=4, steps=7, seed=5))
    assert [len(batch) for batch in found] == [4] * 7
    first, second = np.concatenate(found[:3]), np.concatenate(found[3:6])
    assert sorted(first) == sorted(second) == rows.tolist()
    assert first.tolist() != second.tolist()


def test_held_back_rows__are_disjoint_and_the_same_for_a_seed() -> None:
    learn, held = held_back_rows(97, share=0.1, seed=4)
    assert sorted([*learn, *held]) == list(range(97)) and len(held) == 10
    assert (
        held.tolist()
        == held_back_rows(97, share=0.1, seed=4)[1].tolist()
        != held_back_rows(97, share=0.1, seed=5)[1].tolist()
    )
    with pytest.raises(ValueError, match="nothing can be held back"):
        held_back_rows(1, share=0.1, seed=0)


def test_choose__by_what_was_held_back_or_as_published_by_the_test_images() -> None:
    kind = Input(1, pooled=False)
    heads = [Scored(kind, 0.1, 0.5, 0.9, 1), Scored(kind, 0.2, 0.7, 0.2, 1), Scored(kind, 0.3, 0.7, 0.3, 1)]
    assert choose(heads, "held_back") is heads[1]
    assert choose(heads, "test") is heads[0]


def test_joined__is_what_the_papers_heads_see(colours: Any, small_vit: Any) -> None:
    data, network = colours(bank=20, queries=10), small_vit().eval()
    found = extract_blocks(network, data.queries, data.normalisation, device="cpu", blocks=4)
    pixels, _ = next(data.queries.chunks(np.arange(10), batch=10))
    with torch.no_grad():  # the slow way: block by block
        tokens, kept = network._embed(data.normalisation(pixels), None), []
        for block in network.vit.blocks:
            tokens = block(tokens)
            kept.append(network.vit.norm(tokens))
    cls = torch.cat([tokens[:, 0] for tokens in kept[-4:]], dim=1)
    expected = torch.cat([cls, kept[-1][:, 2:].mean(1)], dim=1)  # a register stands between cls and patches
    torch.testing.assert_close(found.joined(blocks=4, pooled=True), expected)
    torch.testing.assert_close(found.joined(blocks=1, pooled=False), kept[-1][:, 0])


SMALL = LinearConfig(least_steps=60, epochs=1, batch=16)


def test_run__learns_colours_and_reports_the_head_it_chose(colours: Any, small_vit: Any) -> None:
    data = colours(bank=120, queries=60)
    evaluation = Linear(SMALL)
    grid, found = evaluation.grid(small_vit(), data), evaluation.run(small_vit(), data)
    assert len(grid) == 52
    best = choose(grid, "held_back")
    assert found["top1"] == best.top1 > 0.9 and found["chosen_lr"] == best.lr
    assert found["held_back_top1"] == best.held_back == max(head.held_back for head in grid)
    assert "held_back_top1" not in Linear(SMALL.override({"choose": "test"})).run(small_vit(), data)


def test_protocol__says_when_the_head_was_chosen_on_the_test_images() -> None:
    assert "CHOSEN ON THE TEST IMAGES" in Linear(LinearConfig(choose="test")).protocol
    assert (
        "no head learned from" in Linear(LinearConfig()).protocol
        and "52 linear heads" in Linear(LinearConfig()).protocol
    )


def test_grid__a_shallow_network_has_fewer_heads(colours: Any, small_vit: Any) -> None:
    data: Labelled = colours(bank=40, queries=20)
    assert len(Linear(SMALL).grid(small_vit(depth=1), data)) == 26


@pytest.mark.slow
def test_grid__two_ranks_find_what_one_finds(
    gloo: Callable[[Callable[[int], Any], int], list[Any]], colours: Any, small_vit: Any
) -> None:
    data = colours(bank=120, queries=60)
    alone = Linear(SMALL).grid(small_vit(), data)
    for found in gloo(lambda rank: Linear(SMALL).grid(small_vit(), data), 2):
        assert [(s.input.blocks, s.input.pooled, s.lr) for s in found] == [
            (s.input.blocks, s.input.pooled, s.lr) for s in alone
        ]
        for one, other in zip(found, alone, strict=True):
            assert (one.held_back, one.top1, one.top5) == pytest.approx(
                (other.held_back, other.top1, other.top5), abs=1e-9
            )
