"""Weighted k-nearest-neighbour classification on frozen features: the signal to steer a run by, as it has nothing to
tune.

The protocol is DINO's (appendix F.1 and its released evaluation, after Wu et al. 2018): L2-normalised cls features of
the teacher, cosine, the k nearest vote with weight exp(cosine / T). What differs is only what the papers leave open: of
equally near images those first in the bank vote, of classes with equal votes the lower label wins, and a class without
a vote is no guess.
Letters: Q queries, N bank, D width, C classes, k neighbours.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from raydino import collectives, keyed
from raydino.evals.config import KNNConfig, KNNGridConfig
from raydino.evals.evaluation import Evaluation, Labelled
from raydino.evals.features import extract
from raydino.nn.layers import Pixels

if TYPE_CHECKING:
    from raydino.nn.backbone import Backbone

_SCORES = 1 << 24  # similarities held at once: 64 MiB of float32, and 128 MiB to rank them
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
        found = _evaluate(encoder, labelled, self.config, device=next(encoder.parameters()).device)
        return found[f"k{self.config.k}"]


class KNNGrid(Evaluation):
    """Weighted k-NN for several k; returns `top1` and `top5` for the config's `k`, `top1_k10` and so on for the others, and
    `top1_1shot` and so on: means over few-shot banks, at the config's `k`."""

    def __init__(self, config: KNNGridConfig) -> None:
        """An evaluation by `config`."""
        self.config = config

    @property
    def protocol(self) -> str:
        """The protocol in words."""
        config = self.config
        few = f"; banks of {_listed(config.shots)} images a class, mean of {config.tries}" if config.shots else ""
        return f"{KNN(config).protocol}; also k = {_listed(config.ks)}{few}"

    def run(self, encoder: "Backbone", labelled: Labelled) -> dict[str, float]:
        """Classify the queries. Raises ValueError if a set has no decodable image."""
        config, device = self.config, next(encoder.parameters()).device
        every = _evaluate(encoder, labelled, config, ks=(config.k, *config.ks), device=device)
        found = dict(every[f"k{config.k}"])
        found |= {f"top1_{k}": scores["top1"] for k, scores in every.items()}
        bank = labelled.bank.at_most(config.bank, seed=labelled.seed)
        for shots in config.shots:
            top1 = []
            for number in range(config.tries):
                rows = few_shot(bank.labels, shots=shots, seed=labelled.seed, number=number)
                few = replace(labelled, bank=bank.part(rows))
                scores = _evaluate(encoder, few, config, device=device)
                top1.append(scores[f"k{config.k}"]["top1"])
            found[f"top1_{shots}shot"] = sum(top1) / len(top1)
        return found


