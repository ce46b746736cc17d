"""Weighted k-nearest-neighbour classification on frozen features: the signal to steer a run by, as it has nothing to
tune.

The protocol is DINO's (section 4.1 and its released evaluation, after Wu et al. 2018): L2-normalised cls features of
the teacher, cosine, the k nearest vote with weight exp(cosine / T). What differs is only what the papers leave open: of
equally near images those first in the bank vote, of classes with equal votes the lower label wins, and a class without
a vote is no guess.
Letters: Q queries, N bank, D width, C classes, k neighbours.
"""

import logging
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from raydino import collectives
from raydino.evals.config import KNNConfig
from raydino.evals.evaluation import Evaluation, Labelled
from raydino.evals.features import extract

if TYPE_CHECKING:
    from raydino.nn.backbone import Backbone

_SCORES = 1 << 24  # similarities held at once: 64 MiB of float32, and 128 MiB to rank them
_PIXEL_SIDE = 32  # raw pixels are compared at this size at most: 3,072 dimensions
_logger = logging.getLogger(__name__)


class KNN(Evaluation):
    """Weighted k-NN; returns `top1` and, from 5 classes on, `top5`, as shares of the queries."""

    def __init__(self, config: KNNConfig) -> None:
        """An evaluation by `config`."""
        self.config = config

    @property
    def protocol(self) -> str:
        """The protocol in words, for logs; `Labelled.description` says on which images."""
        config = self.config
        return f"weighted {config.k}-NN, temperature {config.temperature:g}, cosine of L2-normalised cls features"

    def run(self, encoder: "Backbone", labelled: Labelled) -> dict[str, float]:
        """Classify the queries by their nearest bank images. Raises ValueError if either set has no decodable image."""
        return _evaluate(encoder, labelled, self.config, device=next(encoder.parameters()).device)


def pixels_knn(
    labelled: Labelled, config: KNNConfig = KNNConfig(), *, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """The same protocol on raw normalised pixels, shrunk to 32 pixels: what an encoder must beat to have learned
    anything. Computed on `device`.
    """
    return _evaluate(_PixelEncoder(), labelled, config, device=torch.device(device))


def classify(
    bank: Float[Tensor, "N D"],
    bank_labels: Int[Tensor, " N"],
    queries: Float[Tensor, "Q D"],
    *,
    classes: int,
    k: int,
    temperature: float,
) -> Float[Tensor, "Q C"]:
    """Votes of the k nearest bank rows for each class, up to a factor per query; k is cut to the size of the bank.

    The slow version: for each query, sort the bank by cosine, and for the first k add exp(cosine / T) to the vote of
    its label. Raises ValueError for an empty bank, labels outside 0..classes-1 or features that are not finite.
    """
    if not (bank.isfinite().all() and queries.isfinite().all()):
        raise ValueError("features are not finite: the encoder has diverged; go back to an earlier checkpoint")
    if not len(bank) or int(bank_labels.min()) < 0 or int(bank_labels.max()) >= classes:
        raise ValueError(f"bank of {len(bank)} rows: it must have rows, and labels from 0 to {classes - 1}")
    k = min(k, len(bank))
    bank, queries = F.normalize(bank.float(), dim=1), F.normalize(queries.float(), dim=1)
    votes = queries.new_zeros(len(queries), classes)
    step = max(1, _SCORES // len(bank))
    for start in range(0, len(queries), step):
        cosine = queries[start : start + step] @ bank.T  # Q' N
        index = nearest(cosine, k)  # Q' k
        value = cosine.gather(1, index)
        weight = torch.exp((value - value.amax(dim=1, keepdim=True)) / temperature)  # exp(1 / 0.01) would overflow
        label = bank_labels[index]
        part = votes[start : start + step]
        row = torch.arange(len(part), device=part.device)
        for j in range(k):  # one neighbour at a time: no two writes meet, so the sum has one order on every device
            part[row, label[:, j]] += weight[:, j]
    return votes


def nearest(scores: Float[Tensor, "Q N"], k: int) -> Int[Tensor, "Q k"]:
    """Columns of the k largest scores of each row, ascending; among equal scores the lower column is taken.

    `torch.topk` leaves the choice among equals open, and it differs between devices.
    """
    threshold = scores.topk(k, dim=1).values[:, -1:]
    above, equal = scores > threshold, scores == threshold
    missing = k - above.sum(dim=1, keepdim=True)
    taken = above | (equal & (equal.cumsum(dim=1) <= missing))
    return taken.nonzero()[:, 1].view(len(scores), k)


def _evaluate(encoder: nn.Module, labelled: Labelled, config: KNNConfig, *, device: torch.device) -> dict[str, float]:
    bank_set = labelled.bank.at_most(config.bank, seed=labelled.seed)
    query_set = labelled.queries.at_most(config.queries, seed=labelled.seed)
    bank, bank_labels = extract(encoder, bank_set, labelled.normalisation, device=device)
    queries, labels = extract(encoder, query_set, labelled.normalisation, device=device)
    if config.k > len(bank):
        _logger.warning("evals: k = %d of a bank of %d images; all of them vote", config.k, len(bank))
    mine = slice(collectives.rank(), None, collectives.world_size())  # features are on every rank, votes are shared out
    classes = len(labelled.classes)
    votes = classify(bank, bank_labels, queries[mine], classes=classes, k=config.k, temperature=config.temperature)
    ranked, order = votes.sort(dim=1, descending=True, stable=True)
    hits = (order == labels[mine, None]) & (ranked > 0)
    right = torch.stack([hits[:, :1].sum(), hits[:, :5].sum()])
    top1, top5 = (collectives.all_sum(right).double() / len(queries)).tolist()
    return {"top1": top1, "top5": top5} if classes >= 5 else {"top1": top1}


class _Pixels(NamedTuple):
    cls: Tensor


class _PixelEncoder(nn.Module):
    def forward(self, images: Float[Tensor, "B C H W"]) -> _Pixels:
        sides = (min(_PIXEL_SIDE, images.shape[-2]), min(_PIXEL_SIDE, images.shape[-1]))
        return _Pixels(cls=F.adaptive_avg_pool2d(images, sides).flatten(1))
