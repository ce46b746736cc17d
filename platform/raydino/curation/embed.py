"""Descriptors: an image as a vector of unit length whose cosine with another says how alike two images are.

A copy descriptor, such as SSCD (Pizzi et al. 2022), is trained to know an image again under crops, overlays and filters that the
fingerprint does not survive. All others, a published model or a teacher of one's own, are semantic: they measure sameness of
topic, not copies (on DISC21 DINO ViT-B/16 has an average precision of 32 %, SSCD of 62 %), and to remove what they find near
changes what a collection is about. Nothing is fetched but what a `timm:` spec asks timm to fetch. torch is imported when a
descriptor is opened, not before.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from raydino.config import ConfigError
from raydino.curation.cosine import unit
from raydino.curation.features import Progress
from raydino.data.decode import Undecodable, decode
from raydino.shards.reader import Collection
from raydino.views import Normalisation, Size, height_width

if TYPE_CHECKING:
    from torch import Tensor, nn

SQUARE = 320  # pixels: one of the two sizes that SSCD's authors recommend; the other, 288, is of the shorter side
SPECS = "torchscript:FILE[@SIZE], timm:NAME[@FILE.safetensors] or run:FOLDER"


@dataclass(frozen=True)
class Descriptor:
    """What turns images into vectors."""

    name: str
    """For reports, without folders."""
    kind: Literal["copy", "semantic"]
    """Whether near means a copy of the image, or one of the same topic."""
    dim: int
    """D, dimensions of a vector."""
    size: Size
    """Of the images it sees: a side, or height and width, pixels."""
    digest: str
    """sha256 of the weights, hexadecimal."""
    prepare: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
    """A decoded image, uint8 [H, W, C], to what the network sees: uint8 [C, height, width]. Any thread may call it."""
    encode: Callable[[NDArray[np.uint8]], NDArray[np.float32]]
    """Prepared images, uint8 [B, C, height, width], to features, float32 [B, D], of any length."""
    channels: int = 3
    """C, to which images are decoded."""

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Unit vectors, float32 [B, D], of prepared images, uint8 [B, C, height, width].

        Raises:
            ValueError: images are of another type or shape, or a feature is not finite.
        """
        expected = (self.channels, *height_width(self.size))
        if images.dtype != np.uint8 or images.shape[1:] != expected:
            raise ValueError(
                f"{self.name} takes uint8 [B, {', '.join(map(str, expected))}], not {images.dtype} {list(images.shape)}"
            )
        if not len(images):
            return np.empty((0, self.dim), dtype=np.float32)
        features = self.encode(images)
        if not np.isfinite(features).all():
            raise ValueError(f"{self.name} gives features that are not finite; are its weights whole?")
        return unit(features)


def open_descriptor(
    spec: str, *, device: str = "cpu", open_run: Callable[[str, str], Descriptor] | None = None
) -> Descriptor:
    """The descriptor that `spec` names.

    `torchscript:FILE[@SIZE]`: a copy descriptor such as sscd_disc_mixup.torchscript.pt; images are squashed to SIZE × SIZE pixels
    (320) and normalised as for ImageNet. Opening a TorchScript file runs code that the file holds: give only one that you trust,
    whose sha256 you know. No other spec opens one.
    `timm:NAME`: a published model with timm's weights, which timm fetches where they are not in its cache;
    `timm:NAME@FILE.safetensors`: with the weights of a file. Images are prepared as timm says of the model.
    `run:FOLDER`: the newest teacher of a run.

    Args:
        spec: One of these.
        device: Where it computes, "cpu" or "cuda"; in 32-bit floats either way.
        open_run: Opens a run's folder on a device: `raydino.launch.teacher.open_teacher`, which lies on a floor above this one.

    Raises:
        ConfigError: the spec is of no such form, or what it names cannot be used.
    """
    kind, _, rest = spec.partition(":")
    if kind == "torchscript" and rest:
        return _torchscript(rest, device)
    if kind == "timm" and rest:
        return _timm(rest, device)
    if kind == "run" and rest and open_run is not None:
        return open_run(rest, device)
    raise ConfigError(f"descriptor = {spec!r}: give {SPECS}.")


