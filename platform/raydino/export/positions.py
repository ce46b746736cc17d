"""Position embeddings for any grid of patches as two matrix products, for a graph whose sizes are not known when it is written.

The resampling of `nn.backbone` and its weights, written out: torch's bicubic kernels with antialiasing (A = -0.5) and without
(A = -0.75), borders included (aten/src/ATen/native/cpu/UpSampleKernel.cpp). ONNX's Resize is no substitute: with antialiasing
runtimes differ in it, and "offset" has a factor that is not the ratio of the sizes.
Letters: N rows or columns asked for, M those of the embeddings, D width.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from raydino.nn.backbone import OFFSET, Transformer

ANTIALIASED_A, PLAIN_A = -0.5, -0.75
RADIUS = 2.0  # of a bicubic kernel


def positions(backbone: Transformer, rows: int, columns: int) -> Float[Tensor, "1 T D"]:
    """What `backbone` adds to its tokens for a grid of `rows` and `columns`, which may be symbols of a graph."""
    vit, (own_rows, own_columns) = backbone.vit, backbone.vit.patch_embed.grid_size
    prefix = 0 if vit.no_embed_class else 1
    # At their own grid the embeddings are taken as they are, which "offset" would not give; asked inside the graph.
    same = (_number(rows) == own_rows) & (_number(columns) == own_columns)
    weights = antialiased if backbone.resampling == "antialias" else offset
    down = torch.where(same, _identity(rows, own_rows), weights(rows, own_rows))
    across = torch.where(same, _identity(columns, own_columns), weights(columns, own_columns))
    grid = vit.pos_embed[0, prefix:].unflatten(0, (own_rows, own_columns))
    grid = torch.einsum("lk,nkd->nld", across, torch.einsum("nm,mkd->nkd", down, grid))
    return torch.cat([vit.pos_embed[:, :prefix], grid.flatten(0, 1)[None]], dim=1)


def antialiased(size: int, own: int) -> Float[Tensor, "N M"]:
    """Weights of each of `own` places in each of `size`, the exact ratio of sizes, the kernel widened where it shrinks."""
    scale = own / _number(size)
    stretch = scale.clamp(min=1.0)
    centre = scale * (torch.arange(size) + 0.5)[:, None]
    places = torch.arange(own)
    first = (centre - RADIUS * stretch + 0.5).floor().clamp(min=0)
    last = (centre + RADIUS * stretch + 0.5).floor().clamp(max=own)
    weights = _kernel((places - centre + 0.5) / stretch, ANTIALIASED_A) * ((places >= first) & (places < last))
    return weights / weights.sum(dim=1, keepdim=True)


def offset(size: int, own: int) -> Float[Tensor, "N M"]:
    """The same for the factor (size + 0.1) / own; no antialiasing, and the border's entry stands for those beyond it."""
    same = torch.eye(own)
    where = (torch.arange(size) + 0.5) * (own / (_number(size) + OFFSET)) - 0.5
    base = where.floor()
    weights = torch.zeros(size, own)
    for step in (-1, 0, 1, 2):
        tap = (base + step).clamp(0, own - 1).long()
        weights = weights + _kernel(where - base - step, PLAIN_A)[:, None] * same[tap]
    return weights


def _kernel(distance: Tensor, a: float) -> Tensor:
    """Keys' bicubic kernel at a distance in places."""
    x = distance.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return torch.where(x < 1, near, torch.where(x < RADIUS, far, torch.zeros_like(x)))


def _identity(size: int, own: int) -> Float[Tensor, "N M"]:
    return (torch.arange(size)[:, None] == torch.arange(own)).float()


def _number(size: int) -> Tensor:
    """A size as float32 that stays one in a graph, where it may be a symbol."""
    return torch.scalar_tensor(size, dtype=torch.float32)
