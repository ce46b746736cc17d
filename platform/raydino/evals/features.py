"""Features of a set of images: every rank encodes its share, every rank gets all of them, in the order of the set.

In 32-bit floats and without autocast, since features are compared across runs whose training precision differs. All
ranks make the same number of forward passes, whatever they could decode: an encoder sharded over ranks would wait
forever else.
"""

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from raydino import collectives
from raydino.evals.evaluation import ImageSet
from raydino.views import Normalisation


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
    rank, world = collectives.rank(), collectives.world_size()
    mine = np.arange(rank, len(images), world)
    passes = math.ceil(math.ceil(len(images) / world) / batch)
    modes = {module: module.training for module in encoder.modules()}
    encoder.eval()
    features: list[Tensor] = []
    places: list[np.ndarray] = []
    blank = torch.zeros(1, *images.shape, dtype=torch.uint8)
    try:
        with torch.inference_mode(), torch.autocast(torch.device(device).type, enabled=False):
            for pixels, good in images.chunks(mine, batch=batch):
                real = len(pixels)
                output = encoder(normalise((pixels if real else blank).to(device, non_blocking=True)))
                features.append(output.cls[:real].float())
                places.append(good)
            for _ in range(passes - len(places)):
                features.append(encoder(normalise(blank.to(device))).cls[:0].float())
    finally:
        for module, mode in modes.items():
            module.training = mode
    if not features:
        raise ValueError("the set of images to encode is empty; check data.split, data.eval_split and the labels")
    found = np.concatenate([np.empty(0, dtype=np.int64), *places])
    all_places = collectives.gather_rows(torch.from_numpy(found).to(device))
    # A tensor made in inference mode refuses autograd for good; a clone outside is an ordinary one.
    all_features = collectives.gather_rows(torch.cat(features).clone())
    if not len(all_places):
        raise ValueError(f"none of {len(images)} images can be decoded; look at the quarantine table of the collection")
    order = torch.argsort(all_places)
    labels = torch.from_numpy(images.labels).to(device)
    return all_features[order], labels[all_places[order]]
