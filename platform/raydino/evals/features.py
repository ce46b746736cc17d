"""Features of a set of images: every rank encodes its share, every rank gets all of them, in the order of the set.

In 32-bit floats and without autocast, since features are compared across runs whose training precision differs. All
ranks make the same number of forward passes, whatever they could decode: an encoder sharded over ranks would wait
forever else. Within `shared_features`, evaluations that look at the same images share one extraction.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from raydino import collectives
from raydino.evals.images import ImageSet
from raydino.nn.backbone import Backbone
from raydino.nn.layers import last_blocks, layers
from raydino.views import Normalisation


@dataclass(frozen=True)
class Features:
    """What an encoder says of the decodable images of a set, in its order: float32, on one device, not L2-normalised.

    N images, L last blocks (the last one last), D width.
    """

    cls: Float[Tensor, "N L D"]
    """The normalised cls tokens of the last L blocks."""
    pooled: Float[Tensor, "N P"]
    """The mean patch of the last block."""
    labels: Int[Tensor, " N"]
    positions: Int[Tensor, " N"]
    """Which images of the set these are."""

    def joined(self, *, blocks: int, pooled: bool) -> Float[Tensor, "N F"]:
        """The input of DINOv2's linear heads: cls tokens of the last `blocks` side by side, then the mean patch."""
        parts = [self.cls[:, -blocks:].flatten(1), *([self.pooled] if pooled else [])]
        return torch.cat(parts, dim=1)

    def part(self, rows: Int[np.ndarray, " M"]) -> "Features":
        """The features in `rows`, in that order."""
        index = torch.from_numpy(rows).to(self.cls.device)
        return Features(self.cls[index], self.pooled[index], self.labels[index], self.positions[index])


@dataclass
class _Shared:
    blocks: int
    kept: list[tuple[nn.Module, ImageSet, Features]] = field(default_factory=list)


_shared: ContextVar[_Shared | None] = ContextVar("shared_features", default=None)


@contextmanager
def shared_features(*, blocks: int = 1) -> Iterator[None]:
    """Within it, an encoder sees a set of images once, however many evaluations ask for features of it or of a part of it.

    `blocks` is the most last blocks that any of them wants. The encoder's weights must not change meanwhile.
    """
    token = _shared.set(_Shared(blocks))
    try:
        yield
    finally:
        _shared.reset(token)


def extract(
    encoder: nn.Module, images: ImageSet, normalise: Normalisation, *, device: torch.device | str, batch: int = 256
) -> tuple[Float[Tensor, "N D"], Int[Tensor, " N"]]:
    """The cls features (float32, on `device`, not L2-normalised) and labels of the decodable images of a set, in its
    order.

    Args:
        encoder: Its output has `cls` [B, D]; train or eval mode of every module is put back afterwards.
        images: The set; rank r of W encodes the images i ≡ r (mod W).
        normalise: Pixels to input.
        device: Where the encoder lies and the features shall.
        batch: Images per forward pass.

    Raises:
        ValueError: If the set is empty or no image of it can be decoded.
    """
    if _shared.get() is not None:
        found = extract_blocks(encoder, images, normalise, device=device, batch=batch)
        return found.cls[:, -1].contiguous(), found.labels
    rows, positions = encoded(encoder, lambda x: encoder(x).cls, images, normalise, device=device, batch=batch)
    return rows, torch.from_numpy(images.labels).to(device)[positions]


def extract_blocks(
    encoder: nn.Module,
    images: ImageSet,
    normalise: Normalisation,
    *,
    device: torch.device | str,
    blocks: int = 1,
    batch: int = 256,
) -> Features:
    """cls tokens of the last `blocks` blocks (all, where there are fewer) and the mean patch; otherwise as `extract`."""
    shared = _shared.get()
    blocks = blocks if shared is None else max(blocks, shared.blocks)
    for network, known, features in shared.kept if shared is not None else ():
        if network is encoder and (places := images.within(known)) is not None and features.cls.shape[1] >= blocks:
            return _part(features, places)
    wanted = last_blocks(encoder, blocks) if isinstance(encoder, Backbone) else (-1,)
    width = 0

    def encode(x: Tensor) -> Tensor:
        nonlocal width
        outputs = layers(encoder, x, wanted)
        width = outputs[-1].cls.shape[1]
        return torch.cat([output.cls for output in outputs] + [outputs[-1].patches.mean(1)], dim=1)

    rows, positions = encoded(encoder, encode, images, normalise, device=device, batch=batch)
    cut = len(wanted) * width
    labels = torch.from_numpy(images.labels).to(device)[positions]
    found = Features(rows[:, :cut].unflatten(1, (len(wanted), width)), rows[:, cut:], labels, positions)
    if shared is not None:
        shared.kept.append((encoder, images, found))
    return found


def _part(features: Features, places: np.ndarray) -> Features:
    """The features of the images at `places` of the set that they are of, renumbered."""
    new = torch.full((int(max(places.max(initial=-1), int(features.positions.max()))) + 1,), -1, dtype=torch.long)
    new[torch.from_numpy(places)] = torch.arange(len(places))
    positions = new.to(features.positions.device)[features.positions]
    rows = positions >= 0
    picked = rows.nonzero()[:, 0][torch.argsort(positions[rows])]
    return Features(features.cls[picked], features.pooled[picked], features.labels[picked], positions[picked])


def encoded(
    encoder: nn.Module,
    encode: Callable[[Float[Tensor, "B C H W"]], Tensor],
    images: ImageSet,
    normalise: Normalisation,
    *,
    device: torch.device | str,
    batch: int = 256,
) -> tuple[Tensor, Int[Tensor, " N"]]:
    """`encode` (which calls `encoder`) of normalised images: float32 rows [N, ...] of the decodable ones, and their positions.

    Rank r of W encodes the images i ≡ r (mod W); all ranks get all rows. Raises ValueError as `extract`.
    """
    rank, world = collectives.rank(), collectives.world_size()
    mine = np.arange(rank, len(images), world)
    passes = math.ceil(math.ceil(len(images) / world) / batch)
    features: list[Tensor] = []
    places: list[np.ndarray] = []
    blank = torch.zeros(1, *images.shape, dtype=torch.uint8)
    with frozen(encoder, device):
        for pixels, good in images.chunks(mine, batch=batch):
            real = len(pixels)
            output = encode(normalise((pixels if real else blank).to(device, non_blocking=True)))
            features.append(output[:real].float())
            places.append(good)
        for _ in range(passes - len(places)):
            features.append(encode(normalise(blank.to(device)))[:0].float())
    if not features:
        raise ValueError("the set of images to encode is empty; check data.split, data.eval_split and the labels")
    found = np.concatenate([np.empty(0, dtype=np.int64), *places])
    all_places = collectives.gather_rows(torch.from_numpy(found).to(device))
    # A tensor made in inference mode refuses autograd for good; a clone outside is an ordinary one.
    all_features = collectives.gather_rows(torch.cat(features).clone())
    if not len(all_places):
        raise ValueError(f"none of {len(images)} images can be decoded; look at the quarantine table of the collection")
    order = torch.argsort(all_places)
    return all_features[order], all_places[order]


@contextmanager
def frozen(encoder: nn.Module, device: torch.device | str) -> Iterator[None]:
    """Eval mode, no gradients, no autocast; the mode of every module is put back."""
    modes = {module: module.training for module in encoder.modules()}
    encoder.eval()
    try:
        with torch.inference_mode(), torch.autocast(torch.device(device).type, enabled=False):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
