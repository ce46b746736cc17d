"""The matrices of positions against torch's own resampling."""

import pytest
import torch

from raydino.export.positions import positions
from raydino.nn.backbone import Transformer
from tests.export.conftest import a_model

GRIDS = [(5, 5), (3, 5), (4, 9), (14, 14), (2, 3), (1, 1), (37, 20), (6, 5)]


@pytest.mark.parametrize("resampling", ["antialias", "offset"])
@pytest.mark.parametrize("kind", ["plain", "oblong", "cls without a position"])
def test_positions__are_those_of_the_backbone(kind: str, resampling: str):
    backbone = a_model(kind, position_resampling=resampling).backbone
    assert isinstance(backbone, Transformer)
    assert backbone.vit.pos_embed.std() > 0.05
    for rows, columns in GRIDS:
        found, expected = positions(backbone, rows, columns), backbone.positions(rows, columns)
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)
