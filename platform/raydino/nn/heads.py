"""The projection head of DINO, iBOT and DINOv2: MLP, L2-normalised bottleneck, weight-normed prototypes."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from raydino.nn.config import HeadConfig


class Prototypes(nn.Module):
    """Bias-free linear layer with weight norm: row k is `gain[k] * direction[k] / |direction[k]|` (Salimans & Kingma 2016)."""

    def __init__(self, width: int, prototypes: int, *, train_gain: bool) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.empty(prototypes, width))
        nn.init.kaiming_uniform_(
            self.direction, a=math.sqrt(5)
        )  # torch's default for linear layers, which DINO keeps here
        self.gain = nn.Parameter(torch.ones(prototypes, 1), requires_grad=train_gain)
        self._train_gain = train_gain

    def forward(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N K"]:
        """Scores of every row for every prototype."""
        rows = F.normalize(self.direction, dim=-1)
        if self._train_gain:  # else all ones, and a pass over K·D numbers is saved
            rows = self.gain * rows
        return F.linear(x, rows)


class Head(nn.Module):
    """`layers`-deep MLP with GELU, L2 normalisation, prototypes (DINO, section 3.1 and appendix C)."""

    def __init__(self, config: HeadConfig, width: int) -> None:
        super().__init__()
        sizes = [width, *[config.hidden] * (config.layers - 1), config.bottleneck]
        layers: list[nn.Module] = []
        for i, (fan_in, fan_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
            linear = nn.Linear(fan_in, fan_out)
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
            layers += [nn.GELU(), linear] if i else [linear]
        self.mlp = nn.Sequential(*layers)
        self.normalise = config.normalise
        self.prototypes = Prototypes(config.bottleneck, config.prototypes, train_gain=config.train_gain)

    def forward(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "N K"]:
        """Prototype scores (logits before any temperature)."""
        bottleneck = self.mlp(features)
        if self.normalise:  # 1e-6 rather than torch's 1e-12, which half precision would flush to zero
            bottleneck = F.normalize(bottleneck, dim=-1, eps=1e-6)
        return self.prototypes(bottleneck)
