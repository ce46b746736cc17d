"""A model that `mlflow.pyfunc.load_model` serves, around the safetensors format; raydino must be installed where it is served."""

import tempfile
from pathlib import Path

from raydino.export import to_safetensors
from raydino.export.model import Model
from raydino.export.verify import Loading
from raydino.tracking.served import save


def write(model: Model, folder: Path) -> Loading:
    """Write `model` into the empty `folder`; returns how it is used."""
    with tempfile.TemporaryDirectory(prefix="raydino-mlflow-") as beside:
        (weights := Path(beside, "encoder")).mkdir()
        to_safetensors.write(model, weights)
        save(folder, weights, channels=model.config.channels, width=model.backbone.width)
    return Loading(
        load='import mlflow\n\nmodel = mlflow.pyfunc.load_model(".")',
        use="cls = model.predict(pixels)",
        outputs=("cls",),
        note="It takes uint8 images [B, H, W, C] and normalises them itself; raydino must be installed where it is served.",
    )
