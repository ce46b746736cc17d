"""Semantic segmentation from frozen patch tokens: a linear head on the last block or the last four, and k-NN without training.

DINOv2, section 7.4: batch norm and a 1 × 1 convolution on patch tokens, logits enlarged bilinearly, mean IoU over classes.
What differs from the paper's ADE20k runs: whole images instead of random crops and sliding windows, encoded once and without
augmentation, so that the encoder is not run for every step of the head; and labels are learned from at 4 points per side of a
patch instead of at every pixel. Scores are always those of all pixels of the maps.
Letters: h w patches of a grid, H W pixels, D width, C classes.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from raydino import collectives, keyed
from raydino.evals.config import SegmentationConfig
from raydino.evals.dense import (
    check_room,
    chosen,
    decode_map,
    described,
    enlarged,
    grids,
    in_parts,
    lacking,
    rows_with,
    whole_image,
)
from raydino.evals.evaluation import Evaluation, Labelled
from raydino.nn.layers import last_blocks, patch_size

if TYPE_CHECKING:
    from raydino.nn.backbone import Backbone
    from raydino.shards.reader import Collection

POINTS = 4  # at which labels are learned from, per side of a patch
WARMUP = 0.1  # share of the steps


@dataclass(frozen=True)
class Scene:
    """An image's patch tokens of the last blocks, side by side, and its map at full size, -1 where it is not to be judged."""

    tokens: Float[Tensor, "h w F"]
    labels: Int[np.ndarray, "H W"]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.tokens.shape[0], self.tokens.shape[1]


