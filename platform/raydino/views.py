"""The contract between methods and data: a method says what it wants to see (`Views`), the data side delivers it (`Batch`).

A method with other views needs no change in data/: it names its crop groups and, if it masks patches, how.
Letters: V views of a group, B images of this rank (or micro-batch), P patches of a global crop, row-major.
This file does not import torch, so that recipes and their `--help` need not wait for it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from raydino.config import Config, ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(gt=0)]
Size = Positive | tuple[Positive, Positive]
"""Pixels of a picture: its side, or height and width."""
FastCrops = Literal[False, True, "device"]
"""How crops are cut: as published, with less arithmetic, or so and with their colours changed by the training device."""


def height_width(size: Size) -> tuple[int, int]:
    """A `Size` as height and width."""
    return (size, size) if isinstance(size, int) else size


class Crops(Config):
    """One group of random views of an image, all of one size. Tuples with one entry per view may hold a single entry for all."""

    count: Annotated[int, Field(ge=0)]
    """Views of this group per image."""
    size: Size
    """Side of the view, or its height and width, pixels."""
    scale: tuple[float, float]
    """Range of the crop's area as a share of the image's."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of the crop's aspect ratio over that of the view (log-uniform): how far it is stretched."""
    flip: Probability = 0.5
    """Probability of a horizontal flip."""
    jitter: Probability = 0.8
    """Probability of colour jitter."""
    brightness: float = 0.4
    """Jitter: brightness factor in 1 ± this."""
    contrast: float = 0.4
    """Jitter: contrast factor in 1 ± this."""
    saturation: float = 0.2
    """Jitter: saturation factor in 1 ± this."""
    hue: float = 0.1
    """Jitter: hue shift within ± this share of the colour circle."""
    gray: Probability = 0.2
    """Probability of greyscale."""
    blur: tuple[Probability, ...] = (0.5,)
    """Probability of Gaussian blur, per view."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Range of the blur's standard deviation, pixels."""
    solarize: tuple[Probability, ...] = (0.0,)
    """Probability of solarisation (threshold 128), per view."""

    @field_validator("size", mode="before")
    @classmethod
    def _a_side_or_two(cls, size: Any) -> Any:
        sides = list(size) if isinstance(size, (list, tuple)) else [size, size]
        if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
            raise ValueError("give a side, or height and width, in whole pixels above 0")
        return size

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        for name in ("scale", "ratio", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} must satisfy 0 < low <= high, not ({low}, {high})")
        if self.scale[1] > 1:
            raise ValueError(f"scale is a share of the image's area, so at most 1, not {self.scale[1]}")
        for name in ("blur", "solarize"):
            given = len(getattr(self, name))
            if given not in (1, self.count) and self.count:
                raise ValueError(f"{name} has {given} entries for {self.count} views; give 1 or {self.count}")
        return self

    @property
    def height(self) -> int:
        """Pixels."""
        return height_width(self.size)[0]

    @property
    def width(self) -> int:
        """Pixels."""
        return height_width(self.size)[1]

    def of_view(self, name: str, view: int) -> float:
        """The entry of a per-view tuple field (`blur` or `solarize`) for `view`."""
        values = getattr(self, name)
        return values[view if len(values) > 1 else 0]


class Masks(Config):
    """Block masks over the patches of global crops, as in DINOv2 (iBOT's blockwise masking with stratified ratios)."""

    probability: Probability = 0.5
    """Share of the global crops that are masked at all; exact in every batch."""
    ratio: tuple[Probability, Probability] = (0.1, 0.5)
    """Range of the share of masked patches; stratified over the masked crops of a batch."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.ratio[0] > self.ratio[1]:
            raise ValueError(f"ratio must be (low, high) with low <= high, not {self.ratio}")
        return self


class Views(Config):
    """All a method asks to see of an image."""

    crops: dict[str, Crops]
    """Crop groups by name."""
    masks: Masks | None = None
    """Masks over the patches of group "global"; None for none."""
    labels: bool = False
    """Whether the method needs the images' labels."""
    patch_size: Positive = 16
    """Side of a patch, pixels; it cuts a global crop into the grid that masks are drawn on."""
    channels: Positive = 3
    """Channels of every view."""
    fast_crops: FastCrops = False
    """Whether views may be cut with less arithmetic (data/fast.py), and their colours changed on the device (data/colour.py)."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patch grid of a global crop."""
        crops = self.crops["global"]
        return crops.height // self.patch_size, crops.width // self.patch_size

    def shapes(self, *images: int) -> dict[str, tuple[int, ...]]:
        """Shape of each group's pixels, [V, *images, channels, height, width]."""
        return {
            name: (group.count, *images, self.channels, group.height, group.width) for name, group in self.crops.items()
        }