def from_encoder(
    name: str,
    kind: Literal["copy", "semantic"],
    encoder: "Callable[[Tensor], Tensor]",
    *,
    normalise: Normalisation,
    size: Size,
    digest: str,
    prepare: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
    channels: int = 3,
    device: str = "cpu",
) -> Descriptor:
    """A descriptor of a network that lies on `device`, ready to evaluate: float images [B, C, height, width] to [B, D].

    Raises:
        ConfigError: it cannot take images of `size`, or does not give a vector for each.
    """
    import torch

    def encode(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode(), torch.autocast(torch.device(device).type, enabled=False):
            features = encoder(normalise(torch.from_numpy(images).to(device)))
            return features.float().cpu().numpy()

    try:
        seen = encode(np.zeros((2, channels, *height_width(size)), dtype=np.uint8)).shape
    except Exception as error:  # whatever a network of somebody else may raise
        line = str(error).strip().rpartition("\n")[2]
        raise ConfigError(
            f"descriptor = {name}: cannot take images of {size} pixels ({line}); give its own size (torchscript:FILE@SIZE)."
        ) from error
    if len(seen) != 2 or seen[0] != 2:
        raise ConfigError(
            f"descriptor = {name}: gives {list(seen)} for 2 images, and not a vector for each; export it without its head."
        )
    return Descriptor(name, kind, seen[1], size, digest, prepare, encode, channels)


def embed(
    collection: Collection,
    descriptor: Descriptor,
    *,
    threads: int,
    batch: int = 64,
    progress: Progress = lambda _stage, _done, _total: None,
) -> NDArray[np.float16]:
    """Unit vectors of all images of a collection, float16 [N, D], in row order; zeros for what cannot be decoded.

    Args:
        collection: The images; each row group is read once.
        descriptor: What describes them.
        threads: Images decoded at once, while the network works on the batch before.
        batch: Images the network sees at once; no vector depends on it but in the last bits.
        progress: Told of images done.

    Raises:
        ConfigError: `threads` or `batch` is below 1.
        ShardError: the collection cannot be read.
        ValueError: a feature is not finite.
    """
    for name, value in (("threads", threads), ("batch", batch)):
        if value < 1:
            raise ConfigError(f"{name} = {value}: give 1 or more.")
    vectors, done = np.zeros((len(collection), descriptor.dim), dtype=np.float16), 0
    with ThreadPoolExecutor(threads, thread_name_prefix="raydino-descriptors") as pool:
        for images in _prepared(collection, descriptor, pool, batch=batch):
            good = [number for number, image in enumerate(images) if image is not None]
            seen = [image for image in images if image is not None]
            if seen:
                vectors[done + np.array(good)] = descriptor(np.stack(seen))
            done += len(images)
            progress("descriptors", done, len(collection))
    return vectors


def _prepared(
    collection: Collection, descriptor: Descriptor, pool: ThreadPoolExecutor, *, batch: int
) -> Iterator[list[NDArray[np.uint8] | None]]:
    """Images as the descriptor wants them, None where there is none, `batch` at a time; as many again are on the way."""
    coming = deque[Future[NDArray[np.uint8] | None]]()
    for group in range(len(collection.row_groups)):
        for data in collection.read(group)["bytes"]:
            coming.append(pool.submit(_one, data.as_py(), descriptor))
            if len(coming) == 2 * batch:
                yield [coming.popleft().result() for _ in range(batch)]
    while coming:
        yield [coming.popleft().result() for _ in range(min(batch, len(coming)))]


def _one(data: bytes, descriptor: Descriptor) -> NDArray[np.uint8] | None:
    try:
        return descriptor.prepare(decode(data, channels=descriptor.channels))
    except Undecodable:  # training meets and counts it
        return None


def _torchscript(rest: str, device: str) -> Descriptor:
    import torch

    file, _, given = rest.rpartition("@")
    path, size = (Path(file), int(given)) if file and given.isdecimal() else (Path(rest), SQUARE)
    name = f"torchscript:{path.name}@{size}"
    if not path.is_file() or not size:
        raise ConfigError(
            f"descriptor = {name}: no such file in {path.parent}, or no such size; give torchscript:FILE[@SIZE]."
        )
    with path.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    try:
        network = torch.jit.load(path, map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"descriptor = {name}: is no TorchScript archive ({str(error).partition(chr(10))[0]}); for weights alone give "
            "timm:NAME@FILE.safetensors."
        ) from error

    def squashed(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        resized = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
        return np.asarray(resized).transpose(2, 0, 1)

    return from_encoder(
        name, "copy", network, normalise=Normalisation(), size=size, digest=digest, prepare=squashed, device=device
    )


def _timm(rest: str, device: str) -> Descriptor:
    from raydino.nn.backbone import published
    from raydino.nn.weights import weights_digest

    model, _, file = rest.partition("@")
    name = f"timm:{model}" + (f"@{Path(file).name}" if file else "")
    network, settings, transform = published(model, weights=not file)
    if file:
        _load(network, Path(file), name)
    channels, height, width = settings["input_size"]

    def prepare(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.asarray(transform(Image.fromarray(image[..., 0] if channels == 1 else image)))

    return from_encoder(
        name,
        "semantic",
        network.to(device),
        normalise=Normalisation(mean=settings["mean"], std=settings["std"]),
        size=height if height == width else (height, width),
        digest=weights_digest(network),
        prepare=prepare,
        channels=channels,
        device=device,
    )


def _load(network: "nn.Module", file: Path, name: str) -> None:
    """Load the weights of a file; all of them but those of a classifier, which the network is without."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if file.suffix != ".safetensors" or not file.is_file():
        raise ConfigError(
            f"descriptor = {name}: {file} is no .safetensors file, which alone cannot hold code; give one."
        )
    settings: Any = network.pretrained_cfg
    heads = settings.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else heads
    try:
        weights = load_file(file)
        kept = {key: value for key, value in weights.items() if key.rpartition(".")[0] not in heads}
        missing, unknown = network.load_state_dict(kept, strict=False)
    except (SafetensorError, RuntimeError) as error:
        raise ConfigError(f"descriptor = {name}: {file} holds no weights of this model ({error}).") from error
    if missing or unknown:
        raise ConfigError(
            f"descriptor = {name}: {file} holds weights of another model: {len(missing)} are missing ({', '.join(missing[:2])}), "
            f"{len(unknown)} unknown ({', '.join(unknown[:2])}); give the file that timm published or saved for it."
        )
