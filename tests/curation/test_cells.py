"""Pairs by cosine against nested loops, and cells against all pairs."""

import subprocess
import sys

import faiss
import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from raydino.config import ConfigError
from raydino.curation import cells, cosine
from raydino.curation.cells import pairs_between, pairs_within
from raydino.curation.cosine import CosinePairs


def unit(values: np.ndarray, kind: type = np.float32) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(kind)


def near(seed: int, rows: int, *, width: int = 24, spread: float = 0.12, kind: type = np.float16) -> np.ndarray:
    """Rows of which each third is close to the one before it."""
    draw = np.random.default_rng(seed)
    values = unit(draw.normal(size=(rows, width)), np.float64)
    values[2::3] = values[1::3][: len(values[2::3])] + spread * draw.normal(size=values[2::3].shape)
    return unit(values, kind)


def ring(seed: int, rows: int, width: int = 3) -> np.ndarray:
    """Rows on a sphere of few dimensions: no borders that cells could follow."""
    return unit(np.random.default_rng(seed).normal(size=(rows, width)))


def slow(one: np.ndarray, other: np.ndarray | None, least: float) -> dict[tuple[int, int], float]:
    """Every pair, in Python."""
    out, second = {}, one if other is None else other
    for i, a in enumerate(one.astype(np.float64)):
        for j, b in enumerate(second.astype(np.float64)):
            if other is None and i >= j:
                continue
            value = round(float(a @ b) / float(np.sqrt((a @ a) * (b @ b))), 4)
            if value >= least:
                out[i, j] = value
    return out


def as_dict(found: CosinePairs) -> dict[tuple[int, int], float]:
    pairs = list(zip(found.first.tolist(), found.second.tolist(), strict=True))
    assert pairs == sorted(set(pairs))  # each once, in order
    return {pair: round(float(value), 4) for pair, value in zip(pairs, found.cosine, strict=True)}


@pytest.fixture
def small_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "CELL", 40)
    monkeypatch.setattr(cells, "LARGEST", 200)


@pytest.mark.parametrize("kind", [np.float16, np.float32])
@pytest.mark.parametrize("block", [16, 2048])
@pytest.mark.parametrize("least", [0.3, 0.75])
def test_pairs__exact_search_equals_every_pair(monkeypatch: pytest.MonkeyPatch, kind: type, block: int, least: float):
    monkeypatch.setattr(cosine, "BLOCK", block)
    monkeypatch.setattr(cells, "BLOCK", block)
    one, other = near(0, 90, kind=kind), np.concatenate([near(1, 40, kind=kind), near(0, 90, kind=kind)[::7]])
    expected = slow(one, None, least), slow(one, other, least)
    assert min(map(len, expected)) > 10
    assert as_dict(pairs_within(one, least=least)) == expected[0]
    assert as_dict(pairs_between(one, other, least=least)) == expected[1]


@pytest.mark.parametrize("merged", [10, 4_000_000])
@pytest.mark.parametrize("neighbours", [1, 3])
def test_pairs__neighbours_keep_a_pair_that_is_among_the_nearest_of_either_row(
    monkeypatch: pytest.MonkeyPatch, neighbours: int, merged: int
):
    monkeypatch.setattr(cosine, "BLOCK", 16)
    monkeypatch.setattr(cells, "BLOCK", 16)
    monkeypatch.setattr(cells, "MERGED", merged)
    one, other = near(2, 70, width=6, kind=np.float32), near(3, 40, width=6, kind=np.float32)
    for second in (None, other):
        pairs = slow(one, second, 0.2)
        options = {"least": 0.2, "neighbours": neighbours}
        found = as_dict(pairs_within(one, **options) if second is None else pairs_between(one, second, **options))
        ends = {pair: {("one", pair[0]), ("one" if second is None else "other", pair[1])} for pair in pairs}
        for pair, value in pairs.items():
            rivals = [[c for p, c in pairs.items() if p != pair and row in ends[p]] for row in ends[pair]]
            before, tied = (min(sum(test(c) for c in row) for row in rivals) for test in (value.__lt__, value.__le__))
            # `before` rivals of a row come before this pair for sure, and of tied ones some
            assert (pair in found) if tied < neighbours else (before < neighbours or pair not in found)
        assert found.items() <= pairs.items() and len(found) < len(pairs)


