"""What a worker leaves of a run: the crop sheet."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

from raydino.data.draws import Draw, colours
from raydino.launch.workers.record import Judge
from raydino.recipe import Recipe
from raydino.views import Batch


def test_picture_of__shows_colours_as_the_network_sees_them():
    """A view that the device is still to invert is drawn inverted, beside one that it leaves."""
    sheets: list[Image.Image] = []
    job: Any = SimpleNamespace(recipe=Recipe())
    record: Any = SimpleNamespace(run=SimpleNamespace(picture=lambda name, sheet, step: sheets.append(sheet)))
    judge = Judge(job, Any, SimpleNamespace(device=torch.device("cpu")), record)  # type: ignore[arg-type]
    plain = Draw(0, 0, 1, 1, flip=False, jitter=None, gray=False, sigma=None, solarize=False)
    inverted = Draw(0, 0, 1, 1, flip=False, jitter=None, gray=False, sigma=None, solarize=True)
    pixels = torch.full((2, 1, 3, 32, 32), 201, dtype=torch.uint8)
    numbers = torch.tensor([[colours(plain)], [colours(inverted)]])
    for left in (None, {"global": numbers}):
        judge.picture_of(Batch({"global": pixels}, None, (b"a",), 0, colours=left))
    flat = [np.asarray(sheet).reshape(-1, 3) for sheet in sheets]
    counts = [[int((pixels == value).all(axis=1).sum()) for value in (201, 54)] for pixels in flat]
    assert counts[0][0] == 2 * counts[1][0] == 2 * counts[1][1] > 0 and counts[0][1] == 0
