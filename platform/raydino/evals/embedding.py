"""A set of images as a picture: its features on a plane, and the prototypes that the teacher assigns its images to.

The plane is a picture and no measurement: t-SNE keeps neighbours together, but sizes of groups and distances between them mean
nothing (van der Maaten & Hinton 2008), and principal components show only the share of the variance that they hold.
Letters: N images, D width, K prototypes.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import matplotlib as mpl
import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from raydino.evals.components import principal_components

if TYPE_CHECKING:
    from matplotlib.figure import Figure

How = Literal["tsne", "pca"]
FEWEST = 3
"""Images that a map needs: two always lie on a line."""
_BEFORE = 50  # principal components that t-SNE starts from, as its authors do
_PERPLEXITY = 30.0
_NAMED = 20  # classes that colours can tell apart


def plane(features: Float[Tensor, "N D"], how: How, *, seed: int) -> Float[np.ndarray, "N 2"]:
    """L2-normalised features on a plane: their first two principal components, or t-SNE of the first 50.

    Raises ValueError for fewer than FEWEST images.
    """
    if len(features) < FEWEST:
        raise ValueError(f"map of {len(features)} images; give at least {FEWEST}")
    unit = F.normalize(features, dim=1).cpu()
    if how == "pca":
        return principal_components(unit, 2).numpy()
    from sklearn.manifold import TSNE  # a second to import

    start = principal_components(unit, min(_BEFORE, unit.shape[1], len(unit))).numpy()
    perplexity = min(_PERPLEXITY, (len(unit) - 1) / 3)
    return TSNE(2, perplexity=perplexity, init="random", random_state=seed).fit_transform(start)


def embedding_map(
    places: Float[np.ndarray, "N 2"], labels: Int[np.ndarray, " N"], classes: Sequence[str], how: How
) -> Image.Image:
    """A dot an image, coloured by its label (-1: grey); a legend where there are few enough classes to tell apart."""
    there = np.unique(labels[labels >= 0])
    named = 0 < len(there) <= _NAMED
    figure = _figure(9.0 if named else 7.0, 6.0)
    axes = figure.subplots()
    if (labels < 0).any():
        axes.scatter(*places[labels < 0].T, s=9, color="#9a9a9a", linewidths=0, label="no label" if named else None)
    for i, label in enumerate(there):
        colour = mpl.colormaps["tab20"](i) if named else mpl.colormaps["hsv"](i / len(there))
        name = classes[label] if label < len(classes) else str(label)
        axes.scatter(*places[labels == label].T, s=9, color=colour, linewidths=0, label=name if named else None)
    axes.set(xticks=[], yticks=[])
    names = {"tsne": "t-SNE", "pca": "first two principal components"}
    many = f"; {len(there)} classes, too many for a legend" if len(there) > _NAMED else ""
    axes.set_title(f"cls features of {len(places):,} images, {names[how]}{many}", fontsize=10, loc="left")
    if named:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8, markerscale=2)
    return _image(figure)


def assignments(targets: Float[Tensor, "N K"]) -> Int[Tensor, " K"]:
    """Images per prototype, each counted for the one with most of the teacher's target."""
    return torch.bincount(targets.argmax(dim=1), minlength=targets.shape[1])


def used(targets: Float[Tensor, "N K"]) -> float:
    """Perplexity of the mean target, as `teacher/prototypes_used` counts it: 1 if all images go to one prototype, at most K."""
    return float(torch.special.entr(targets.mean(dim=0)).sum().exp())


def usage_picture(targets: Float[Tensor, "N K"]) -> Image.Image:
    """Images per prototype, most used first, and the line of even use."""
    counts = assignments(targets).sort(descending=True).values.cpu().numpy()
    images, prototypes, taken = len(targets), len(counts), int((counts > 0).sum())
    figure = _figure(7.0, 4.0)
    axes = figure.subplots()
    axes.fill_between(np.arange(1, prototypes + 1), counts, step="mid", color="#3b6fb6")
    axes.axhline(images / prototypes, color="#b2182b", linewidth=1, label=f"even use, {images / prototypes:.3g} images")
    axes.set(xlabel="prototype, most used first", ylabel="images", xlim=(0.5, prototypes + 0.5))
    axes.set_title(
        f"{images:,} images: {taken:,} of {prototypes:,} prototypes are an image's first, perplexity {used(targets):.1f}",
        fontsize=10,
        loc="left",
    )
    axes.legend(frameon=False, fontsize=8)
    return _image(figure)


def _figure(width: float, height: float) -> "Figure":
    """Inches. No pyplot: that would pick a display."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=110)


def _image(figure: "Figure") -> Image.Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
