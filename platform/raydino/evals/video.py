"""Video object segmentation by carrying the first frame's mask along, without training.

DINO, section 4.2.2 and eval_video_segmentation.py: patch tokens of the last block, L2-normalised; each patch of a frame takes the
labels of the 5 most similar among the first frame's and the 7 frames' before, no further than 12 patches away, weighted with
exp(cosine / 0.1); the soft masks are enlarged by the patch size, each channel stretched to 0..1, and the largest wins. J is the
intersection over union, F the precision and recall of the contour (Perazzi et al. 2016), means over the frames but the first
and the last, as DAVIS 2017 counts.
Letters: T frames, h w patches, H W pixels, D width, M labels (the background among them), S frames to take from.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.ndimage import binary_dilation
from torch import Tensor
from torch.nn import functional as F

from raydino.evals.config import VideoConfig
from raydino.evals.dense import decode_map, grids, lacking, rows_with, whole_image
from raydino.evals.evaluation import Evaluation, Labelled
from raydino.nn.layers import patch_size

if TYPE_CHECKING:
    from raydino.nn.backbone import Backbone

CONTOUR_TOLERANCE = 0.008  # of the image's diagonal: how far a contour may be off


class Video(Evaluation):
    """Mask propagation through one sequence; returns `j`, `f` and `jf`, means over objects."""

    def __init__(self, config: VideoConfig) -> None:
        """An evaluation by `config`."""
        self.config = config

    @property
    def protocol(self) -> str:
        """The protocol in words."""
        c = self.config
        return (
            f"the first frame's mask carried along by patch similarity, shorter side {c.side}, {c.queue} frames before, radius "
            f"{c.radius} patches, {c.top} neighbours, temperature {c.temperature:g}; J (IoU) and F (contour within "
            f"{CONTOUR_TOLERANCE:g} of the diagonal), mean over frames but the first and last, and over objects"
        )

    def unfit(self, labelled: Labelled) -> str | None:
        """It needs the masks of frames in order."""
        return lacking(labelled, self.config.column, self.config.order, train=False)

    def images(self, labelled: Labelled) -> str:
        """The number of frames."""
        return f"{0 if labelled.test is None else len(labelled.test)} frames of one sequence"

    def run(self, encoder: "Backbone", labelled: Labelled) -> dict[str, float]:
        """Carry the mask along and compare. Raises ValueError where the first frame shows no object, or a frame is broken."""
        assert labelled.test is not None, "see unfit"
        config, frames = self.config, []
        names = [config.column, config.order]
        for row, values in rows_with(labelled.test, names, np.arange(len(labelled.test))):
            image = whole_image(
                values["bytes"], side=config.side, patch=patch_size(encoder), channels=labelled.bank.shape[0]
            )
            if image is None:
                raise ValueError(f"row {row}: a frame that cannot be decoded; the sequence has a gap")
            frames.append((values[config.order], image, decode_map(values[config.column])))
        frames.sort(key=lambda frame: frame[0])
        truth = np.stack([frame[2] for frame in frames])
        objects = [number for number in np.unique(truth[0]).tolist() if number]
        if not objects or len(frames) < 3:
            raise ValueError(f"{len(frames)} frames, {len(objects)} objects on the first: there is nothing to follow")
        found = grids(encoder, [frame[1] for frame in frames], blocks=(-1,), normalise=labelled.normalisation)
        features = torch.stack([grid for grid in found if grid is not None])
        guess = self.carried(features, truth[0], [0, *objects])
        inner = slice(1, len(frames) - 1)
        j = float(np.mean([jaccard(guess[inner] == n, truth[inner] == n) for n in objects]))
        f = float(np.mean([contour(guess[inner] == n, truth[inner] == n) for n in objects]))
        return {"j": j, "f": f, "jf": (j + f) / 2}

    def carried(
        self, features: Float[Tensor, "T h w D"], first: Int[np.ndarray, "H W"], numbers: list[int]
    ) -> Int[np.ndarray, "T H W"]:
        """The label of every pixel of every frame, of `numbers`, from the labels of the first frame."""
        config = self.config
        frames, h, w = features.shape[:3]
        tokens = F.normalize(features.flatten(1, 2), dim=2)  # T P D
        # Nearest, as published: the mask of a patch is that of one pixel of it.
        rows, columns = (np.arange(n) * size // n for n, size in zip((h, w), first.shape, strict=True))
        small = torch.from_numpy(first[np.ix_(rows, columns)].astype(np.int64)).flatten()
        soft = [torch.stack([small == number for number in numbers], dim=1).float().to(features.device)]  # P M
        near = within(h, w, radius=config.radius).to(features.device)
        found = [first]
        for frame in range(1, frames):
            sources = [0, *range(max(1, frame - config.queue), frame)]
            labels = propagate(
                tokens[frame],
                tokens[sources],
                torch.stack([soft[source] for source in sources]),
                near,
                top=config.top,
                temperature=config.temperature,
            )
            soft.append(labels)
            found.append(np.asarray(numbers)[hardened(labels.view(h, w, -1), (first.shape[0], first.shape[1]))])
        return np.stack(found)


def propagate(
    target: Float[Tensor, "P D"],
    sources: Float[Tensor, "S P D"],
    labels: Float[Tensor, "S P M"],
    near: Bool[Tensor, "P P"],
    *,
    top: int,
    temperature: float,
) -> Float[Tensor, "P M"]:
    """Soft labels of the target's patches: the mean of those of the `top` most similar patches of all sources that are near.

    The slow version: for each patch of the target, over all sources and all patches near it, weight = exp(cosine / T); keep the
    `top` largest; divide by their sum; add up weight times label.
    """
    scores = torch.einsum("pd,sqd->psq", target, sources).masked_fill(~near[:, None], -torch.inf).flatten(1)
    value, index = scores.topk(min(top, scores.shape[1]), dim=1)
    weight = (value / temperature).softmax(dim=1)
    return (weight[..., None] * labels.flatten(0, 1)[index]).sum(1)


def within(h: int, w: int, *, radius: int) -> Bool[Tensor, "P P"]:
    """Whether two patches of a grid are at most `radius` rows and columns apart."""
    place = torch.arange(h * w)
    rows, columns = place // w, place % w
    return ((rows[:, None] - rows).abs() <= radius) & ((columns[:, None] - columns).abs() <= radius)


def hardened(soft: Float[Tensor, "h w M"], size: tuple[int, int]) -> Int[np.ndarray, "H W"]:
    """Which channel is largest at every pixel, after bilinear enlargement and stretching each channel to 0..1, as published."""
    large = F.interpolate(soft.permute(2, 0, 1)[None], size=size, mode="bilinear", align_corners=False)[0]
    low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
    stretched = torch.where(high > 0, (large - low) / (high - low).clamp_min(1e-12), large)
    return stretched.argmax(0).cpu().numpy()


def jaccard(guess: Bool[np.ndarray, "T H W"], truth: Bool[np.ndarray, "T H W"]) -> float:
    """Mean over frames of intersection over union; 1 for a frame where both are empty."""
    inside, union = (guess & truth).sum((1, 2)), (guess | truth).sum((1, 2))
    return float(np.where(union > 0, inside / np.maximum(union, 1), 1.0).mean())


def contour(guess: Bool[np.ndarray, "T H W"], truth: Bool[np.ndarray, "T H W"]) -> float:
    """Mean over frames of the F-measure of contours, which match within CONTOUR_TOLERANCE of the diagonal."""
    reach = int(np.ceil(CONTOUR_TOLERANCE * np.hypot(*truth.shape[1:])))
    y, x = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    disk, found = x**2 + y**2 <= reach**2, []
    for one, other in zip(guess, truth, strict=True):
        edge, edge_truth = edges(one), edges(other)
        if not edge.any() or not edge_truth.any():
            found.append(float(edge.any() == edge_truth.any()))
            continue
        precision = (edge & binary_dilation(edge_truth, disk)).sum() / edge.sum()
        recall = (edge_truth & binary_dilation(edge, disk)).sum() / edge_truth.sum()
        found.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    return float(np.mean(found))


def edges(mask: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """Pixels that differ from the one to the right, below or right below: the benchmark's contour, one pixel wide."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    right, below, both = padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    return (mask ^ right) | (mask ^ below) | (mask ^ both)
