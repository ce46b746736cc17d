"""Do all groups of images fare alike? Accuracy by group, the gaps between groups, and what each group is taken for.

Groups are given: a column of the images, or a third of them by something measured. Intervals are those of the percentile
bootstrap (Efron and Tibshirani 1993, chapter 13): the images of each group are drawn again from that group, with replacement, as
often as it has images. How often something holds among n images drawn so from n of which h hold is Binomial(n, h / n), which is
drawn directly. The table of associations follows DINOv2, section 8.
Letters: N images, C classes, R resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from raydino import keyed
from raydino.evals.config import KNNConfig, LogisticConfig
from raydino.evals.evaluation import Labelled
from raydino.evals.features import extract_blocks
from raydino.evals.knn import classify
from raydino.evals.logistic import Logistic

if TYPE_CHECKING:
    from raydino.nn.backbone import Backbone

RESAMPLES = 10_000
INTERVAL = (2.5, 97.5)
"""Percentiles of the resampled values that bound an interval of 95 %."""
TOP, LEAST = 5, 0.1
"""An image is associated with a class among its first `TOP` that has a probability of at least `LEAST` (DINOv2, section 8)."""
TERCILES = ("low", "middle", "high")


@dataclass(frozen=True)
class Estimate:
    """A share, or a difference of shares, with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class GroupShare:
    """In how many images of a group something holds."""

    group: str
    count: int
    hits: int
    share: Estimate | None
    """None where the group has too few images to be judged."""


@dataclass(frozen=True)
class Gap:
    """How far apart the groups are that have enough images."""

    best: str
    worst: str
    between: Estimate
    """Share of the best less that of the worst; both stay those two groups in the resamples."""
    below_mean: Estimate
    """Mean of the groups' shares, each counting once, less that of the worst."""
    chance: float
    """Share of shufflings of the groups over the images that are at least this far apart, (1 + found) / (1 + R)."""


def by_group(
    hits: Bool[np.ndarray, " N"],
    groups: Sequence[str],
    names: Sequence[str],
    *,
    minimum: int,
    seed: int,
    key: str = "",
    resamples: int = RESAMPLES,
) -> tuple[tuple[GroupShare, ...], Gap | None]:
    """The share of hits in each group of `names`, in that order, and the gap; None where fewer than two have `minimum` images.

    The resamples of a group are those of (seed, "fairness", `key`, its name), whatever other groups there are. A group without
    a miss or without a hit has an interval of no width, which is the bootstrap's weakness and no certainty. Raises ValueError if
    hits and groups differ in number, or a group is not in `names`.
    """
    if len(hits) != len(groups) or set(groups) - set(names):
        raise ValueError(
            f"{len(hits)} hits of {len(groups)} images in groups {sorted(set(groups))}, names: {list(names)}"
        )
    member = np.asarray(groups, dtype=object)
    found, drawn = [], {}
    for name in names:
        here = hits[member == name]
        count, hit = len(here), int(here.sum())
        share = None
        if count >= max(1, minimum):
            generator = keyed.generator(seed, "fairness", key, name)
            drawn[name] = generator.binomial(count, hit / count, size=resamples) / count
            share = _estimate(hit / count, drawn[name])
        found.append(GroupShare(name, count, hit, share))
    return tuple(found), _gap([group for group in found if group.share is not None], drawn, seed=seed, key=key)


def _estimate(value: float, resampled: Float[np.ndarray, " R"]) -> Estimate:
    low, high = np.percentile(resampled, INTERVAL)
    return Estimate(value, float(low), float(high))


def _gap(ranked: Sequence[GroupShare], drawn: Mapping[str, np.ndarray], *, seed: int, key: str) -> Gap | None:
    if len(ranked) < 2:
        return None
    counts, hits = (np.array([getattr(group, field) for group in ranked]) for field in ("count", "hits"))
    shares = hits / counts
    best, worst = ranked[int(shares.argmax())].group, ranked[int(shares.argmin())].group
    between = float(shares.max() - shares.min())
    mean = np.mean([drawn[group.group] for group in ranked], axis=0)
    # Groups shuffled over the images: how the hits then fall on the groups is multivariate hypergeometric.
    generator = keyed.generator(seed, "fairness-shuffled", key)
    shuffled = generator.multivariate_hypergeometric(counts, int(hits.sum()), size=len(mean)) / counts
    as_far = shuffled.max(axis=1) - shuffled.min(axis=1) >= between - 1e-12
    return Gap(
        best,
        worst,
        between=_estimate(between, drawn[best] - drawn[worst]),
        below_mean=_estimate(float(shares.mean() - shares.min()), mean - drawn[worst]),
        chance=float((1 + as_far.sum()) / (1 + len(as_far))),
    )


