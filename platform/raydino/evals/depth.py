"""Depth from frozen patch tokens: a linear classifier of distances, as in DINOv2's lin. 1 and lin. 4.

DINOv2, section 7.4 (after Bhat et al. 2021): each patch token beside the cls token of its block, of the last
block or of four, one linear layer to 256 equal bins of depth, scores made positive and brought to sum 1 ("linear norm"), the
depth their mean, enlarged bilinearly by 4. The loss is the scale-invariant one of logarithms (Eigen et al. 2014). What differs:
whole images encoded once and without augmentation, a batch norm before the layer, no gradient loss; figures are the mean over
images, without the mirrored second pass.
Letters: h w patches of a grid, H W pixels, F features, K bins.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from raydino import collectives
from raydino.evals.config import DepthConfig
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
from raydino.evals.segmentation import orders, sampled, seeded_head, warm_cosine
from raydino.nn.layers import patch_size, spaced_blocks

if TYPE_CHECKING:
    from raydino.nn.backbone import Backbone
    from raydino.shards.reader import Collection

ENLARGED = (
    4  # by which the published head enlarges tokens before its layer; with a linear layer the order does not matter
)
VARIANCE_FOCUS = 0.85  # of the published loss: its square is the variance plus 0.15 times the squared mean


@dataclass(frozen=True)
class View:
    """An image's tokens, of four blocks side by side, and its depth in metres at full size, 0 where it is not known."""

    tokens: Float[Tensor, "h w F"]
    depth: Float[np.ndarray, "H W"]


