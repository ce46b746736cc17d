"""Groups and their gaps, against loops, images drawn one by one, and rates that are known."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from raydino.evals.config import KNNConfig, LogisticConfig
from raydino.evals.fairness import associated, by_group, halves, probabilities, terciles

GROUPS = ("north", "south", "(missing)", "few")


def some(seed: int = 0, count: int = 400) -> tuple[np.ndarray, list[str]]:
    """Hits that are likelier in the north, and their groups, of which the last has 7 images."""
    generator = np.random.default_rng(seed)
    groups = [*generator.choice(GROUPS[:3], count - 7).tolist(), *["few"] * 7]
    rates = {"north": 0.8, "south": 0.5, "(missing)": 0.65, "few": 0.0}
    return generator.random(count) < [rates[group] for group in groups], groups


def test_by_group__equals_a_loop_and_drops_no_group() -> None:
    hits, groups = some()
    shares, gap = by_group(hits, groups, GROUPS, minimum=30, seed=0)
    assert [share.group for share in shares] == list(GROUPS)
    right, number = Counter(), Counter()
    for hit, group in zip(hits, groups, strict=True):
        number[group] += 1
        right[group] += bool(hit)
    for share in shares:
        assert (share.count, share.hits) == (number[share.group], right[share.group])
    known = {share.group: share.share.value for share in shares if share.share is not None}
    assert known == {group: right[group] / number[group] for group in GROUPS[:3]}
    assert shares[3].share is None, "7 images are too few, though none would be the worst"
    assert gap is not None and (gap.best, gap.worst) == ("north", "south")
    assert gap.between.value == pytest.approx(known["north"] - known["south"])
    assert gap.below_mean.value == pytest.approx(sum(known.values()) / 3 - known["south"])


def test_by_group__intervals_equal_those_of_images_drawn_one_by_one() -> None:
    hits, groups = some(1, 200)
    shares, gap = by_group(hits, groups, GROUPS, minimum=30, seed=0)
    generator = np.random.default_rng(5)
    drawn = {}
    for share in shares[:3]:
        own = [bool(hit) for hit, group in zip(hits, groups, strict=True) if group == share.group]
        drawn[share.group] = np.array([np.mean(generator.choice(own, len(own))) for _ in range(4000)])
        assert share.share is not None
        expected = np.percentile(drawn[share.group], [2.5, 97.5])
        # A percentile of 4,000 draws is uncertain by about 0.005, and an image is 0.016 of a group.
        assert [share.share.low, share.share.high] == pytest.approx(expected, abs=0.025)
    assert gap is not None
    between = np.percentile(drawn[gap.best] - drawn[gap.worst], [2.5, 97.5])
    assert [gap.between.low, gap.between.high] == pytest.approx(between, abs=0.025)
    mean = np.mean(list(drawn.values()), axis=0)
    below = np.percentile(mean - drawn[gap.worst], [2.5, 97.5])
    assert [gap.below_mean.low, gap.below_mean.high] == pytest.approx(below, abs=0.025)


def test_by_group__intervals_cover_the_true_rates() -> None:
    generator = np.random.default_rng(0)
    rates, tries, found = {"a": 0.85, "b": 0.55}, 300, Counter()
    groups = ["a"] * 120 + ["b"] * 120
    for seed in range(tries):
        hits = generator.random(240) < [rates[group] for group in groups]
        shares, gap = by_group(hits, groups, ("a", "b"), minimum=1, seed=seed, resamples=500)
        for share in shares:
            assert share.share is not None
            found[share.group] += share.share.low <= rates[share.group] <= share.share.high
        assert gap is not None
        found["gap"] += gap.between.low <= 0.3 <= gap.between.high
    # 95 % with a standard error of 1.3 points; the percentile bootstrap of 120 images falls short by about a point.
    assert all(0.90 <= found[name] / tries <= 0.985 for name in ("a", "b", "gap")), found


def test_by_group__chance_equals_shuffled_labels_and_is_rare_for_a_true_gap() -> None:
    hits, groups = some(2, 120)
    members = np.array(groups)
    _, gap = by_group(hits, groups, GROUPS, minimum=30, seed=0)
    assert gap is not None
    inside = members != "few"
    generator, as_far = np.random.default_rng(1), 0
    for _ in range(3000):
        shuffled = generator.permutation(hits[inside])
        shares = [shuffled[members[inside] == group].mean() for group in GROUPS[:3]]
        as_far += max(shares) - min(shares) >= gap.between.value - 1e-12
    assert gap.chance == pytest.approx(as_far / 3000, abs=0.03)
    sure = np.arange(200) < 100
    _, gap = by_group(sure, ["a"] * 100 + ["b"] * 100, ("a", "b"), minimum=1, seed=0)
    assert gap is not None and gap.chance < 1e-3
    same = np.arange(200) % 2 == 0
    _, gap = by_group(same, ["a"] * 100 + ["b"] * 100, ("a", "b"), minimum=1, seed=0)
    assert gap is not None and gap.chance == 1.0


def test_by_group__a_group_does_not_move_with_the_others_and_the_seed_decides() -> None:
    hits, groups = some()
    whole, _ = by_group(hits, groups, GROUPS, minimum=30, seed=0, key="place")
    assert whole == by_group(hits, groups, GROUPS, minimum=30, seed=0, key="place")[0]
    north = np.array(groups) == "north"
    alone, gap = by_group(hits[north], ["north"] * int(north.sum()), ("north",), minimum=30, seed=0, key="place")
    assert alone[0] == whole[0] and gap is None
    other, _ = by_group(hits, groups, GROUPS, minimum=30, seed=1, key="place", resamples=333)
    assert other[0].share != whole[0].share


def test_by_group__refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="2 hits of 1 images"):
        by_group(np.ones(2, dtype=bool), ["a"], ("a",), minimum=1, seed=0)
    with pytest.raises(ValueError, match="names: \\['a'\\]"):
        by_group(np.ones(1, dtype=bool), ["b"], ("a",), minimum=1, seed=0)


def test_associated__top_five_with_a_tenth_by_hand() -> None:
    rows = [
        [0.60, 0.20, 0.10, 0.05, 0.03, 0.02, 0.00],  # the third is at a tenth, and counts
        [0.00, 0.01, 0.09, 0.90, 0.00, 0.00, 0.00],  # the third is not
        [0.15, 0.15, 0.15, 0.15, 0.14, 0.13, 0.13],  # the last two are not among five
        [0.16, 0.14, 0.14, 0.14, 0.14, 0.14, 0.14],  # of equals the lower classes are
    ]
    found = associated(np.array(rows), {"third": [2], "last": [5, 6], "either": [3, 6], "fifth": [4]})
    assert found["third"].tolist() == [True, False, True, True]
    assert found["last"].tolist() == [False, False, False, False]
    assert found["either"].tolist() == [False, True, True, True]
    assert found["fifth"].tolist() == [False, False, True, True]


def test_halves__are_even_in_strata_and_in_classes() -> None:
    generator = np.random.default_rng(0)
    strata = list(
        zip(generator.integers(0, 5, 303).tolist(), generator.choice(["x", "y", "z"], 303).tolist(), strict=True)
    )
    learn = halves(strata, seed=3)
    assert learn.sum() == 152
    for chosen in (lambda s: s, lambda s: s[0]):
        sides = [
            Counter(chosen(s) for s, one in zip(strata, learn, strict=True) if one == side) for side in (True, False)
        ]
        assert all(abs(sides[0][name] - sides[1][name]) <= 1 for name in {chosen(s) for s in strata})
    assert (halves(strata, seed=3) == learn).all() and (halves(strata, seed=4) != learn).any()


def test_terciles__equal_values_stay_together_and_what_is_not_known_is_told() -> None:
    values = np.array([5.0, 1, 2, 3, 4, 9, np.nan, 7, 6, 8])
    thirds, (first, second) = terciles(values)
    expected = [None if np.isnan(v) else "low" if v <= first else "middle" if v <= second else "high" for v in values]
    assert thirds == expected and Counter(thirds) == {"low": 3, "middle": 3, "high": 3, None: 1}
    assert set(terciles(np.full(9, 2.0))[0]) == {"low"}
    with pytest.raises(ValueError, match="no finite value"):
        terciles(np.array([np.nan]))


@pytest.mark.parametrize("config", [KNNConfig(k=5), LogisticConfig(strengths=3, exponents=(-2, 2), iterations=50)])
def test_probabilities__sum_to_one_and_know_colours(config: Any, colours: Any, small_vit: Any) -> None:
    labelled = colours(bank=48, queries=18)
    found, places = probabilities(small_vit(), labelled, config)
    assert found.shape == (18, 6) and np.allclose(found.sum(1), 1) and (found >= 0).all()
    assert places.tolist() == list(range(18))
    assert (found.argmax(1) == labelled.queries.labels).all()


def test_probabilities__of_neighbours_are_shares_of_their_votes(colours: Any, small_vit: Any) -> None:
    from raydino.evals.features import extract

    labelled, encoder = colours(bank=30, queries=4, classes=3), small_vit()
    found, _ = probabilities(encoder, labelled, KNNConfig(k=7, temperature=0.5))
    bank, queries = (
        extract(encoder, images, labelled.normalisation, device="cpu")[0]
        for images in (labelled.bank, labelled.queries)
    )
    cosine = torch.nn.functional.cosine_similarity(queries[:, None].double(), bank[None].double(), dim=-1)
    for row, cosines in zip(found, cosine.tolist(), strict=True):
        nearest = sorted(range(30), key=lambda place: -cosines[place])[:7]
        votes = [sum(np.exp(cosines[p] / 0.5) for p in nearest if labelled.bank.labels[p] == c) for c in range(3)]
        assert row == pytest.approx(np.array(votes) / sum(votes), abs=1e-4)