@dataclass(frozen=True)
class Batch:
    """What a method gets for one step on one rank, or one micro-batch of it."""

    crops: "Mapping[str, Tensor]"
    """By group: uint8 [V, B, C, H, W] from the data side, float after colour (data/colour.py) and normalisation."""
    masks: "Tensor | None"
    """bool [V, B, P] over the global crops, True where the student does not see the patch."""
    ids: tuple[bytes, ...]
    """Content hash of each image, B entries, in slot order."""
    step: int
    """The step this batch belongs to (from 0)."""
    labels: "Tensor | None" = None
    """int64 [B], -1 where the image has none; None unless `Views.labels` asked for them."""
    masked: "Tensor | None" = None
    """int64 [M], where the True of `masks` lie among all V * B * P; found before a batch goes to a GPU (`to`), because asking a
    GPU how many there are would wait for all it has to do. With `most_masked` places of False follow them."""
    colours: "Mapping[str, Tensor] | None" = None
    """By group float32 [V, B, D], the changes of colour that the device is still to make (data/colour.py); None for none."""
    most_masked: int | None = None
    """M of `masked` in every micro-batch, the most that can be masked; None: as many as are."""

    @property
    def images(self) -> int:
        """B, the number of images."""
        return len(self.ids)

    def to(self, device: "torch.device") -> "Batch":
        """The batch on another device, `masked` with it. Raises ConfigError if more are masked than `most_masked`."""

        def there(tensor: "Tensor | None") -> "Tensor | None":
            return None if tensor is None else tensor.to(device, non_blocking=True)

        def all_there(tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
            return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}

        masked = None if self.masks is None else _true_of(self.masks.flatten(), self.most_masked)
        return replace(
            self,
            crops=all_there(self.crops),
            masks=there(self.masks),
            labels=there(self.labels),
            masked=there(masked),
            colours=None if self.colours is None else all_there(self.colours),
        )

    def split(self, parts: int) -> "Iterator[Batch]":
        """Micro-batches of equal size, in slot order. Raises ValueError if B is not a multiple of `parts`."""
        if self.images % parts:
            raise ValueError(f"a rank's batch of {self.images} images cannot be cut into {parts} equal micro-batches")
        size = self.images // parts
        for start in range(0, self.images, size):
            part = slice(start, start + size)
            yield Batch(
                crops={name: crop[:, part] for name, crop in self.crops.items()},
                masks=None if self.masks is None else self.masks[:, part],
                ids=self.ids[part],
                step=self.step,
                labels=None if self.labels is None else self.labels[part],
                colours=None if self.colours is None else {name: own[:, part] for name, own in self.colours.items()},
                most_masked=self.most_masked,
            )


def _true_of(mask: "Tensor", most: int | None) -> "Tensor":
    """Where `mask` is True, ascending; to make `most`, the first places where it is not come after those."""
    if most is None:
        return mask.nonzero().squeeze(1)
    if (count := int(mask.sum())) > most:
        raise ConfigError(
            f"cluster.fixed_shapes = True: {count:,} patches are masked in a micro-batch, and by method.masks at most {most:,} "
            "can be; draw the masks as it says, or set cluster.fixed_shapes to false."
        )
    return mask.argsort(descending=True, stable=True)[:most]


class Normalisation(Config):
    """How uint8 pixels become the backbone's input: (x / 255 - mean) / std, per channel."""

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Mean per channel, on the 0..1 scale (default: ImageNet); one entry holds for all channels."""
    std: tuple[Annotated[float, Field(gt=0)], ...] = (0.229, 0.224, 0.225)
    """Standard deviation per channel, on the 0..1 scale (default: ImageNet); one entry holds for all channels."""

    def __call__(self, pixels: "Tensor") -> "Tensor":
        """uint8 [..., C, H, W] to float32 of the same shape, on the pixels' device."""
        import torch

        x = pixels.to(torch.float32, copy=True)
        # Filled in on the device: a list of numbers would be sent there, and a GPU finish its work before that.
        mean, std = (
            torch.stack([x.new_full((), value) for value in values]).view(-1, 1, 1) * 255.0
            for values in (self.mean, self.std)
        )
        return x.sub_(mean).div_(std)