def few_shot(labels: Int[np.ndarray, " N"], *, shots: int, seed: int, number: int) -> Int[np.ndarray, " M"]:
    """Rows of `shots` images of each class (all, where it has fewer), ascending, by (seed, "few-shot", shots, number)."""
    order = keyed.generator(seed, "few-shot", shots, number).permutation(len(labels))
    rows = [order[labels[order] == label][:shots] for label in np.unique(labels)]
    return np.sort(np.concatenate(rows))


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def pixels_knn(
    labelled: Labelled, config: KNNConfig = KNNConfig(), *, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """The same protocol on raw normalised pixels, shrunk to 32 pixels: what an encoder must beat to have learned
    anything. Computed on `device`.
    """
    pixels = Pixels(channels=labelled.queries.shape[0]).to(device)
    return _evaluate(pixels, labelled, config, device=torch.device(device))[f"k{config.k}"]


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
    return classify_each(bank, bank_labels, queries, classes=classes, ks=(k,), temperature=temperature)[0]


def classify_each(
    bank: Float[Tensor, "N D"],
    bank_labels: Int[Tensor, " N"],
    queries: Float[Tensor, "Q D"],
    *,
    classes: int,
    ks: Sequence[int],
    temperature: float,
) -> list[Float[Tensor, "Q C"]]:
    """`classify` for each of `ks`, from one search. Raises as it does."""
    if not (bank.isfinite().all() and queries.isfinite().all()):
        raise ValueError("features are not finite: the encoder has diverged; go back to an earlier checkpoint")
    if not len(bank) or int(bank_labels.min()) < 0 or int(bank_labels.max()) >= classes:
        raise ValueError(f"bank of {len(bank)} rows: it must have rows, and labels from 0 to {classes - 1}")
    ends = [min(k, len(bank)) for k in ks]
    bank, queries = F.normalize(bank.float(), dim=1), F.normalize(queries.float(), dim=1)
    every = [queries.new_zeros(len(queries), classes) for _ in ks]
    step = max(1, _SCORES // len(bank))
    for start in range(0, len(queries), step):
        cosine = queries[start : start + step] @ bank.T  # Q' N
        index = nearest(cosine, max(ends))  # Q' k
        value, order = cosine.gather(1, index).sort(
            dim=1, descending=True, stable=True
        )  # of equals the first in the bank
        weight = torch.exp((value - value[:, :1]) / temperature)  # exp(1 / 0.01) would overflow
        label = bank_labels[index.gather(1, order)]
        part = torch.zeros_like(every[0][start : start + step])
        row = torch.arange(len(part), device=part.device)
        for j in range(
            max(ends)
        ):  # one neighbour at a time: no two writes meet, so the sum has one order on every device
            part[row, label[:, j]] += weight[:, j]
            for votes, end in zip(every, ends, strict=True):
                if end == j + 1:
                    votes[start : start + step] = part
    return every


def nearest(scores: Float[Tensor, "Q N"], k: int) -> Int[Tensor, "Q k"]:
    """Columns of the k largest scores of each row, ascending; among equal scores the lower column is taken.

    `torch.topk` leaves the choice among equals open, and it differs between devices.
    """
    threshold = scores.topk(k, dim=1).values[:, -1:]
    above, equal = scores > threshold, scores == threshold
    missing = k - above.sum(dim=1, keepdim=True)
    taken = above | (equal & (equal.cumsum(dim=1) <= missing))
    return taken.nonzero()[:, 1].view(len(scores), k)


def _evaluate(
    encoder: "Backbone", labelled: Labelled, config: KNNConfig, *, device: torch.device, ks: Sequence[int] = ()
) -> dict[str, dict[str, float]]:
    """`top1` and, from 5 classes on, `top5`, by k (as "k20"): of `ks`, without any of the config's."""
    ks = tuple(dict.fromkeys(ks)) or (config.k,)
    bank_set = labelled.bank.at_most(config.bank, seed=labelled.seed)
    query_set = labelled.queries.at_most(config.queries, seed=labelled.seed)
    bank, bank_labels = extract(encoder, bank_set, labelled.normalisation, device=device)
    queries, labels = extract(encoder, query_set, labelled.normalisation, device=device)
    if max(ks) > len(bank):
        _logger.warning("evals: k = %d of a bank of %d images; all of them vote", max(ks), len(bank))
    mine = slice(collectives.rank(), None, collectives.world_size())  # features are on every rank, votes are shared out
    classes, found = len(labelled.classes), {}
    every = classify_each(bank, bank_labels, queries[mine], classes=classes, ks=ks, temperature=config.temperature)
    for k, votes in zip(ks, every, strict=True):
        ranked, order = votes.sort(dim=1, descending=True, stable=True)
        hits = (order == labels[mine, None]) & (ranked > 0)
        right = torch.stack([hits[:, :1].sum(), hits[:, :5].sum()])
        top1, top5 = (collectives.all_sum(right).double() / len(queries)).tolist()
        found[f"k{k}"] = {"top1": top1, "top5": top5} if classes >= 5 else {"top1": top1}
    return found
