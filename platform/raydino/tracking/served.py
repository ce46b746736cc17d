"""A model that MLflow serves: images in, embeddings out. Saved as code beside safetensors, so that loading it opens no pickle."""

import tempfile
from pathlib import Path

import numpy as np

from raydino.tracking.mlflow_run import client_of, mlflow_module, unavailable
from raydino.tracking.opening import absolute_uri

ARTIFACTS = "model"
"""Where a run keeps the files of its registered model."""
CODE = '''\
"""How MLflow serves this model: uint8 images [B, H, W, C] in, whose sides are multiples of the patch, embeddings [B, D] out."""

import mlflow
import numpy as np
import torch

from raydino.launch.model import open_model


class Encoder(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model, self.device = open_model(context.artifacts["model"], device=device), device

    def predict(self, context, model_input, params=None):
        pixels = torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(model_input, dtype=np.uint8), 3, 1)))
        with torch.inference_mode():
            return self.model.backbone(self.model.normalisation(pixels.to(self.device))).cls.float().cpu().numpy()


mlflow.models.set_model(Encoder())
'''


def save(folder: Path, weights: Path, *, channels: int, width: int) -> None:
    """Write an MLflow model into the empty `folder`: the safetensors export in `weights`, of images of `channels` channels and
    embeddings of `width` dimensions."""
    mlflow = mlflow_module()
    schema, tensor = mlflow.types.Schema, mlflow.types.TensorSpec
    images = tensor(np.dtype(np.uint8), (-1, -1, -1, channels))
    embeddings = tensor(np.dtype(np.float32), (-1, width))
    with tempfile.TemporaryDirectory(prefix="raydino-served-") as beside:
        (code := Path(beside, "encoder.py")).write_text(CODE)
        mlflow.pyfunc.save_model(
            str(folder),
            python_model=str(code),
            artifacts={"model": str(weights)},
            signature=mlflow.models.ModelSignature(schema([images]), schema([embeddings])),
            pip_requirements=["raydino"],
        )


def register(folder: Path, name: str, *, tracking_uri: str, run_id: str, digest: str) -> str:
    """Put what `save` wrote into the artifacts of the MLflow run `run_id` and into the registry as a new version of `name`,
    tagged with the digest of its weights; returns the version.

    Raises:
        TrackerUnavailable: the server does not answer, has no such run, or refuses.
    """
    client = client_of(absolute_uri(tracking_uri))
    try:
        artifacts = client.get_run(run_id).info.artifact_uri
        client.log_artifacts(run_id, str(folder), artifact_path=ARTIFACTS)
        if not client.search_registered_models(filter_string=f"name = '{name}'"):
            client.create_registered_model(name)
        tags = {"weights_digest": digest}
        version = client.create_model_version(name, f"{artifacts}/{ARTIFACTS}", run_id=run_id, tags=tags)
    except Exception as error:  # whatever a client of a server may raise
        raise unavailable(tracking_uri, error, "the model was not registered") from None
    return str(version.version)
