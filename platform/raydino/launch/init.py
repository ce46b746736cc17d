"""Going on from known weights: student and teacher are loaded before step 0, their backbones under fresh heads or all of a run's
last state; and the frozen teacher of a distillation, before every start.

The digest of the weights goes into the recipe, so other weights under the same name make another run. The run keeps a copy
beside its checkpoints: every node finds it there, and a restart does not ask for them again.
"""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from raydino.config import ConfigError
from raydino.methods.distillation_config import DistillationConfig
from raydino.recipe import Recipe
from raydino.views import Normalisation

if TYPE_CHECKING:
    from raydino.export.model import Model
    from raydino.launch.state import State
    from raydino.methods.method import Method

FOLDER, TEACHER = "init", "teacher"
"""In a run's folder: the initial weights, and the frozen teacher."""
SAME = ("name", "channels", "patch_size", "width", "depth", "heads", "ffn", "registers", "position_resampling")
"""Fields of `backbone` that must be those of the weights; the others are of training."""
SAME_METHOD = ("head", "ibot_head", "centering", "classes")
"""Fields of `method` that must be those of a run whose whole state is taken."""


def settled(recipe: Recipe) -> Recipe:
    """The recipe with the digests of its initial weights and frozen teacher, which are opened unless it has them; any other as
    it is.

    Raises:
        ConfigError: there are no such weights, or they are of another network or normalisation than the recipe.
    """
    changes = {}
    if recipe.init.weights and not recipe.init.digest:
        changes["init.digest"] = _opened(recipe).digest
    if isinstance(method := recipe.method, DistillationConfig) and not method.teacher.digest:
        changes["method.teacher.digest"] = _opened_teacher(recipe, method).digest
    return recipe.override(changes) if changes else recipe


def keep(recipe: Recipe, run_dir: Path) -> None:
    """Copy the initial weights of `recipe` and its frozen teacher, as far as it has them, into the run's folder, once.

    Raises ConfigError, also for a digest that is not the recipe's."""
    from raydino.export.to_safetensors import write
    from raydino.launch.state import State

    def initial(folder: Path) -> None:
        opened = _opened(recipe)
        _require("init.digest", recipe.init.digest, f"init.weights = {recipe.init.weights!r}", opened.digest)
        opened.write(folder) if isinstance(opened, State) else write(opened, folder)

    def teacher(folder: Path, method: DistillationConfig) -> None:
        opened, own = _opened_teacher(recipe, method), method.teacher
        _require("method.teacher.digest", own.digest, f"method.teacher.weights = {own.weights!r}", opened.digest)
        opened.write(folder)

    if recipe.init.weights:
        _once(run_dir / FOLDER, initial)
    if isinstance(method := recipe.method, DistillationConfig):
        _once(run_dir / TEACHER, lambda folder: teacher(folder, method))


def begin_from(method: "Method", run_dir: Path, recipe: Recipe, *, fresh: bool = True) -> None:
    """Load the copies of `keep` into `method`, before it is distributed: the frozen teacher, and for a `fresh` run, which is not
    about to take up a checkpoint, the initial weights. Raises ConfigError."""
    from raydino.launch.state import State
    from raydino.methods.distillation import Distillation

    if isinstance(method, Distillation):
        teacher = State.read(run_dir / TEACHER)
        own = method.settings.teacher.digest  # pyright: ignore[reportAttributeAccessIssue] a distillation has one
        _require("method.teacher.digest", own, f"{run_dir / TEACHER}", teacher.digest)
        teacher.teach(method)
    if fresh and recipe.init.weights and recipe.init.parts == "all":
        state = State.read(run_dir / FOLDER)
        _require("init.digest", recipe.init.digest, f"{run_dir / FOLDER}", state.digest)
        state.go_on(method)
    elif fresh and recipe.init.weights:
        _load_backbone(method, run_dir, recipe)


def _load_backbone(method: "Method", run_dir: Path, recipe: Recipe) -> None:
    from raydino.export.to_safetensors import read
    from raydino.nn.weights import at_size, load_strictly

    model = read(run_dir / FOLDER)
    for network in (method.student, method.teacher):
        weights = at_size(model.backbone, like=network.backbone)
        load_strictly(network.backbone, weights, origin=f"init.weights = {recipe.init.weights!r}")


def _once(folder: Path, fill: Callable[[Path], None]) -> None:
    """Fill a folder that is not there yet, beside it, so that half a copy is never taken for one."""
    if folder.is_dir():
        return
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as beside:
        fill(Path(beside))
        shutil.copytree(beside, (whole := folder.with_name(f".{folder.name}.tmp")), dirs_exist_ok=True)
    whole.rename(folder)


