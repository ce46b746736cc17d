"""Do a classifier's probabilities mean what they say? Expected calibration error, negative log-likelihood, temperature scaling.

After Guo et al. (2017): the error is the mean over 15 bins of equal width of how far confidence and accuracy lie apart
(equation 3). One temperature for all logits, fitted on images that the classifier has not learned from (section 4.2), sets
right what is too sure or too unsure everywhere without changing any answer.
Letters: N images, C classes. Logarithms are natural; a class that the classifier does not know has logit -inf.
"""

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

BINS = 15
LEAST, MOST = 1e-2, 1e2
"""Bounds of a fitted temperature: one at a bound says that the classifier is always right, or knows nothing."""


def calibration_error(
    probabilities: Float[np.ndarray, "N C"], labels: Int[np.ndarray, " N"], *, bins: int = BINS
) -> float:
    """Expected calibration error, 0 to 1: Σ over bins of their share of images × |accuracy - mean confidence|.

    Confidence is the largest probability; a bin holds its upper edge, as published, and the first also 0. Raises ValueError for
    no images or rows that are no probabilities.
    """
    if not len(probabilities) or not np.allclose(probabilities.sum(1), 1, atol=1e-4):
        raise ValueError(f"probabilities: {len(probabilities)} rows; give at least one, each summing to 1")
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    # Count × |mean - mean| is the distance of the sums.
    apart = np.bincount(index, right, bins) - np.bincount(index, confidence, bins)
    return float(np.abs(apart).sum() / len(labels))


def negative_log_likelihood(
    logits: Float[np.ndarray, "N C"], labels: Int[np.ndarray, " N"], *, temperature: float = 1.0
) -> float:
    """Mean of -log of the true class's probability, in nats; infinite where a class has none. Raises ValueError for no images."""
    if not len(logits):
        raise ValueError("logits: no rows; give at least one image")
    return float(-log_softmax(logits / temperature, axis=1)[np.arange(len(labels)), labels].mean())


def fit_temperature(logits: Float[np.ndarray, "N C"], labels: Int[np.ndarray, " N"]) -> float:
    """The temperature in [LEAST, MOST] of the least negative log-likelihood, which is convex in its inverse.

    Images whose class has logit -inf say nothing of it. Raises ValueError where no other image is left.
    """
    known = np.isfinite(logits[np.arange(len(labels)), labels])
    if not known.any():
        raise ValueError(f"temperature: none of {len(labels)} held-back images is of a known class; give more images")

    def loss(log_temperature: float) -> float:
        return negative_log_likelihood(logits[known], labels[known], temperature=float(np.exp(log_temperature)))

    found = minimize_scalar(loss, bounds=(np.log(LEAST), np.log(MOST)), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))
