"""What mattered: the share of the objective's variance that each dimension of the space explains alone.

The functional analysis of variance of Hutter et al. 2014, first order, on a random forest: what the forest predicts on average
where a dimension has a value varies with that value; this variance over that of all predictions is the dimension's importance.
Forests on resampled trials give its spread. A handful of trials cannot tell much: then the spread is as large as the share.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raydino.keyed import generator
from raydino.launch.sweep.space import Space
from raydino.launch.trials.trial import TrialResult

FORESTS, TREES, POINTS = 20, 32, 256
LEAST_TRIALS = 4  # below, there is nothing to resample
RELIABLE_TRIALS = 20  # below, the page says so


@dataclass(frozen=True)
class Importance:
    """How much a dimension of the space mattered."""

    key: str
    share: float
    """Of the variance that its main effect explains, mean over forests."""
    spread: float
    """Standard deviation over forests."""


@dataclass(frozen=True)
class Seen:
    """Trials at equal images seen: the most that all of them have been evaluated at."""

    images: int
    places: np.ndarray
    """[trials, keys] where each stands in its dimension, 0 to 1."""
    values: np.ndarray
    """[trials] of the objective."""


def seen_equally(
    results: Sequence[TrialResult], params: Mapping[str, Mapping[str, Any]], space: Space, objective: str
) -> Seen:
    """Trials with a place in every dimension and a value, compared where all of them were evaluated."""
    taken: list[tuple[list[float], dict[int, float]]] = []
    for result in results:
        places = [each.place(params.get(result.trial.group, {}).get(key)) for key, each in space.items()]
        found = {each.images: each.metrics[objective] for each in result.history if objective in each.metrics}
        found = {images: value for images, value in found.items() if images > 0 and np.isfinite(value)}
        if found and None not in places:
            taken.append(([place for place in places if place is not None], found))
    common = min((max(found) for _, found in taken), default=0)
    at = [(places, max((i for i in found if i <= common), default=0), found) for places, found in taken]
    at = [(places, images, found) for places, images, found in at if images > 0]
    return Seen(
        images=common,
        places=np.array([places for places, _, _ in at], dtype=float).reshape(len(at), len(space)),
        values=np.array([found[images] for _, images, found in at], dtype=float),
    )


def importances(seen: Seen, keys: Sequence[str], *, seed: int = 0) -> list[Importance]:
    """Importances, the largest first; empty where there are too few trials or all came to the same."""
    count = len(seen.values)
    if count < LEAST_TRIALS or np.ptp(seen.values) == 0:
        return []
    shares = np.stack([_shares(seen, seed, forest) for forest in range(FORESTS)])
    found = [
        Importance(key, float(shares[:, index].mean()), float(shares[:, index].std(ddof=1)))
        for index, key in enumerate(keys)
    ]
    return sorted(found, key=lambda each: -each.share)


def _shares(seen: Seen, seed: int, forest: int) -> np.ndarray:
    """[keys] shares by one forest on resampled trials."""
    from sklearn.ensemble import RandomForestRegressor

    draw = generator(seed, "importance", forest)
    chosen = draw.integers(len(seen.values), size=len(seen.values))
    model = RandomForestRegressor(n_estimators=TREES, random_state=forest)
    model.fit(seen.places[chosen], seen.values[chosen])
    keys = seen.places.shape[1]
    # Points of the space with each dimension as it was tried, independent of the others.
    points = np.stack([draw.permutation(np.resize(seen.places[:, key], POINTS)) for key in range(keys)], axis=1)
    whole = float(model.predict(points).var())
    if whole == 0:
        return np.zeros(keys)
    shares = np.zeros(keys)
    for key in range(keys):
        values, weights = np.unique(points[:, key], return_counts=True)
        means = []
        for value in values:
            held = points.copy()
            held[:, key] = value
            means.append(float(model.predict(held).mean()))
        centre = np.average(means, weights=weights)
        shares[key] = np.average((np.array(means) - centre) ** 2, weights=weights) / whole
    return shares
