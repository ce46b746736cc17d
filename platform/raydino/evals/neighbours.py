"""Nearest neighbours to look at: a query beside the images whose cls features are most like its own.

Cosine of L2-normalised features, as in k-NN classification; of equally near images those first in the bank come first.
Letters: Q queries, N bank, D width, k neighbours.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from raydino.evals.sheets import TILE, Group, as_rgb, captioned, enlargement, scaled, sheet

RIGHT, WRONG = (33, 132, 68), (196, 43, 43)
_TITLE = "Nearest neighbours"


@dataclass(frozen=True)
class Neighbour:
    """An image of the bank and how near it is."""

    image: UInt8[Tensor, "C H W"]
    cosine: float
    label: str
    """Its class; empty where that is not known."""


def nearest(
    queries: Float[Tensor, "Q D"],
    bank: Float[Tensor, "N D"],
    *,
    k: int,
    leave_out: Int[Tensor, " Q"] | None = None,
) -> tuple[Int[Tensor, "Q k"], Float[Tensor, "Q k"]]:
    """Rows of the bank by descending cosine, and the cosines. `leave_out` is a row that is no neighbour of a query, for queries
    that stand in the bank themselves; -1 for none. k is cut to what there is.

    Raises ValueError for a bank without a row to find.
    """
    scores = F.normalize(queries, dim=1) @ F.normalize(bank, dim=1).T
    if leave_out is not None and (inside := leave_out >= 0).any():
        scores[inside.nonzero()[:, 0], leave_out[inside]] = -torch.inf
        k = min(k, len(bank) - 1)
    if min(k, len(bank)) < 1:
        raise ValueError(f"{len(bank)} images to find neighbours in; give at least 2")
    values, rows = scores.sort(dim=1, descending=True, stable=True)
    return rows[:, :k], values[:, :k]


def neighbour_sheet(
    query: UInt8[Tensor, "C H W"], label: str, found: Sequence[Neighbour], *, tile: int = TILE
) -> Image.Image:
    """A query of class `label` (empty where not known) beside its neighbours, nearest first, each with its cosine and class.

    Where both classes are known, a neighbour is in a green frame and called "right", or in a red one and called "wrong".
    """
    factor = enlargement(max(query.shape[-2:]), target=tile)

    def shown(image: Tensor, lines: Sequence[str], frame: tuple[int, int, int] | None = None) -> Image.Image:
        return captioned(scaled(as_rgb(image), factor), lines, frame=frame)

    judged = bool(label) and any(each.label for each in found)
    tiles = []
    for each in found:
        lines, frame = [f"{each.cosine:.3f}", each.label], None
        if label and each.label:
            right = each.label == label
            lines, frame = [*lines, "right" if right else "wrong"], RIGHT if right else WRONG
        elif judged:
            lines.append("")
        tiles.append(shown(each.image, lines, frame))
    note = "Cosine of cls features; 1 is the same direction. Only the order and the gaps mean something, not the level."
    if judged:
        hits = sum(each.label == label for each in found)
        note += f"\n{hits} of {len(found)} are of the query's class."
    groups = [
        Group("query", ("",), ((shown(query, ["", label, *([""] if judged else [])]),),)),
        Group(f"{len(found)} nearest", tuple(str(i + 1) for i in range(len(found))), (tuple(tiles),)),
    ]
    return sheet(_TITLE, note, groups, rows=())
