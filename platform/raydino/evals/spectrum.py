"""Is the representation alive? Three label-free figures of a set of features, cheap enough for every evaluation.

They answer what a falling loss cannot: whether features are collapsing to a point (feature_std to 0), to few dimensions
(rankme to 1), or whether they spread over the sphere (uniformity, lower is better). N features, D dimensions.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

RANKME_EPSILON = 1e-7  # Garrido et al. 2023, equation 1
_CHUNK = 1024  # rows of the N x N distances held at once


def rankme(features: Float[Tensor, "N D"]) -> float:
    """Effective rank: exp of the entropy of the singular values, normalised to sum 1 (RankMe, Garrido et al. 2023).

    Between 1 and min(N, D); features are not centred, as in the paper. Raises ValueError for fewer than 2 features.
    """
    values = torch.linalg.svdvals(_checked(features))
    share = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny) + RANKME_EPSILON
    return float(torch.exp(-(share * share.log()).sum()))


def feature_std(features: Float[Tensor, "N D"]) -> float:
    """Mean over dimensions of the standard deviation of the L2-normalised features, times √D: 0 collapsed, about 1
    spread out.

    (SimSiam, Chen and He 2021, section 4.1.) Raises ValueError for fewer than 2 features.
    """
    normed = F.normalize(_checked(features), dim=1)
    return float(normed.std(dim=0, correction=0).mean() * normed.shape[1] ** 0.5)


def uniformity(features: Float[Tensor, "N D"], *, t: float = 2.0) -> float:
    """Log of the mean of exp(-t·‖x - y‖²) over all pairs of different rows, features L2-normalised (Wang and Isola
    2020).

    0 when all features coincide, lower as they spread; at least -4t. Raises ValueError for fewer than 2 features.
    """
    normed = F.normalize(_checked(features), dim=1)
    count = len(normed)
    total = normed.new_zeros(())
    for start in range(0, count, _CHUNK):
        cosine = normed[start : start + _CHUNK] @ normed.T
        total += torch.exp(-t * (2 - 2 * cosine).clamp_min(0)).sum()
    pairs = (total - count).clamp_min(0) / (count * (count - 1))  # each row meets itself once, at distance 0
    return float(pairs.clamp_min(torch.finfo(pairs.dtype).tiny).log())


def spectrum(features: Float[Tensor, "N D"]) -> dict[str, float]:
    """All three, by name: `rankme`, `feature_std`, `uniformity`."""
    return {"rankme": rankme(features), "feature_std": feature_std(features), "uniformity": uniformity(features)}


def _checked(features: Tensor) -> Tensor:
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features of shape {tuple(features.shape)}: the spectrum needs [N, D] with N at least 2")
    # Double precision: at 32 bits the smallest singular values are noise of 1e-7 of the largest, as large as epsilon.
    return features.detach().double()