def associated(
    probabilities: Float[np.ndarray, "N C"], class_groups: Mapping[str, Sequence[int]]
) -> dict[str, Bool[np.ndarray, " N"]]:
    """By group of classes: of which images one of its classes is among the `TOP` and has `LEAST` probability or more.

    Of equal probabilities the lower class comes first.
    """
    first = np.argsort(-probabilities, axis=1, kind="stable")[:, :TOP]
    among = np.zeros(probabilities.shape, dtype=bool)
    np.put_along_axis(among, first, values=True, axis=1)
    taken = among & (probabilities >= LEAST)
    return {name: np.asarray(taken[:, list(classes)].any(axis=1)) for name, classes in class_groups.items()}


def halves(strata: Sequence[tuple[int | str, ...]], *, seed: int) -> Bool[np.ndarray, " N"]:
    """True for the half of the images to learn from, by (seed, "halves").

    Every stratum is split evenly, and so is everything that shares the first parts of its stratum's name (such as the class):
    one image more on either side at most.
    """
    places = {stratum: place for place, stratum in enumerate(sorted(set(strata)))}
    random = keyed.generator(seed, "halves").permutation(len(strata))
    order = np.lexsort((random, np.array([places[stratum] for stratum in strata])))
    learn = np.zeros(len(strata), dtype=bool)
    learn[order[::2]] = True
    return learn


def terciles(values: Float[np.ndarray, " N"]) -> tuple[list[str | None], tuple[float, float]]:
    """The third of the finite values in which each lies, low ≤ first cut < middle ≤ second cut < high, and the cuts; None for
    values that are not finite. Equal values are never parted, so thirds may differ in size. Raises ValueError where none is
    finite.
    """
    known = np.isfinite(values)
    if not known.any():
        raise ValueError("no finite value to cut into thirds")
    cuts = np.quantile(values[known], (1 / 3, 2 / 3))
    places = np.searchsorted(cuts, values, side="left")
    return [TERCILES[p] if k else None for p, k in zip(places, known, strict=True)], (float(cuts[0]), float(cuts[1]))


def probabilities(
    encoder: "Backbone", labelled: Labelled, config: KNNConfig | LogisticConfig
) -> tuple[Float[np.ndarray, "N C"], Int[np.ndarray, " N"]]:
    """What a head that learned from the bank says of the queries, rows summing to 1, and which of them could be decoded.

    Of k-NN it is each class's share of the weighted votes. Raises ValueError where a set has no decodable image, or the bank has
    one class alone where a regression is asked for.
    """
    device = next(encoder.parameters()).device
    bank, queries = (
        extract_blocks(encoder, images, labelled.normalisation, device=device)
        for images in (labelled.bank.at_most(config.bank, seed=labelled.seed), labelled.queries)
    )
    learned, asked = (features.cls[:, -1].contiguous() for features in (bank, queries))
    if isinstance(config, KNNConfig):
        votes = classify(
            learned, bank.labels, asked, classes=len(labelled.classes), k=config.k, temperature=config.temperature
        )
        found = votes.double().cpu().numpy()
    else:
        x, y, head = learned.double().cpu().numpy(), bank.labels.cpu().numpy(), Logistic(config)
        scores = head.sweep(x, y, seed=labelled.seed)
        model = head.fit(x, y, max(scores, key=lambda strength: scores[strength]))
        found = np.zeros((len(asked), len(labelled.classes)))
        found[:, model.classes_] = model.predict_proba(asked.double().cpu().numpy())
    return found / found.sum(axis=1, keepdims=True), queries.positions.cpu().numpy()