def test_pairs__cosine_is_rounded_before_it_is_judged():
    angles = np.arccos([1.0, 0.74996, 0.74994])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    found = as_dict(pairs_between(vectors[:1], vectors[1:], least=0.75))
    assert found == {(0, 0): 0.75}


def test_pairs__rows_of_zeros_are_in_no_pair():
    vectors = near(4, 30)
    vectors[[0, 5, 29]] = 0
    expected = slow(np.delete(vectors, [0, 5, 29], axis=0), None, 0.5)
    place = np.delete(np.arange(30), [0, 5, 29])
    assert as_dict(pairs_within(vectors, least=0.5)) == {(place[i], place[j]): c for (i, j), c in expected.items()}
    assert len(pairs_within(np.zeros((4, 8), np.float16), least=0.5)) == 0
    assert len(pairs_within(np.zeros((0, 8), np.float16), least=0.5, exact_below=-1)) == 0
    assert len(pairs_between(vectors, np.zeros((0, 24), np.float16), least=0.5)) == 0


def test_pairs__what_is_removed_takes_no_other_pair_with_it():
    """In SemDeDup an image removed already still removes others; edges between what stays are the same without it."""
    vectors = near(5, 80, width=8)
    keep = np.delete(np.arange(80), np.arange(1, 80, 4))
    whole = as_dict(pairs_within(vectors, least=0.5))
    part = as_dict(pairs_within(vectors[keep], least=0.5))
    assert {(keep[i], keep[j]): c for (i, j), c in part.items()} == {
        pair: c for pair, c in whole.items() if set(pair) <= set(keep.tolist())
    }
    assert len(part) < len(whole)


def test_cells__two_cells_a_row_find_pairs_that_one_loses(small_cells: None, monkeypatch: pytest.MonkeyPatch):
    vectors = near(6, 1200, width=8, spread=0.1)
    exact = as_dict(pairs_within(vectors, least=0.9))
    two = as_dict(pairs_within(vectors, least=0.9, exact_below=0))
    monkeypatch.setattr(cells, "NEAREST", 1)
    one = as_dict(pairs_within(vectors, least=0.9, exact_below=0))
    assert one.items() < two.items() <= exact.items()
    assert len(one) < 0.9 * len(exact) and len(two) > 0.95 * len(exact)


def test_cells__between_two_sets_find_every_planted_copy(small_cells: None):
    train, evaluation = near(7, 900, width=16), near(8, 60, width=16)
    evaluation[:20] = unit(train[::45] + 0.02 * np.random.default_rng(0).normal(size=(20, 16)), np.float16)
    found = as_dict(pairs_between(train, evaluation, least=0.9, exact_below=0))
    exact = as_dict(pairs_between(train, evaluation, least=0.9))
    assert {(45 * n, n) for n in range(20)} <= set(found) and found.items() <= exact.items()
    turned = as_dict(pairs_between(evaluation, train, least=0.9, exact_below=0))
    assert {(n, 45 * n) for n in range(20)} <= set(turned)


def test_cells__large_ones_are_cut_again(small_cells: None, monkeypatch: pytest.MonkeyPatch):
    """Planted: k-means that gives a crowd of rows a single centroid."""
    crowd = unit(np.array([1, 0, 0, 0]) + 0.2 * np.random.default_rng(1).normal(size=(900, 4)))
    vectors, axes, whole = np.concatenate([crowd, ring(9, 300, width=4)]), np.eye(4, dtype=np.float32), cells._centroids

    def centroids(parts: list, count: int, key: tuple[int, ...]) -> faiss.IndexFlatIP:
        index = whole(parts, count, key)
        if len(key) == 1:
            index.reset()
            index.add(np.concatenate([axes, -axes]))
        return index

    monkeypatch.setattr(cells, "_centroids", centroids)
    rows = cosine.Rows.of(vectors, "vectors")
    everyone = np.arange(len(rows))
    parts = [part for part, _ in cells._by_cells(rows, everyone, rows, everyone, (0,), cells._silent)]
    assert max(map(len, parts)) <= cells.LARGEST
    assert set(np.concatenate(parts).tolist()) == set(range(len(vectors)))
    exact, found = (as_dict(pairs_within(vectors, least=0.999, exact_below=n)) for n in (10_000, 0))
    assert found.items() <= exact.items() and len(found) > 0.97 * len(exact)


