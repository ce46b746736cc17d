"""A run's teacher as a descriptor, against what evaluations compute of the same checkpoint."""

from pathlib import Path

import numpy as np
import pytest
import torch

from raydino.config import ConfigError
from raydino.curation.embed import embed, open_descriptor
from raydino.evals.features import extract
from raydino.evals.images import ImageSet
from raydino.launch.teacher import open_teacher
from raydino.methods.config import DINOConfig
from raydino.recipe import Recipe
from raydino.shards.reader import open_collection
from raydino.train.checkpoint import Checkpoint, save


@pytest.mark.parametrize("method", ["dinov2", "dino"])
def test_open_teacher__newest_teacher_sees_what_evaluations_see(small_images: Path, tmp_path: Path, method: str):
    parts = {"method.global_crops.size": 32, "method.local_crops.size": 16, "method.head.prototypes": 32}
    small = {"backbone.patch_size": 8, "backbone.width": 16, "backbone.depth": 1, "backbone.heads": 2}
    recipe = Recipe() if method == "dinov2" else Recipe(method=DINOConfig())
    recipe = recipe.override({**parts, **small, "data.normalisation.mean": [0.5], "backbone.registers": 2})
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    for step in (3, 12):  # another teacher at each
        torch.manual_seed(step)
        run = recipe.method.build(recipe.backbone, steps=recipe.steps)
        for parameter in run.student.parameters():  # the student must not be taken for the teacher
            parameter.data.add_(1.0)
        save(tmp_path / "checkpoints", Checkpoint(step, run.state_dict(), {}, {}), keep=5)
    descriptor = open_descriptor(f"run:{tmp_path}", open_run=open_teacher)
    images = open_collection(str(small_images), split="test")
    rows = np.arange(20)
    sight = ImageSet(images, rows, np.zeros(20, np.int64), size=32)
    expected, _ = extract(run.encoder(), sight, recipe.data.normalisation, device="cpu")
    expected = torch.nn.functional.normalize(expected, dim=-1)
    found = embed(images, descriptor, threads=1)
    np.testing.assert_allclose(found[:20], expected.numpy(), atol=1e-3)
    assert (descriptor.kind, descriptor.dim, descriptor.size) == ("semantic", 16, 32)
    assert descriptor.name == f"run:{tmp_path.name}@12"


def test_open_teacher__says_what_a_folder_lacks(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no recipe\.yaml in it; give the folder of a run"):
        open_teacher(str(tmp_path))
    (tmp_path / "recipe.yaml").write_text(Recipe().to_yaml())
    with pytest.raises(ConfigError, match="no checkpoint has been committed yet"):
        open_teacher(str(tmp_path))
