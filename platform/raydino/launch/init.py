"""Going on from known weights: student's and teacher's backbone are loaded before step 0, under fresh heads.

The digest of the weights goes into the recipe, so other weights under the same name make another run. The run keeps a copy
beside its checkpoints: every node finds it there, and a restart before the first checkpoint does not ask for them again.
"""

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from raydino.config import ConfigError
from raydino.recipe import Recipe

if TYPE_CHECKING:
    from raydino.export.model import Model
    from raydino.methods.method import Method

FOLDER = "init"
SAME = ("name", "channels", "patch_size", "width", "depth", "heads", "ffn", "registers", "position_resampling")
"""Fields of `backbone` that must be those of the weights; the others are of training."""


def settled(recipe: Recipe) -> Recipe:
    """The recipe with the digest of its initial weights, which are opened unless it has one; any other as it is.

    Raises:
        ConfigError: there are no such weights, or they are of another network or normalisation than the recipe.
    """
    if not recipe.init.weights or recipe.init.digest:
        return recipe
    return recipe.override({"init.digest": _opened(recipe).digest})


def keep(recipe: Recipe, run_dir: Path) -> None:
    """Copy the initial weights of `recipe`, if it has any, into the run's folder, once. Raises ConfigError, also for a digest
    that is not the recipe's."""
    from raydino.export.to_safetensors import is_export, write

    if not recipe.init.weights or is_export(run_dir / FOLDER):
        return
    model = _opened(recipe)
    if recipe.init.digest not in ("", model.digest):
        raise ConfigError(
            f"init.digest = {recipe.init.digest}: init.weights = {recipe.init.weights!r} has {model.digest}; give these weights "
            "as they were, or leave the digest out for a run from the present ones."
        )
    with tempfile.TemporaryDirectory(prefix=f".{FOLDER}-", dir=run_dir) as beside:
        write(model, Path(beside))
        shutil.copytree(beside, (whole := run_dir / f".{FOLDER}.tmp"), dirs_exist_ok=True)
    whole.rename(run_dir / FOLDER)  # so that half a copy is never taken for one


def begin_from(method: "Method", run_dir: Path, recipe: Recipe) -> None:
    """Load the copy of `keep` into student and teacher of a fresh `method`, before it is distributed. Raises ConfigError."""
    from raydino.export.to_safetensors import read
    from raydino.nn.weights import at_size, load_strictly

    model = read(run_dir / FOLDER)
    for network in (method.student, method.teacher):
        weights = at_size(model.backbone, like=network.backbone)
        load_strictly(network.backbone, weights, origin=f"init.weights = {recipe.init.weights!r}")


def _opened(recipe: Recipe) -> "Model":
    from raydino.launch.model import open_model

    model = open_model(recipe.init.weights)
    if other := [name for name in SAME if getattr(model.config, name) != getattr(recipe.backbone, name)]:
        flags = " ".join(f"--backbone.{name.replace('_', '-')} {getattr(model.config, name)}" for name in other)
        unlike = ", ".join(f"backbone.{name} = {getattr(recipe.backbone, name)}" for name in other)
        raise ConfigError(f"{unlike}: init.weights = {recipe.init.weights!r} are of another network; give {flags}")
    if (theirs := model.normalisation) != (own := recipe.data.normalisation):
        flags = " ".join(
            f"--data.normalisation.{name} {' '.join(map(str, getattr(theirs, name)))}" for name in ("mean", "std")
        )
        raise ConfigError(
            f"data.normalisation = {own.dump()}: init.weights = {recipe.init.weights!r} were trained with another; give {flags}"
        )
    return model
