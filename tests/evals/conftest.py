"""Images whose answer is known, and a small backbone, for all tests of evaluations."""

import io
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cloudpickle
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from raydino.evals.evaluation import Labelled
from raydino.evals.images import ImageSet
from raydino.nn.config import BackboneConfig
from raydino.shards.schema import content_id

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks of the gloo fixture do not find this file

PALETTE = np.array([[250, 10, 10], [10, 250, 10], [10, 10, 250], [240, 240, 10], [10, 240, 240], [240, 10, 240]])


def png(pixels: np.ndarray) -> bytes:
    """Pixels, uint8 or uint16, as a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


class Rows:
    """Stands in for a collection: images by row, in two row groups, with further columns."""

    def __init__(self, images: Sequence[bytes], columns: Mapping[str, Sequence[Any]] | None = None) -> None:
        own = {
            "id": [content_id(image) for image in images],
            "bytes": list(images),
            "path": [f"{i}.png" for i in range(len(images))],
        }
        self._columns = {**own, **(columns or {})}
        half = len(images) // 2
        self.row_groups = (half, len(images) - half) if half else (len(images),)
        self.folder = "rows"

    def __len__(self) -> int:
        return sum(self.row_groups)

    def _rows(self, group: int) -> slice:
        start = sum(self.row_groups[:group])
        return slice(start, start + self.row_groups[group])

    def read(self, group: int) -> pa.Table:
        return pa.table({name: self._columns[name][self._rows(group)] for name in ("id", "bytes", "path")})

    def column(self, group: int, name: str) -> pa.ChunkedArray:
        return pa.chunked_array([self._columns[name][self._rows(group)]])

    @property
    def columns(self) -> frozenset[str]:
        return frozenset(self._columns) | {"image"}


def noisy(colour: np.ndarray, *, seed: Any, size: int = 18) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 5, (size, size, 3))
    return (colour + noise).clip(0, 255).astype(np.uint8)


def labelled_colours(*, bank: int, queries: int, classes: int = 6, size: int = 16) -> Labelled:
    def images(count: int, seed: int) -> ImageSet:
        labels = np.arange(count) % classes
        rows = Rows([png(noisy(PALETTE[label], seed=(seed, i))) for i, label in enumerate(labels)])
        return ImageSet(rows, np.arange(count), labels, size=size)  # type: ignore[arg-type]

    names = tuple(map(str, range(classes)))
    return Labelled(bank=images(bank, 0), queries=images(queries, 1), classes=names)


def small_backbone(*, depth: int = 5, patch_size: int = 8, size: int = 16) -> Any:
    torch.manual_seed(0)
    config = BackboneConfig(
        name="vit_tiny_patch16_224", patch_size=patch_size, width=12, depth=depth, heads=2, registers=1
    )
    return config.build(image_size=size, drop_path=0.0)


@pytest.fixture(scope="session")
def colours() -> Callable[..., Labelled]:
    """Labelled images of which class c is colour c, with noise: `colours(bank=…, queries=…, classes=6, size=16)`."""
    return labelled_colours


@pytest.fixture(scope="session")
def small_vit() -> Callable[..., Any]:
    """A ViT of 12 dimensions with a register, the same at every call: `small_vit(depth=5, patch_size=8)`."""
    return small_backbone


@pytest.fixture(scope="session")
def rows_of() -> type[Rows]:
    """A stand-in for a collection: `rows_of(images, {"column": values})`."""
    return Rows


@pytest.fixture(scope="session")
def as_png() -> Callable[[np.ndarray], bytes]:
    """Pixels to the bytes of a PNG."""
    return png
