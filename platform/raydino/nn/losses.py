"""The losses. Each docstring is the slow version; the body is the closed form; the tests compare the two.

Letters: T teacher views, S student views, B images, M masked patches, K prototypes, D width.
Cross-entropy between target p and scores s at temperature t is logsumexp(s/t) - sum(p * s/t), because p sums to 1: no log-softmax
over all pairs is ever stored, and those of one student view with several targets are one with their sum (cross_entropy.py).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from raydino.nn.cross_entropy import cross_entropy


def dino_loss(
    *,
    student_scores: Float[Tensor, "S B K"],
    teacher_probs: Float[Tensor, "T B K"],
    temperature: float,
    global_views: int | None = None,
    fused: bool = False,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean cross-entropy over all pairs of a teacher view and a *different* student view (DINO, equation 3 and algorithm 1).

    The first T student views are the teacher's own. The first `global_views` are global crops and the others local ones; None
    says that the teacher sees the global crops and no others. As nested loops:

        for q in range(T):
            for v in range(S):
                if v != q:
                    term = mean over b of cross_entropy(teacher_probs[q, b], student_scores[v, b] / temperature)
                    (global_sum if v < global_views else local_sum) += term
        return global_sum / pairs, local_sum / pairs        # pairs = T * S - T

    `fused`, here and below, is that of `cross_entropy`.

    Returns:
        The share of global student views and the share of local ones; their sum is DINO's loss.
    """
    views, students = len(teacher_probs), len(student_scores)
    pairs = views * (students - 1)
    global_views = views if global_views is None else global_views
    all_targets = teacher_probs.sum(dim=0)  # B K
    # a global view answers to every teacher view but its own
    others = list(teacher_probs)[::-1] if views == 2 else [all_targets - own for own in teacher_probs]
    entropies = cross_entropy(
        student_scores,
        [*others, *[all_targets] * (students - views)],
        [views - 1.0] * views + [float(views)] * (students - views),
        temperature=temperature,
        fused=fused,
    ).mean(dim=1)
    return entropies[:global_views].sum() / pairs, entropies[global_views:].sum() / pairs


def ibot_loss(
    *,
    student_scores: Float[Tensor, "M K"],
    teacher_probs: Float[Tensor, "M K"],
    weights: Float[Tensor, " M"],
    crops: int,
    temperature: float,
    fused: bool = False,
) -> Float[Tensor, ""]:
    """Cross-entropy on masked patches, averaged per crop, then over all crops, unmasked ones counting 0 (iBOT, equation 3).

        for each crop c of `crops`: loss += mean over its masked patches m of cross_entropy(teacher_probs[m],
        student_scores[m] / temperature) return loss / crops

    `weights[m]` is 1 / (number of masked patches in m's crop).
    """
    entropies = cross_entropy(student_scores[None], [teacher_probs], [1.0], temperature=temperature, fused=fused)
    return (entropies[0] * weights).sum() / crops


def koleo_loss(features: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
    """Kozachenko-Leonenko entropy regulariser: minus the mean log distance to the nearest neighbour (Sablayrolles et
    al. 2019, eq. 3).

        x = features / |features|
        return -mean over i of log(min over j != i of |x[i] - x[j]| + eps)

    In float32 whatever the autocast: at initialisation all cls tokens nearly coincide, and half precision would
    flush eps to zero.

    Raises:
        ValueError: fewer than two rows, for which no neighbour exists.
    """
    if len(features) < 2:
        raise ValueError(
            f"KoLeo needs at least 2 images in a micro-batch, got {len(features)}; enlarge it or set koleo_weight to 0"
        )
    with torch.autocast(device_type=features.device.type, enabled=False):
        x = torch.nn.functional.normalize(features.float(), dim=-1, eps=1e-8)
        with torch.no_grad():
            similarity = x @ x.T
            similarity.fill_diagonal_(-1.0)
            nearest = similarity.argmax(dim=1)
        distance = torch.nn.functional.pairwise_distance(x, x[nearest], eps=1e-8)
        return -torch.log(distance + 1e-8).mean()
