"""Linear classification on frozen features: DINOv2's grid of heads in one pass, the best chosen on images held back.

Every head sees the same batches, so one pass over the features trains the whole grid (dinov2/eval/linear.py; the DINOv2
paper, appendix B.3): the cls tokens of the last 1 or 4 blocks, with or without the mean patch of the last, at 13 learning
rates. Heads learn from centre crops, whose features are there already, or as published from random crops (random_crops.py).
The published evaluation reports the head that is best on the very images it reports. Here that is an option, and the
default chooses on a part of the training images that no head has learned from.
The gradient of a linear softmax is written out: 13 heads of one input are one product of matrices, which autograd would
make of 13 graphs.
Letters: N images, F features, C classes, H heads, B batch.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from raydino import collectives, keyed
from raydino.evals.config import LinearConfig
from raydino.evals.evaluation import Evaluation, Labelled
from raydino.evals.features import Features, extract_blocks
from raydino.evals.random_crops import SCALE, batches_of_crops

if TYPE_CHECKING:
    from raydino.nn.backbone import Backbone

MOMENTUM = 0.9
INITIAL_STD = 0.01
CROPS = {"centre": "centre crops", "random": f"random crops of {SCALE[0]:.0%} to {SCALE[1]:.0%} of the area and flips"}


@dataclass(frozen=True)
class Input:
    """What a head sees."""

    blocks: int
    pooled: bool


@dataclass(frozen=True)
class Scored:
    """A head of the grid and the share of images it classifies rightly."""

    input: Input
    lr: float
    """As listed: for 256 images a batch."""
    held_back: float
    """NaN where nothing was held back."""
    top1: float
    top5: float


class Linear(Evaluation):
    """Linear heads; returns `top1` (and `top5` from 5 classes on) of the chosen head, and which it is."""

    def __init__(self, config: LinearConfig) -> None:
        """An evaluation by `config`."""
        self.config = config
        self.blocks = max(config.blocks)

    @property
    def protocol(self) -> str:
        """The protocol in words."""
        c = self.config
        heads = len(c.blocks) * 2 * len(c.learning_rates)
        chosen = (
            f"chosen on {c.holdout:.0%} of the training images, which no head learned from"
            if c.choose == "held_back"
            else "CHOSEN ON THE TEST IMAGES, as published: optimistic"
        )
        blocks = "/".join(map(str, c.blocks))
        return (
            f"{heads} linear heads on frozen {CROPS[c.crops]} (last {blocks} blocks, with and without mean patch, "
            f"{len(c.learning_rates)} learning rates), SGD momentum {MOMENTUM}, no weight decay, cosine, batch {c.batch}, "
            f"{c.epochs} epochs but at least {c.least_steps} steps; the head is {chosen}"
        )

    def run(self, encoder: "Backbone", labelled: Labelled) -> dict[str, float]:
        """Train the grid on the bank and judge it on the queries. Raises ValueError where no image can be decoded."""
        scored = self.grid(encoder, labelled)
        best = choose(scored, self.config.choose)
        found = {"top1": best.top1} | ({"top5": best.top5} if len(labelled.classes) >= 5 else {})
        if self.config.choose == "held_back":
            found["held_back_top1"] = best.held_back
        return found | {
            "chosen_blocks": float(best.input.blocks),
            "chosen_pooled": float(best.input.pooled),
            "chosen_lr": best.lr,
        }

    def grid(self, encoder: "Backbone", labelled: Labelled) -> list[Scored]:
        """Every head of the grid with its scores, in the order of the grid, on every rank."""
        config, device = self.config, next(encoder.parameters()).device
        images = labelled.bank.at_most(config.bank, seed=labelled.seed)
        queries = labelled.queries.at_most(config.queries, seed=labelled.seed)
        bank = extract_blocks(encoder, images, labelled.normalisation, device=device, blocks=self.blocks)
        judged = extract_blocks(encoder, queries, labelled.normalisation, device=device, blocks=self.blocks)
        share = config.holdout if config.choose == "held_back" else 0.0
        learn, held_back = held_back_rows(len(bank.labels), share=share, seed=labelled.seed)
        batch = min(config.batch, len(learn))
        steps = max(config.epochs * len(learn) // batch, config.least_steps)
        rows = list(batches(learn, batch=batch, steps=steps, seed=labelled.seed))
        if config.crops == "centre":
            seen = (bank.part(each) for each in rows)
        else:
            seen = batches_of_crops(
                encoder,
                images,
                bank,
                rows,
                epochs=[step // (len(learn) // batch) for step in range(steps)],
                blocks=self.blocks,
                normalise=labelled.normalisation,
                seed=labelled.seed,
            )
        inputs = [Input(min(b, bank.cls.shape[1]), p) for b in config.blocks for p in (False, True)]
        kinds, every = list(dict.fromkeys(inputs)), np.arange(len(judged.labels))
        mine = kinds[collectives.rank() :: collectives.world_size()]  # whole inputs: no rank sums in another order
        trained = self._trained(mine, seen, steps=steps, classes=len(labelled.classes), seed=labelled.seed)
        scored = []
        for kind in kinds:
            table = torch.zeros(len(config.learning_rates), 3, dtype=torch.float64, device=device)
            if (heads := trained.get(kind)) is not None:
                table[:, 0] = heads.right(bank, kind, held_back, top=1)
                table[:, 1], table[:, 2] = (heads.right(judged, kind, every, top=top) for top in (1, 5))
            found = collectives.all_sum(table).tolist()
            scored += [Scored(kind, lr, *row) for lr, row in zip(config.learning_rates, found, strict=True)]
        return scored

    def _trained(
        self, kinds: Sequence[Input], seen: Iterable[Features], *, steps: int, classes: int, seed: int
    ) -> "dict[Input, Heads]":
        """Heads of each kind of input, all from the same batches."""
        every: dict[Input, Heads] = {}
        for step, batch in enumerate(seen):  # to its end on a rank without inputs too, for the others wait for it
            for kind in kinds:
                x = batch.joined(blocks=kind.blocks, pooled=kind.pooled)
                if kind not in every:
                    rates = [lr * len(x) / 256 for lr in self.config.learning_rates]
                    every[kind] = Heads(x.shape[1], classes, rates, device=x.device, seed=seed)
                every[kind].step(x, batch.labels, decay=0.5 * (1 + math.cos(math.pi * step / steps)))
        return every


class Heads:
    """Linear classifiers of one input that differ in their learning rate alone."""

    def __init__(self, features: int, classes: int, rates: Sequence[float], *, device: torch.device, seed: int) -> None:
        """Weights from N(0, 0.01²), the same for all rates, by (seed, "linear", features); biases 0."""
        drawn = keyed.generator(seed, "linear", features).standard_normal((features, classes), dtype=np.float32)
        weight = torch.from_numpy(drawn).to(device) * INITIAL_STD
        self.weight: Float[Tensor, "H F C"] = weight.repeat(len(rates), 1, 1)
        self.bias: Float[Tensor, "H 1 C"] = torch.zeros(len(rates), 1, classes, device=device)
        self._rates = torch.tensor(rates, device=device).view(-1, 1, 1)
        self._momenta = torch.zeros_like(self.weight), torch.zeros_like(self.bias)

    def logits(self, x: Float[Tensor, "B F"]) -> Float[Tensor, "H B C"]:
        """Scores of every class by every head."""
        return torch.baddbmm(self.bias, x.expand(len(self.weight), -1, -1), self.weight)

    def step(self, x: Float[Tensor, "B F"], labels: Int[Tensor, " B"], *, decay: float) -> None:
        """One step of SGD with momentum on the mean cross-entropy, at `decay` times the learning rates."""
        error = self.logits(x).softmax(dim=2)
        error[:, torch.arange(len(x), device=x.device), labels] -= 1
        error /= len(x)
        gradients = torch.matmul(x.T, error), error.sum(dim=1, keepdim=True)
        for parameter, momentum, gradient in zip((self.weight, self.bias), self._momenta, gradients, strict=True):
            momentum.mul_(MOMENTUM).add_(gradient)
            parameter.sub_(momentum * self._rates * decay)

    def right(self, features: Features, kind: Input, rows: np.ndarray, *, top: int) -> Float[Tensor, " H"]:
        """Share of `rows` whose label is among the `top` highest scores, by head; NaN for no rows."""
        x = features.joined(blocks=kind.blocks, pooled=kind.pooled)
        total = torch.zeros(len(self.weight), dtype=torch.float64, device=x.device)
        for part in np.array_split(rows, max(1, math.ceil(len(rows) / 4096))):
            index = torch.from_numpy(part).to(x.device)
            scores = self.logits(x[index])
            own = scores.gather(2, features.labels[index].view(1, -1, 1).expand(len(scores), -1, 1))
            # A head that has diverged says NaN, which is above nothing: it must not count as right.
            total += ((scores > own).sum(2) < top).logical_and(own[..., 0].isfinite()).sum(1)
        return total / len(rows) if len(rows) else total + math.nan


def batches(rows: Int[np.ndarray, " N"], *, batch: int, steps: int, seed: int) -> Iterator[Int[np.ndarray, " B"]]:
    """`steps` batches of `rows`, each epoch in an order of its own by (seed, "linear", epoch); a rest is left out."""
    each = len(rows) // batch
    for epoch in range(math.ceil(steps / each)):
        order = rows[keyed.generator(seed, "linear", epoch).permutation(len(rows))]
        for place in range(min(each, steps - epoch * each)):
            yield order[place * batch : (place + 1) * batch]


def held_back_rows(count: int, *, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to learn from and rows to choose on, by (seed, "held-back"): two sets, at least one row each unless `share` is 0.

    Raises ValueError for fewer than two rows of which some shall be held back.
    """
    if not share:
        return np.arange(count), np.empty(0, dtype=np.int64)
    if count < 2:
        raise ValueError(f"{count} training images: nothing can be held back to choose on")
    order = keyed.generator(seed, "held-back").permutation(count)
    cut = min(max(1, round(share * count)), count - 1)
    return np.sort(order[cut:]), np.sort(order[:cut])


def choose(scored: Sequence[Scored], rule: str) -> Scored:
    """The best head on what was held back, or by the published rule on the test images; of equals the first of the grid."""
    return max(scored, key=lambda head: head.held_back if rule == "held_back" else head.top1)