def _require(field: str, given: str, origin: str, found: str) -> None:
    if given not in ("", found):
        raise ConfigError(
            f"{field} = {given}: {origin} has {found}; give these weights as they were, or leave the digest out for a run from "
            "the present ones."
        )


def _opened(recipe: Recipe) -> "Model | State":
    if recipe.init.parts == "all":
        return _opened_state(recipe)
    from raydino.launch.model import open_model

    model, origin = open_model(recipe.init.weights), f"init.weights = {recipe.init.weights!r}"
    if other := [name for name in SAME if getattr(model.config, name) != getattr(recipe.backbone, name)]:
        flags = " ".join(f"--backbone.{name.replace('_', '-')} {getattr(model.config, name)}" for name in other)
        unlike = ", ".join(f"backbone.{name} = {getattr(recipe.backbone, name)}" for name in other)
        raise ConfigError(f"{unlike}: {origin} are of another network; give {flags}")
    _check_normalisation(recipe, model.normalisation, origin)
    return model


def _opened_state(recipe: Recipe) -> "State":
    """The whole state of the run that `init.weights` names, which is one of the same networks and method."""
    from raydino.launch.state import open_state

    state, origin = open_state(recipe.init.weights, field="init.weights"), f"init.weights = {recipe.init.weights!r}"
    theirs, own = state.recipe, recipe
    if type(theirs.method) is not type(own.method):
        raise ConfigError(
            f"init.parts = all: {origin} is a run of {type(theirs.method).__name__} and this one of {type(own.method).__name__}; "
            "give a run of the same, or init.parts backbone."
        )
    pairs = {f"backbone.{name}": (getattr(own.backbone, name), getattr(theirs.backbone, name)) for name in SAME}
    for name in SAME_METHOD:
        pairs[f"method.{name}"] = (getattr(own.method, name, None), getattr(theirs.method, name, None))
    if other := {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}:
        unlike = "; ".join(f"{name} = {_short(now)}, and it has {_short(was)}" for name, (now, was) in other.items())
        raise ConfigError(
            f"{unlike}: init.parts = all takes up all of {origin}; leave {', '.join(other)} as that run has it."
        )
    _check_normalisation(recipe, theirs.data.normalisation, origin)
    return state


def _opened_teacher(recipe: Recipe, method: DistillationConfig) -> "State":
    """The frozen teacher, whose run is as the recipe says."""
    from raydino.launch.state import open_state
    from raydino.methods.config import DINOv2Shared

    own = method.teacher
    if not own.weights:
        raise ConfigError(
            "method.teacher.weights = '': a distillation needs a teacher; train one (python recipes/dinov2.py) and give its "
            "folder as --teacher runs/RUN."
        )
    state, origin = open_state(own.weights, field="method.teacher.weights"), f"method.teacher.weights = {own.weights!r}"
    theirs = state.recipe
    if not isinstance(theirs.method, DINOv2Shared):
        raise ConfigError(
            f"{origin}: a run of {type(theirs.method).__name__}, whose heads score no patches; give one of DINOv2."
        )
    if method.ibot_weight > 0 and theirs.method.ibot_weight == 0:
        raise ConfigError(
            f"method.ibot_weight = {method.ibot_weight}: {origin} never learned to score patches (its own is 0); set it to 0"
        )
    pairs = {f"backbone.{name}": (getattr(own.backbone, name), getattr(theirs.backbone, name)) for name in SAME}
    pairs |= {name: (getattr(own, name), getattr(theirs.method, name)) for name in ("head", "ibot_head")}
    pairs["size"] = (own.size, theirs.method.global_crops.size)
    if other := {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}:
        unlike = "; ".join(
            f"method.teacher.{name} = {_short(now)}, and it has {_short(was)}" for name, (now, was) in other.items()
        )
        raise ConfigError(
            f"{unlike}: {origin} is another network; leave these out, recipes/distill.py --teacher RUN fills them in."
        )
    _check_normalisation(recipe, theirs.data.normalisation, origin)
    return state.of_teacher()


def _short(value: object) -> object:
    return value.dump() if hasattr(value, "dump") else value  # pyright: ignore[reportAttributeAccessIssue] just asked


def _check_normalisation(recipe: Recipe, theirs: Normalisation, origin: str) -> None:
    if theirs != (own := recipe.data.normalisation):
        flags = " ".join(
            f"--data.normalisation.{name} {' '.join(map(str, getattr(theirs, name)))}" for name in ("mean", "std")
        )
        raise ConfigError(f"data.normalisation = {own.dump()}: {origin} were trained with another; give {flags}")
