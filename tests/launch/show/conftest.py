"""A run with one checkpoint and a record in MLflow, and image files, for pictures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from raydino.recipe import Recipe
from raydino.tracking.mlflow_run import create_run
from raydino.tracking.opening import Opening
from raydino.train.checkpoint import Checkpoint
from raydino.train.checkpoint import save as save_checkpoint


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DINOv2 run of 32 prototypes at step 7, whose teacher's head and centre are not those of the start."""
    folder = tmp_path_factory.mktemp("runs") / "small-run"
    folder.mkdir()
    parts = {"method.global_crops.size": 32, "method.local_crops.size": 16, "method.head.prototypes": 32}
    recipe = Recipe().override(
        {**parts, "backbone.patch_size": 8, "backbone.width": 16, "backbone.depth": 2, "backbone.heads": 2}
    )
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    (folder / "cluster.yaml").write_text("experiment: test\n")
    torch.manual_seed(0)
    method = recipe.method.build(recipe.backbone, steps=recipe.steps)
    weights = method.state_dict()
    weights["centering.center"] = torch.randn(32)
    save_checkpoint(folder / "checkpoints", Checkpoint(7, weights, {}, {}), keep=1)
    opening = Opening.of(
        experiment="test", run_name="small", params={}, tags={}, dataset=None, recipe_yaml="", run_dir=folder
    )
    run_id = create_run(opening, tracking_uri=f"sqlite:///{folder.parent}/mlflow.db")
    (folder / "run.json").write_text(json.dumps({"mlflow_run_id": run_id}))
    return folder


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two photographs of one name in two folders, a broken one and a text."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "other").mkdir()
    numbers = np.random.default_rng(0)
    found = {"wide": folder / "cat (1).png", "high": folder / "other" / "cat (1).png"}
    Image.fromarray(numbers.integers(0, 256, (40, 80, 3), dtype=np.uint8)).save(found["wide"])
    Image.fromarray(numbers.integers(0, 256, (60, 40, 3), dtype=np.uint8)).save(found["high"])
    found["broken"], found["text"] = folder / "broken.png", folder / "text.png"
    found["broken"].write_bytes(found["wide"].read_bytes()[:2000])
    found["text"].write_text("no image")
    return found
