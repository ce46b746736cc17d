"""Average precision in its two published forms, over scores or ranks, in plain NumPy.

"Step" is the mean of the precisions at the positives (scikit-learn's); "trapezoidal" takes the mean of the precisions before
and at each positive, as the Oxford and Paris benchmark does. Among equal scores the lower column comes first.
Letters: Q queries, N images of the database.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int


def ranked(scores: Float[np.ndarray, "Q N"]) -> Int[np.ndarray, "Q N"]:
    """Columns by falling score."""
    return np.argsort(-scores, axis=1, kind="stable")


def average_precision(relevant: Bool[np.ndarray, " N"]) -> float:
    """Of a list in rank order: the mean over its relevant entries of the share of relevant ones up to there; NaN for none."""
    places = np.flatnonzero(relevant)
    return float(np.mean((np.arange(len(places)) + 1) / (places + 1))) if len(places) else float("nan")


def trapezoidal_precision(places: Int[np.ndarray, " P"], positives: int) -> float:
    """The benchmark's AP of positives found at these places (from 0, ascending); NaN for no positives."""
    if not positives:
        return float("nan")
    found = np.arange(len(places))
    before = np.where(places == 0, 1.0, found / np.maximum(places, 1))
    return float(np.sum((before + (found + 1) / (places + 1)) / 2) / positives)


@dataclass(frozen=True)
class Judged:
    """Columns of the database for one query of revisited Oxford or Paris."""

    easy: Int[np.ndarray, " E"]
    hard: Int[np.ndarray, " H"]
    junk: Int[np.ndarray, " J"]

    def split(self, difficulty: str) -> tuple[np.ndarray, np.ndarray]:
        """Positives, and what is left out of the list, at "easy", "medium" or "hard" (Radenović et al. 2018)."""
        if difficulty == "easy":
            return self.easy, np.concatenate([self.junk, self.hard])
        if difficulty == "medium":
            return np.concatenate([self.easy, self.hard]), self.junk
        return self.hard, np.concatenate([self.junk, self.easy])


def revisited(
    order: Int[np.ndarray, "Q N"], judged: list[Judged], *, at: tuple[int, ...] = (1, 5, 10)
) -> dict[str, float]:
    """`map_easy`, `map_medium`, `map_hard` and mean precision at 1, 5, 10 (`mp1_medium`, …) of lists in rank order.

    Queries without a positive at a difficulty do not count there. A list shorter than 10 positives is judged as far as its
    last positive, as the benchmark's own code does. NaN where no query counts.
    """
    found: dict[str, float] = {}
    for difficulty in ("easy", "medium", "hard"):
        precisions, means = [], []
        for row, query in zip(order, judged, strict=True):
            positives, left_out = query.split(difficulty)
            if not len(positives):
                continue
            kept = row[~np.isin(row, left_out)]
            places = np.flatnonzero(np.isin(kept, positives))
            precisions.append(trapezoidal_precision(places, len(positives)))
            ends = [min(int(places.max()) + 1, k) for k in at]
            means.append([float((places < end).sum()) / end for end in ends])
        found[f"map_{difficulty}"] = float(np.mean(precisions)) if precisions else float("nan")
        for k, value in zip(at, np.mean(means, axis=0) if means else [float("nan")] * len(at), strict=True):
            found[f"mp{k}_{difficulty}"] = float(value)
    return found
