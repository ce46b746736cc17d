"""Features of random resized crops and flips, a batch at a time: what the published linear heads learn from.

DINO and DINOv2 train their heads on crops of 8 to 100 % of the area with flips (DINO, appendix F.2; dinov2/eval/linear.py), so
each step passes the backbone, where centre crops pass it once. Encoded images are kept in memory, because batches are drawn over
the whole set; rank r of W keeps and encodes the images i ≡ r (mod W).
Letters: B images of a batch.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from raydino import collectives
from raydino.data.crops import Cropper
from raydino.data.decode import decode
from raydino.evals.features import Features, frozen
from raydino.evals.images import ImageSet
from raydino.nn.backbone import Backbone
from raydino.nn.layers import last_blocks, layers
from raydino.views import Crops, Normalisation, Views

SCALE = (0.08, 1.0)  # of the area; with the ratio of 3/4 to 4/3 and half of the crops flipped, torchvision's defaults
GROUP = "linear"
FILES_BYTES = 8 << 30  # per process; ImageNet's training split is 138 GB


class RandomCrops:
    """Decodable images of a set, cut by (seed, "crops", epoch, content id)."""

    def __init__(self, images: ImageSet, *, seed: int) -> None:
        """Read the encoded images of this rank. Raises ValueError if they need more than FILES_BYTES."""
        channels, height, width = images.shape
        crops = Crops(count=1, size=(height, width), scale=SCALE, jitter=0.0, gray=0.0, blur=(0.0,), solarize=(0.0,))
        self._cropper = Cropper(Views(crops={GROUP: crops}, channels=channels), seed=seed)
        self.shape = images.shape
        mine = np.arange(collectives.rank(), len(images), collectives.world_size())
        part = images.part(mine)
        self._files = dict(zip(mine.tolist(), part.files(most=FILES_BYTES), strict=True))
        self._ids = dict(zip(mine.tolist(), part.ids(), strict=True))

    def cut(
        self, positions: Int[np.ndarray, " B"], *, epoch: int, pool: ThreadPoolExecutor
    ) -> UInt8[Tensor, "B C H W"]:
        """A random crop of each of this rank's images at `positions` of the set. Raises Undecodable."""

        def crop(position: int) -> np.ndarray:
            image = decode(self._files[position], channels=self.shape[0])
            return self._cropper(image, epoch=epoch, sample=self._ids[position])[GROUP][0]

        found = list(pool.map(crop, positions.tolist()))
        return torch.from_numpy(np.stack(found) if found else np.empty((0, *self.shape), dtype=np.uint8))


def batches_of_crops(
    encoder: Backbone,
    images: ImageSet,
    known: Features,
    rows: Sequence[Int[np.ndarray, " B"]],
    *,
    epochs: Sequence[int],
    blocks: int,
    normalise: Normalisation,
    seed: int,
) -> Iterator[Features]:
    """Features of random crops of the images at each of `rows` of `known` (features of the set's centre crops, which tell the
    images that can be decoded and their labels), each cut for its epoch; the next batch is cut meanwhile.

    On all ranks the same, which call it together. Raises ValueError as `RandomCrops`.
    """
    device, rank, world = known.cls.device, collectives.rank(), collectives.world_size()
    crops, places = RandomCrops(images, seed=seed), known.positions.cpu().numpy()
    wanted = last_blocks(encoder, blocks)
    with ThreadPoolExecutor(4, thread_name_prefix="evals-crops") as pool, ThreadPoolExecutor(1) as ahead:

        def cut(step: int) -> Tensor:
            positions = places[rows[step]]
            return crops.cut(positions[positions % world == rank], epoch=epochs[step], pool=pool)

        coming = ahead.submit(cut, 0) if rows else None
        for step, batch in enumerate(rows):
            assert coming is not None
            pixels = coming.result()
            coming = ahead.submit(cut, step + 1) if step + 1 < len(rows) else None
            real = len(pixels)
            if not real:  # an encoder that is sharded over ranks wants a pass from each
                pixels = torch.zeros(1, *crops.shape, dtype=torch.uint8)
            with frozen(encoder, device):
                outputs = layers(encoder, normalise(pixels.to(device)), wanted)
                cls = torch.stack([output.cls for output in outputs], dim=1)[:real].float()
                pooled = outputs[-1].patches.mean(1)[:real].float()
            # Ranks come one after another; a stable sort by rank is the order they come in.
            order = torch.from_numpy(np.argsort(np.argsort(places[batch] % world, kind="stable"))).to(device)
            index = torch.from_numpy(batch).to(device)
            yield Features(
                collectives.gather_rows(cls.clone())[order],
                collectives.gather_rows(pooled.clone())[order],
                known.labels[index],
                known.positions[index],
            )
