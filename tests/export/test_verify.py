"""What counts as the same features, and at which sizes they are compared."""

import math
from pathlib import Path

import pytest
import torch

from raydino.export.verify import Comparison, ExportError, Loading, compare, require_same, sizes
from tests.export.conftest import KINDS, a_model


@pytest.mark.parametrize("difference", [1.01e-4, 1.0, math.nan, math.inf])
def test_require_same__refuses_what_differs_or_is_no_number(difference: float):
    with pytest.raises(ExportError, match="more than 0.0001 .*24 × 40 pixels"):
        require_same([Comparison(32, 32, 0.0), Comparison(24, 40, difference)])
    require_same([Comparison(32, 32, 1e-4)])


@pytest.mark.parametrize("kind", KINDS)
def test_sizes__as_trained_another_and_one_that_is_not_square(kind: str):
    model = a_model(kind)
    own, other, oblong = sizes(model)
    trained = (model.size, model.size) if isinstance(model.size, int) else model.size
    assert own == trained and other not in (own, oblong) and oblong[0] != oblong[1]
    assert not any(side % model.config.patch_size for size in (own, other, oblong) for side in size)


def test_compare__sees_a_nan_and_other_shapes(tmp_path: Path):
    model = a_model("registers")
    pixels = [torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8) for size in sizes(model)[:2]]
    shapes = "cls, registers, patches = torch.zeros(2, 32), torch.zeros(2, 3, 32), torch.zeros(2, images[0, 0].numel() // 64, 32)"
    loading = Loading("", f"{shapes}\nif number:\n    patches[0, 0, 0] = torch.nan")
    finite, spoilt = compare(model, tmp_path, loading, pixels)
    with torch.no_grad():
        output = model.backbone(model.normalisation(pixels[0]))
    assert finite.difference == pytest.approx(max(float(part.abs().max()) for part in output), abs=1e-6)
    assert math.isnan(spoilt.difference)
    with pytest.raises(ExportError, match=r"cls is \[2, 31\], and the model's \[2, 32\]"):
        compare(model, tmp_path, Loading("", f"{shapes}\ncls = cls[:, 1:]"), pixels[:1])