class Segmentation(Evaluation):
    """Linear and k-NN segmentation; returns `miou` and `accuracy` (1 layer), `miou_4layers`, `miou_knn`."""

    def __init__(self, config: SegmentationConfig) -> None:
        """An evaluation by `config`."""
        self.config = config

    @property
    def protocol(self) -> str:
        """The protocol in words."""
        c = self.config
        return (
            f"batch norm and a linear head on frozen patch tokens of the last block (miou) and the last 4 (miou_4layers), AdamW "
            f"lr {c.lr:g}, weight decay {c.weight_decay:g}, {c.steps} steps of {c.batch} whole images without augmentation; "
            f"{c.k}-NN among {c.knn_bank:,} training patches, temperature {c.temperature:g} (miou_knn); IoU over "
            f"all pixels but those of classes {list(c.ignore)}, mean over the classes in maps or predictions"
        )

    def unfit(self, labelled: Labelled) -> str | None:
        """It needs maps to learn from and maps to be judged by."""
        return lacking(labelled, self.config.column, train=True)

    def images(self, labelled: Labelled) -> str:
        """The number of images, and their size."""
        return described(labelled, most=self.config.train_images, side=self.config.side)

    def run(self, encoder: "Backbone", labelled: Labelled) -> dict[str, float]:
        """Learn from the training split's maps, judge on the other's. Raises ValueError where maps do not fit."""
        assert labelled.train is not None and labelled.test is not None, "see unfit"
        rows = chosen(len(labelled.train), self.config.train_images, seed=labelled.seed)
        train = self.scenes(encoder, labelled, labelled.train, rows, kept=True)
        classes = 1 + max((int(scene.labels.max()) for scene in train), default=0)
        if classes < 2:
            raise ValueError(
                f"of {len(rows)} training maps none can be used, or all have one class; nothing can be told apart"
            )
        deep, width = train[0].tokens.shape[2], train[0].tokens.shape[2] // len(last_blocks(encoder, 4))
        one, four = (self.train_head(train, used=used, classes=classes, seed=labelled.seed) for used in (width, deep))
        bank, labels = self.patch_bank(train, width, classes, seed=labelled.seed)
        ways: dict[str, Callable[[Scene], Tensor]] = {
            "miou": lambda scene: one(scene.tokens[..., -width:]),
            "miou_4layers": lambda scene: four(scene.tokens),
            "miou_knn": lambda scene: self.nearest(bank, labels, scene.tokens[..., -width:]),
        }
        tables = {name: np.zeros((classes, classes)) for name in ways}
        for part in in_parts(chosen(len(labelled.test), self.config.test_images, seed=labelled.seed)):
            scenes = self.scenes(encoder, labelled, labelled.test, part)
            size = 1 + max(
                (int(scene.labels.max()) for scene in scenes), default=0
            )  # a class may be in these maps alone
            for name, way in ways.items():
                tables[name] = added(tables[name], self._judge(scenes, max(classes, size), way))
        if not tables["miou"].any():
            raise ValueError("no image to be judged can be decoded and has a pixel that counts")
        found = {name: miou(table) for name, table in tables.items()}
        return found | {"accuracy": float(tables["miou"].diagonal().sum() / tables["miou"].sum())}

    def scenes(
        self, encoder: "Backbone", labelled: Labelled, part: "Collection", rows: np.ndarray, *, kept: bool = False
    ) -> list[Scene]:
        """The decodable images among `rows` of `part`. Raises ValueError for a broken map, or if they are to be `kept` and there
        is no room for them.
        """
        config, patch, blocks = self.config, patch_size(encoder), last_blocks(encoder, 4)
        images, maps = [], []
        for row, values in rows_with(part, [config.column], rows):
            images.append(whole_image(values["bytes"], side=config.side, patch=patch, channels=labelled.bank.shape[0]))
            try:
                found = decode_map(values[config.column])
            except ValueError as error:
                raise ValueError(f"row {row}, column {config.column!r}: {error}") from error
            maps.append(np.where(np.isin(found, config.ignore), -1, found))
        if kept:
            check_room(encoder, images, blocks=blocks, normalise=labelled.normalisation)
        tokens = grids(encoder, images, blocks=blocks, normalise=labelled.normalisation)
        return [Scene(grid, labels) for grid, labels in zip(tokens, maps, strict=True) if grid is not None]

    def train_head(self, scenes: list[Scene], *, used: int, classes: int, seed: int) -> nn.Module:
        """A head on a token's last `used` features, [h, w, used] to logits [h, w, C], in eval mode; on every rank the same."""
        config, device = self.config, scenes[0].tokens.device
        head = seeded_head(used, classes, seed=seed, device=device)
        optimizer = torch.optim.AdamW(head.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        targets = [torch.from_numpy(sampled(s.labels, s.grid)).long().to(device) for s in scenes]
        for step, rows in enumerate(orders(len(scenes), batch=config.batch, steps=config.steps, seed=seed)):
            for group in optimizer.param_groups:
                group["lr"] = config.lr * warm_cosine(step, config.steps)
            loss = dense_loss(head, [scenes[row].tokens[..., -used:] for row in rows], [targets[row] for row in rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return head.eval()

    def patch_bank(
        self, scenes: list[Scene], width: int, classes: int, *, seed: int
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N C"]]:
        """L2-normalised patches chosen by key, and the shares of the classes on each; patches without a label are left out."""
        device = scenes[0].tokens.device
        tokens = torch.cat([scene.tokens[..., -width:].flatten(0, 1) for scene in scenes])
        shares = np.concatenate([class_shares(s.labels, s.grid, classes) for s in scenes])
        rows = np.flatnonzero(shares.sum(1) > 0)
        rows = np.sort(keyed.generator(seed, "patches").permutation(rows)[: self.config.knn_bank])
        picked = torch.from_numpy(rows).to(device)
        return F.normalize(tokens[picked], dim=1), torch.from_numpy(shares[rows]).float().to(device)

    def nearest(
        self, bank: Float[Tensor, "N D"], labels: Float[Tensor, "N C"], tokens: Float[Tensor, "h w D"]
    ) -> Float[Tensor, "h w C"]:
        """Each patch's mean of the class shares of its k nearest, weighted with exp(cosine / T)."""
        cosine = F.normalize(tokens.flatten(0, 1), dim=1) @ bank.T
        value, index = cosine.topk(min(self.config.k, len(bank)), dim=1)
        weight = (value / self.config.temperature).softmax(dim=1)
        return (weight[..., None] * labels[index]).sum(1).view(*tokens.shape[:2], -1)

    def _judge(self, scenes: list[Scene], classes: int, logits: Callable[[Scene], Tensor]) -> np.ndarray:
        """The confusion of all scenes, which the ranks share out."""
        if not scenes:
            return np.zeros((classes, classes))
        table = torch.zeros(classes, classes, dtype=torch.float64, device=scenes[0].tokens.device)
        with torch.inference_mode():
            for scene in scenes[collectives.rank() :: collectives.world_size()]:
                guess = enlarged(logits(scene), scene.labels.shape).argmax(-1).cpu().numpy()
                table += torch.from_numpy(confusion(scene.labels, guess, classes)).to(table)
        return collectives.all_sum(table).cpu().numpy()


def confusion(truth: Int[np.ndarray, "H W"], guess: Int[np.ndarray, "H W"], classes: int) -> Int[np.ndarray, "C C"]:
    """Pixels by true class (rows) and predicted class (columns); those with a truth of -1 are left out."""
    judged = truth >= 0
    pairs = classes * truth[judged].astype(np.int64) + guess[judged]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def added(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The sum of two confusions, of which one may know more classes."""
    size = max(len(one), len(other))
    return np.pad(one, (0, size - len(one))) + np.pad(other, (0, size - len(other)))


def miou(table: np.ndarray) -> float:
    """Mean over classes, of those in truth or prediction, of intersection over union."""
    inside = table.diagonal()
    union = table.sum(0) + table.sum(1) - inside
    return float((inside[union > 0] / union[union > 0]).mean())


def sampled(labels: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """A map [H, W] at POINTS points per side of a patch, nearest."""
    rows, columns = (
        ((np.arange(POINTS * count) + 0.5) * length / (POINTS * count)).astype(int)
        for count, length in zip(grid, labels.shape, strict=True)
    )
    return labels[np.ix_(rows, columns)]


def class_shares(labels: Int[np.ndarray, "H W"], grid: tuple[int, int], classes: int) -> Float[np.ndarray, "P C"]:
    """Share of each class among a patch's pixels, of all pixels of the patch."""
    rows, columns = (
        np.minimum(np.arange(length) * count // length, count - 1)
        for count, length in zip(grid, labels.shape, strict=True)
    )
    patch = rows[:, None] * grid[1] + columns
    judged = labels >= 0
    counts = np.bincount(patch[judged] * classes + labels[judged], minlength=grid[0] * grid[1] * classes)
    return counts.reshape(-1, classes) / np.bincount(patch.ravel(), minlength=grid[0] * grid[1])[:, None]


def dense_loss(head: nn.Module, tokens: list[Tensor], targets: list[Tensor]) -> Float[Tensor, ""]:
    """Mean cross-entropy of all points with a label; the batch norm sees the patches of all images together."""
    logits = head(torch.cat([grid.flatten(0, 1) for grid in tokens])).split([grid[..., 0].numel() for grid in tokens])
    parts = [
        F.cross_entropy(
            enlarged(score.view(*grid.shape[:2], -1), (target.shape[0], target.shape[1])).flatten(0, 1),
            target.flatten(),
            ignore_index=-1,
            reduction="sum",
        )
        for score, grid, target in zip(logits, tokens, targets, strict=True)
    ]
    return torch.stack(parts).sum() / sum(int((target >= 0).sum()) for target in targets)


def seeded_head(features: int, outputs: int, *, seed: int, device: torch.device) -> nn.Sequential:
    """Batch norm and a linear layer on the last axis, weights from N(0, 0.01²) by (seed, "head")."""
    norm, linear = TokenNorm(features), nn.Linear(features, outputs)
    drawn = keyed.generator(seed, "head").standard_normal((outputs, features), dtype=np.float32)
    linear.weight.data = torch.from_numpy(drawn) * 0.01
    linear.bias.data.zero_()
    return nn.Sequential(norm, linear).to(device)


class TokenNorm(nn.BatchNorm1d):
    """Batch norm of tokens [..., F], whatever grid they lie on."""

    def forward(self, input: Float[Tensor, "*N F"]) -> Float[Tensor, "*N F"]:
        """Normalise every feature over all tokens."""
        return super().forward(input.reshape(-1, input.shape[-1])).view(input.shape)


def orders(count: int, *, batch: int, steps: int, seed: int) -> Iterator[np.ndarray]:
    """`steps` batches of images, each epoch in an order of its own by (seed, "dense-order", epoch)."""
    batch = min(batch, count)
    each = count // batch
    for step in range(steps):
        order = keyed.generator(seed, "dense-order", step // each).permutation(count)
        yield order[(step % each) * batch : (step % each + 1) * batch]


def warm_cosine(step: int, steps: int) -> float:
    """Linear over the first WARMUP of the steps, then a cosine to 0."""
    warm = max(1, round(WARMUP * steps))
    return (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
