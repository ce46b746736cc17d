"""An ONNX graph with batch, height and width left open. The only file that asks for onnx and onnxscript."""

import copy
import io
import warnings
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from raydino.config import ConfigError
from raydino.export.model import Model
from raydino.export.positions import positions
from raydino.export.verify import Loading
from raydino.nn.backbone import Backbone, Transformer

FILE = "model.onnx"
OPSET = 18
IN_ONE_FILE = 1_500_000_000  # bytes of weights; protobuf ends at 2 GB
PATCHES = (3, 5)  # of the example: no two sizes in the graph may be alike by chance
USE = """\
cls, registers, patches = session.run(["cls", "registers", "patches"], {"images": images.numpy()})"""
LOAD = """\
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])"""


class _Graph(nn.Module):
    """A backbone with the outputs of the graph in their order."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """cls [B, D], registers [B, R, D] and patches [B, P, D] of images [B, C, H, W]."""
        output = self.backbone(images)
        return output.cls, output.registers, output.patches


def write(model: Model, folder: Path) -> Loading:
    """Write `model` into `folder`; returns how it is used.

    Raises:
        ConfigError: onnx, onnxscript or onnxruntime is not installed.
    """
    _require()
    backbone = copy.deepcopy(model.backbone).cpu().requires_grad_(requires_grad=False)
    if isinstance(backbone, Transformer):
        backbone.positions = partial(positions, backbone)  # torch's resampling has no counterpart in ONNX
    patch, export = model.config.patch_size, torch.export
    images = torch.zeros(2, model.config.channels, *(patch * count for count in PATCHES))
    sides = {2: patch * export.Dim("rows", min=1), 3: patch * export.Dim("columns", min=1)}
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):  # of the exporter's own making
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _Graph(backbone).eval(),
            (images,),
            dynamo=True,
            dynamic_shapes={"images": {0: export.Dim("batch"), **sides}},
            input_names=["images"],
            output_names=["cls", "registers", "patches"],
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None, "the dynamo exporter returns what it made"
    program.save(folder / FILE, external_data=_bytes(backbone) > IN_ONE_FILE)
    return Loading(
        LOAD,
        USE,
        note=f"Batch, height and width are free; height and width are multiples of {patch}. ONNX opset {OPSET}.",
    )


def _bytes(backbone: Backbone) -> int:
    return sum(value.numel() * value.element_size() for value in backbone.state_dict().values())


def _require() -> None:
    try:
        import onnx  # noqa: F401 (the exporter asks for them late and says less)
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"format = onnx: {error.name} is not installed; run `make setup`, or install raydino[export]."
        ) from error
