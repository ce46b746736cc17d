"""Draws: what is decided about one view, whatever arithmetic cuts it.

Every number a view needs stands at a fixed place of a sequence keyed by (seed, epoch, sample id, group). So a crop does not
depend on threads, order or worker, another view more leaves those before it, and switching blur on leaves the boxes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydino.views import Crops, Views

BOX_TRIES = 10
BLUR_KERNEL = 9  # pixels, as in DINOv2
JITTER_ORDERS = tuple(permutations(range(4)))
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
"""What a number of `Jitter.order` stands for."""
LUMA = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in a grey."""
BLENDS = 3  # changes of a jitter that mix a view with a grey: all but hue
COLOURS = 2 * BLENDS + 5
"""Numbers that tell a device how to change a view's colours (`colours`)."""
# Places in a view's draws; a jitter's four follow at its own.
_FLIP, _JITTER, _FIRST_FACTOR, _ORDER, _GRAY, _BLUR, _SIGMA, _SOLARIZE, _TOP, _LEFT, _BOX = (
    0,
    1,
    2,
    6,
    7,
    8,
    9,
    10,
    11,
    12,
    13,
)
COUNT = _BOX + 2 * BOX_TRIES
"""Numbers of [0, 1) that a view needs."""


@dataclass(frozen=True, slots=True)
class Jitter:
    """Colour jitter as torchvision defines it."""

    order: tuple[int, ...]
    """The four changes in the order of use."""
    factors: tuple[float, float, float]
    """Of brightness, contrast and saturation."""
    hue: float
    """Share of the colour circle."""


_STILL = Jitter(JITTER_ORDERS[0], (1.0, 1.0, 1.0), 0.0)


@dataclass(frozen=True, slots=True)
class Draw:
    """One view, decided."""

    top: int
    left: int
    height: int
    width: int
    """The box, in pixels of the image."""
    flip: bool
    jitter: Jitter | None
    gray: bool
    sigma: float | None
    """Standard deviation of the blur, pixels; None without."""
    solarize: bool


def draw_view(rows: int, columns: int, group: Crops, view: int, draws: Sequence[float]) -> Draw:
    """What `draws`, COUNT numbers of [0, 1), decide about a view of an image of `rows` x `columns` pixels."""
    blurred = draws[_BLUR] < group.of_view("blur", view)
    return Draw(
        *_box(rows, columns, group, draws),
        flip=draws[_FLIP] < group.flip,
        jitter=_jitter(group, draws) if draws[_JITTER] < group.jitter else None,
        gray=draws[_GRAY] < group.gray,
        sigma=_between(*group.blur_sigma, draws[_SIGMA]) if blurred else None,
        solarize=draws[_SOLARIZE] < group.of_view("solarize", view),
    )


def colours(draw: Draw) -> tuple[float, ...]:
    """What is decided about a view's colours, COLOURS numbers: of the jitter's changes other than hue, in the order of use, which
    they are and then their factors; how many of them come before hue, and its share of the circle; 1 for greyscale; the blur's
    standard deviation, 0 without; 1 for solarisation. Without jitter factors are 1 and hue is 0."""
    jitter = draw.jitter or _STILL
    order = [number for number in jitter.order if number != HUE]
    hue = (jitter.order.index(HUE), jitter.hue)
    return (*order, *(jitter.factors[number] for number in order), *hue, draw.gray, draw.sigma or 0.0, draw.solarize)


def colours_of(group: str) -> str:
    """The name under which the numbers of a crop group's `colours` are kept beside its pixels."""
    return f"colours/{group}"


def room(views: Views, *images: int) -> dict[str, NDArray[Any]]:
    """Arrays, not filled, for all that is cut: by group uint8 [V, *images, C, height, width], and where the device changes
    colours, by `colours_of` the group, float32 [V, *images, COLOURS]."""
    arrays: dict[str, NDArray[Any]] = {
        name: np.empty(shape, dtype=np.uint8) for name, shape in views.shapes(*images).items()
    }
    if views.fast_crops == "device":
        for name, group in views.crops.items():
            arrays[colours_of(name)] = np.empty((group.count, *images, COLOURS), dtype=np.float32)
    return arrays


def _between(low: float, high: float, draw: float) -> float:
    return low + (high - low) * draw


def _jitter(group: Crops, draws: Sequence[float]) -> Jitter:
    factors = [
        _between(max(0.0, 1 - spread), 1 + spread, draws[_FIRST_FACTOR + place])
        for place, spread in enumerate((group.brightness, group.contrast, group.saturation))
    ]
    hue = _between(-group.hue, group.hue, draws[_FIRST_FACTOR + HUE])
    return Jitter(JITTER_ORDERS[int(draws[_ORDER] * len(JITTER_ORDERS))], (factors[0], factors[1], factors[2]), hue)


def _box(rows: int, columns: int, group: Crops, draws: Sequence[float]) -> tuple[int, int, int, int]:
    """Top, left, height, width: area uniform in `scale`, aspect log-uniform around the view's; centred if no draw fits."""
    low, high, shape = math.log(group.ratio[0]), math.log(group.ratio[1]), group.width / group.height
    for place in range(_BOX, COUNT, 2):
        area = rows * columns * _between(*group.scale, draws[place])
        aspect = shape * math.exp(_between(low, high, draws[place + 1]))
        height, width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < height <= rows and 0 < width <= columns:
            return int(draws[_TOP] * (rows - height + 1)), int(draws[_LEFT] * (columns - width + 1)), height, width
    height = min(rows, max(1, round(columns / (shape * group.ratio[0]))))
    width = min(columns, max(1, round(rows * shape * group.ratio[1])))
    return (rows - height) // 2, (columns - width) // 2, height, width
