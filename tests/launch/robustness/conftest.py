"""Two groups of small untrained runs."""

import json
from pathlib import Path

import pytest
import torch

from raydino.methods.config import DINOConfig, SupervisedConfig
from raydino.recipe import Recipe
from raydino.tracking.mlflow_run import create_run
from raydino.tracking.opening import Opening
from raydino.train.checkpoint import Checkpoint, save

SMALL = {
    **{"method.global_crops.size": 16, "method.local_crops.size": 8, "backbone.patch_size": 8, "backbone.width": 16},
    **{"backbone.depth": 1, "backbone.heads": 2, "steps": 2},
}


@pytest.fixture(scope="package")
def groups(tmp_path_factory: pytest.TempPathFactory, storage: Path) -> list[str]:
    """Two groups of two seeds, for the command line; the first has checkpoints of two steps and a record in MLflow."""
    folder, words = tmp_path_factory.mktemp("groups"), []
    address = f"sqlite:///{storage}/mlflow.db"
    for name, method in (("supervised", SupervisedConfig()), ("dino", DINOConfig())):
        runs = [folder / f"{name}-{seed}" for seed in range(2)]
        for seed, run in enumerate(runs):
            heads = {"method.head.prototypes": 16} if name == "dino" else {}
            recipe = Recipe(method=method).override({**SMALL, **heads, "seed": seed})
            run.mkdir()
            (run / "recipe.yaml").write_text(recipe.to_yaml())
            (run / "cluster.yaml").write_text(f"tracking_uri: {address}\n")
            if name == "supervised":
                (run / "run.json").write_text(json.dumps({"mlflow_run_id": recorded(run, address)}))
            for step in (1, 2) if name == "supervised" else (2,):
                torch.manual_seed(10 * seed + step)
                state = recipe.method.build(recipe.backbone, steps=2).state_dict()
                save(run / "checkpoints", Checkpoint(step, state, {}, {}), keep=2)
        words += ["--group", f"{name}={','.join(map(str, runs))}"]
    return words


def recorded(run: Path, address: str) -> str:
    """A run in MLflow."""
    about = {"params": {}, "tags": {}, "dataset": None, "recipe_yaml": ""}
    opening = Opening.of(experiment="test", run_name=run.name, run_dir=run, **about)
    return create_run(opening, tracking_uri=address)
