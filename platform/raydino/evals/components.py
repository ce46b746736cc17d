"""Principal components of features, and patch features as colours by them (DINOv2, figure 1).

Letters: N rows, D width, K components, h w patches of a grid, P = h·w.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from raydino.evals.discovery import foregrounds


def principal_components(features: Float[Tensor, "N D"], count: int) -> Float[Tensor, "N K"]:
    """Centred rows on their first `count` principal axes, float64; zeros where features have fewer.

    The sign of an axis, which is arbitrary, is the one with the largest loading positive, so that pictures do not flip
    between evaluations.
    """
    centred = features.double() - features.double().mean(0)
    if len(centred) > 2 * centred.shape[1]:  # a fifth of the time of an SVD of all patches
        axes = torch.linalg.eigh(centred.T @ centred)[1].T.flip(0)
    else:
        axes = torch.linalg.svd(centred, full_matrices=False)[2]
    axes = axes[:count]
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    return torch.nn.functional.pad(centred @ axes.T, (0, count - len(axes)))


def principal_colours(features: Float[Tensor, "N D"]) -> Float[np.ndarray, "N 3"]:
    """The first three principal components as red, green and blue in 0..1, between their 2nd and 98th percentile."""
    parts = principal_components(features, 3).cpu().numpy()
    low, high = np.percentile(parts, [2, 98], axis=0)
    return np.clip((parts - low) / np.maximum(high - low, 1e-9), 0, 1)


def patch_colours(grids: Sequence[Float[Tensor, "h w D"]]) -> list[Float[np.ndarray, "P 3"]]:
    """Patches of several images as colours of one basis: that of all patches together, so a colour means the same everywhere."""
    return _apart(principal_colours(torch.cat([grid.flatten(0, 1) for grid in grids])), grids)


def foreground_colours(grids: Sequence[Float[Tensor, "h w D"]]) -> list[Float[np.ndarray, "P 3"]]:
    """DINOv2's two steps: patches on the background's side of the first component are black, the others have colours of a
    basis of their own.

    The side is that of `discovery.foregrounds`. All is black where features do not differ.
    """
    front = torch.from_numpy(np.concatenate([mask.ravel() for mask in foregrounds(list(grids))]))
    rows = torch.cat([grid.flatten(0, 1) for grid in grids]).cpu()
    colours = np.zeros((len(rows), 3))
    if front.any():
        colours[front.numpy()] = 0.1 + 0.9 * principal_colours(rows[front])  # never as black as the background
    return _apart(colours, grids)


def _apart(colours: Float[np.ndarray, "N 3"], grids: Sequence[Tensor]) -> list[Float[np.ndarray, "P 3"]]:
    ends = np.cumsum([grid.shape[0] * grid.shape[1] for grid in grids])
    return np.split(colours, ends[:-1])