class Depth(Evaluation):
    """Linear depth; returns `rmse` (metres) and `delta1` for one layer, `rmse_4layers` and `delta1_4layers`."""

    def __init__(self, config: DepthConfig) -> None:
        """An evaluation by `config`."""
        self.config = config

    @property
    def protocol(self) -> str:
        """The protocol in words."""
        c = self.config
        return (
            f"batch norm and a linear layer to {c.bins} equal bins of {c.least:g} to {c.most:g} m on frozen patch and cls tokens "
            f"of the last block, and of four (4layers), scale-invariant loss, AdamW lr {c.lr:g}, "
            f"weight decay {c.weight_decay:g}, {c.steps} steps of {c.batch} whole images without augmentation; RMSE (metres) "
            "and share within 1.25 times, all pixels with a reading, mean over images"
        )

    def unfit(self, labelled: Labelled) -> str | None:
        """It needs depth to learn from and depth to be judged by."""
        return lacking(labelled, self.config.column, train=True)

    def images(self, labelled: Labelled) -> str:
        """The number of images, and their size."""
        return described(labelled, most=self.config.train_images, side=self.config.side)

    def run(self, encoder: "Backbone", labelled: Labelled) -> dict[str, float]:
        """Learn from the training split's depth, judge on the other's. Raises ValueError where there is none."""
        assert labelled.train is not None and labelled.test is not None, "see unfit"
        rows = chosen(len(labelled.train), self.config.train_images, seed=labelled.seed)
        train = self.views(encoder, labelled, labelled.train, rows, kept=True)
        if not train:
            raise ValueError(self._none(len(rows)))
        deep = train[0].tokens.shape[2]
        widths = {"": deep // len(spaced_blocks(encoder)), "_4layers": deep}
        heads = {name: self.train_head(train, used=used, seed=labelled.seed) for name, used in widths.items()}
        sums = torch.zeros(len(heads), 3, dtype=torch.float64, device=train[0].tokens.device)
        rows = chosen(len(labelled.test), self.config.test_images, seed=labelled.seed)
        for part in in_parts(rows):
            views = self.views(encoder, labelled, labelled.test, part)
            for place, (name, head) in enumerate(heads.items()):
                sums[place] += self._judge(
                    views[collectives.rank() :: collectives.world_size()], head, widths[name]
                ).to(sums)
        found: dict[str, float] = {}
        for name, (rmse, delta1, count) in zip(heads, collectives.all_sum(sums).tolist(), strict=True):
            if not count:
                raise ValueError(self._none(len(rows)))
            found |= {f"rmse{name}": rmse / count, f"delta1{name}": delta1 / count}
        return found

    def _judge(self, views: list[View], head: nn.Module, used: int) -> Float[Tensor, "3"]:
        """Sums over the views of RMSE and δ1, and their number."""
        sums = torch.zeros(3, dtype=torch.float64)
        with torch.inference_mode():
            for view in views:
                size = (view.depth.shape[0], view.depth.shape[1])
                guess = enlarged(self.predicted(head, view.tokens[..., -used:])[..., None], size)[..., 0]
                sums += torch.tensor([*errors(guess.cpu().numpy(), view.depth), 1.0], dtype=torch.float64)
        return sums

    def _none(self, count: int) -> str:
        least, most = self.config.least, self.config.most
        return f"none of {count} images can be decoded and has a depth of {least:g} to {most:g} m; check per_metre"

    def views(
        self, encoder: "Backbone", labelled: Labelled, part: "Collection", rows: np.ndarray, *, kept: bool = False
    ) -> list[View]:
        """The decodable images with a reading among `rows` of `part`. Raises ValueError for a broken map, or if they are to be
        `kept` and there is no room for them.
        """
        config, patch, blocks = self.config, patch_size(encoder), spaced_blocks(encoder)
        images, depths = [], []
        for row, values in rows_with(part, [config.column], rows):
            images.append(whole_image(values["bytes"], side=config.side, patch=patch, channels=labelled.bank.shape[0]))
            try:
                depth = decode_map(values[config.column]) / config.per_metre
            except ValueError as error:
                raise ValueError(f"row {row}, column {config.column!r}: {error}") from error
            depths.append(np.where((depth > config.least) & (depth <= config.most), depth, 0).astype(np.float32))
        if kept:
            check_room(encoder, images, blocks=blocks, normalise=labelled.normalisation, cls=True)
        tokens = grids(encoder, images, blocks=blocks, normalise=labelled.normalisation, cls=True)
        return [View(t, d) for t, d in zip(tokens, depths, strict=True) if t is not None and d.any()]

    def train_head(self, views: list[View], *, used: int, seed: int) -> nn.Module:
        """A head on a token's last `used` features, in eval mode; on every rank the same."""
        config, device = self.config, views[0].tokens.device
        head = seeded_head(used, config.bins, seed=seed, device=device)
        optimizer = torch.optim.AdamW(head.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        targets = [torch.from_numpy(_points(v)).to(device) for v in views]
        for step, rows in enumerate(orders(len(views), batch=config.batch, steps=config.steps, seed=seed)):
            for group in optimizer.param_groups:
                group["lr"] = config.lr * warm_cosine(step, config.steps)
            guesses = self._enlarged(head, [views[row].tokens[..., -used:] for row in rows])
            pairs = [
                (g[targets[row] > 0], targets[row][targets[row] > 0]) for g, row in zip(guesses, rows, strict=True)
            ]
            guess, truth = (torch.cat(part) for part in zip(*pairs, strict=True))
            if len(truth):
                optimizer.zero_grad()
                scale_invariant(guess, truth).backward()
                optimizer.step()
        return head.eval()

    def predicted(self, head: nn.Module, tokens: Float[Tensor, "h w F"]) -> Float[Tensor, "a b"]:
        """Metres, at ENLARGED times the grid."""
        return self._enlarged(head, [tokens])[0]

    def _enlarged(self, head: nn.Module, tokens: list[Tensor]) -> list[Tensor]:
        scores = head(torch.cat([grid.flatten(0, 1) for grid in tokens])).split([g[..., 0].numel() for g in tokens])
        found = []
        for score, grid in zip(scores, tokens, strict=True):
            h, w = grid.shape[:2]
            large = enlarged(score.view(h, w, -1), (ENLARGED * h, ENLARGED * w))
            found.append(mean_depth(large, least=self.config.least, most=self.config.most))
        return found


def mean_depth(scores: Float[Tensor, "a b K"], *, least: float, most: float) -> Float[Tensor, "a b"]:
    """The mean over K equal bins (`torch.linspace`, as published), weighted with ReLU(score) + 0.1 brought to sum 1."""
    weights = scores.relu() + 0.1
    bins = torch.linspace(least, most, scores.shape[-1], device=scores.device)
    return (weights * bins).sum(-1) / weights.sum(-1)


def scale_invariant(guess: Float[Tensor, " N"], truth: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    """√(var(g) + 0.15·mean(g)²) of g = log guess - log truth: an error of the scale alone counts little."""
    g = guess.clamp_min(1e-3).log() - truth.log()
    return ((g - g.mean()).square().mean() + (1 - VARIANCE_FOCUS) * g.mean().square()).clamp_min(1e-12).sqrt()


def errors(guess: Float[np.ndarray, "H W"], truth: Float[np.ndarray, "H W"]) -> tuple[float, float]:
    """RMSE (metres) and share of pixels whose ratio to the truth is below 1.25 either way, where there is a truth (> 0)."""
    known: Bool[np.ndarray, "H W"] = truth > 0
    g, t = guess[known].astype(np.float64), truth[known].astype(np.float64)
    return float(np.sqrt(np.mean((g - t) ** 2))), float(np.mean(np.maximum(g / t, t / g) < 1.25))


def _points(view: View) -> Float[np.ndarray, "a b"]:
    return sampled(view.depth, (view.tokens.shape[0], view.tokens.shape[1])).astype(np.float32)