def test_cells__a_crowd_of_equal_rows_comes_to_an_end_and_loses_no_pair(small_cells: None):
    vectors = np.concatenate([np.tile(ring(10, 1), (400, 1)), ring(11, 100)])
    found = as_dict(pairs_within(vectors, least=1.0, exact_below=0))
    assert sum(j < 400 for _, j in found) == 400 * 399 // 2


@pytest.mark.parametrize("exact_below", [10_000, 0])
def test_pairs__order_of_rows_does_not_count(small_cells: None, exact_below: int):
    vectors = near(12, 800, width=8, spread=0.1)  # cells lose some of these pairs, the same ones each time
    order = np.random.default_rng(2).permutation(len(vectors))
    for neighbours in (None, 2):
        options = {"least": 0.9, "neighbours": neighbours, "exact_below": exact_below}
        moved = as_dict(pairs_within(vectors[order], **options))
        back = {(min(order[i], order[j]), max(order[i], order[j])): c for (i, j), c in moved.items()}
        assert back == as_dict(pairs_within(vectors, **options))


def test_pairs__of_equally_near_rows_the_same_one_counts_in_any_order():
    """Eight spokes at one cosine from a hub, each with a nearer twin, so that only the hub's choice joins it to any."""
    spokes = np.zeros((17, 9))
    spokes[:, 0] = 1
    for number in range(8):
        spokes[1 + 2 * number, 1 + number] = 1
        spokes[2 + 2 * number, 1 + number] = 1.2
    vectors, chosen = unit(spokes), set()
    for seed in range(6):
        order = np.random.default_rng(seed).permutation(17)
        found = pairs_within(vectors[order], least=0.5, neighbours=1)
        ends = [(int(order[i]), int(order[j])) for i, j in zip(found.first, found.second, strict=True)]
        chosen.add(frozenset(pair for pair in map(frozenset, ends) if 0 in pair))
    assert len(chosen) == 1 and len(next(iter(chosen))) == 1


@pytest.mark.parametrize("exact_below", [10_000, 0])
def test_pairs__number_of_threads_does_not_count(small_cells: None, exact_below: int):
    vectors = near(14, 1100, width=32)
    results = []
    for threads in (1, 3):
        with threadpool_limits(limits=threads):
            results.append(as_dict(pairs_within(vectors, least=0.45, exact_below=exact_below)))
    assert results[0] == results[1] and len(results[0]) > 300


def test_cells__progress_ends_at_all_rows(small_cells: None):
    told: list[int] = []
    for exact_below in (0, 10_000):
        pairs_within(
            ring(15, 400), least=0.9, exact_below=exact_below, progress=lambda _, done, total: told.append(done)
        )
        assert told[-1] == 400
    assert told[:-1] == sorted(told[:-1])


def test_pairs__refuse_what_they_cannot_compare(monkeypatch: pytest.MonkeyPatch):
    good = ring(16, 10)
    for least in (0.0, 1.01, float("nan")):
        with pytest.raises(ConfigError, match="least = "):
            pairs_within(good, least=least)
    with pytest.raises(ConfigError, match="neighbours = 0"):
        pairs_within(good, least=0.5, neighbours=0)
    with pytest.raises(ValueError, match="row 3 has a norm of 2"):
        pairs_within(good * np.where(np.arange(10) == 3, 2, 1)[:, None].astype(np.float32), least=0.5)
    with pytest.raises(ValueError, match="row 0 has a norm of nan"):
        pairs_within(np.full((2, 3), np.nan, np.float16), least=0.5)
    with pytest.raises(ValueError, match="float64"):
        pairs_within(good.astype(np.float64), least=0.5)
    with pytest.raises(ValueError, match="3 and 4 dimensions"):
        pairs_between(good, ring(0, 5, width=4), least=0.5)
    monkeypatch.setattr(cosine, "MOST", 10)
    with pytest.raises(ConfigError, match="more than 10 pairs"):
        pairs_within(np.tile(good[:1], (8, 1)), least=0.5)


def test_cells__does_not_wait_for_torch():
    code = "import sys, raydino.curation.cells, raydino.curation.embed; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
