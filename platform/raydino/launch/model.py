"""One way to name a network: a run, a step of it, its untrained self, published weights, or what was exported.

On this floor because a run's weights are read by train/checkpoint.py, which exports may not import.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from raydino.config import ConfigError, read_yaml_file
from raydino.export.model import Model, frozen, open_timm
from raydino.export.to_safetensors import is_export, read
from raydino.keyed import key64
from raydino.launch.lineage import at_step
from raydino.methods.config import MethodConfig, SelfDistillationConfig
from raydino.methods.method import build_centering
from raydino.nn.config import BackboneConfig
from raydino.nn.weights import load_strictly
from raydino.train.checkpoint import Checkpoint, committed, load, newest, path_of, step_of
from raydino.train.verify import CheckpointError, damage
from raydino.views import Normalisation, Size

PREFIX = "teacher.backbone."  # of its weights in a checkpoint
HEAD, CENTRE = "teacher.head.", "centering."
SPECS = "the folder of a run (RUN or RUN@STEP), random:RUN, timm:NAME or a folder that export.py wrote as safetensors"


def open_model(spec: str, *, device: str | torch.device = "cpu", pretrained: bool = True) -> Model:
    """The network that `spec` names, frozen, in evaluation mode and on `device`.

    `RUN` and `RUN@STEP`: the teacher's backbone of a run's folder, at its newest sound checkpoint or at the one of that step.
    `random:RUN`: the same network as the run's seed initialised it, a baseline that must lose.
    `DIR`: what export.py wrote as safetensors.
    `timm:NAME`: a plain ViT or convolutional network with timm's published weights; random ones where not `pretrained`.

    Raises:
        ConfigError: the spec is of no such form, or what it names is not there or cannot be used.
    """
    kind, colon, rest = spec.partition(":")
    if colon and kind == "timm" and rest:
        return open_timm(rest, device=device, pretrained=pretrained)
    if colon and kind == "random" and rest:
        return _untrained(Path(rest), device)
    if is_export(Path(spec)):
        return read(Path(spec), device=device)
    folder, step = at_step(spec)
    if (folder / "recipe.yaml").is_file():
        return _of_run(folder, step, device)
    raise ConfigError(f"model = {spec!r}: {_what(folder)}; give {SPECS}.")


def teacher_targets(spec: str, *, device: str | torch.device = "cpu") -> Callable[[Tensor], Tensor] | str:
    """What the teacher of a run assigns to cls features [N, D]: targets [N, K], each row summing to 1.

    Its head, centre and temperature are those of the checkpoint that `open_model` takes. With Sinkhorn-Knopp, targets are of
    all N rows together. Where there is no head with prototypes, the reason in words. Raises ConfigError as `open_model`.
    """
    folder, step = at_step(spec)
    if spec.startswith(("timm:", "random:")) or is_export(Path(spec)) or not (folder / "recipe.yaml").is_file():
        return "only the folder of a run has the head"
    recipe = read_yaml_file(folder / "recipe.yaml")
    known = SelfDistillationConfig.model_fields.keys() & {"head", "centering", "center_momentum", "teacher_temperature"}
    if not known <= recipe["method"].keys():
        return "its method has no prototypes"
    if "teacher" in recipe["method"]:
        return "its targets are those of another run's teacher"
    try:
        settings = SelfDistillationConfig().override({key: recipe["method"][key] for key in known})
        saved = saved_state(folder, step, device)
    except CheckpointError as error:
        raise ConfigError(f"model = {str(folder)!r}: {error}") from error
    weights = {key.removeprefix(HEAD): value for key, value in saved.model.items() if key.startswith(HEAD)}
    if not weights:
        return "its checkpoint holds no head"
    head = settings.head.build(next(iter(weights.values())).shape[1]).to(device).eval()
    load_strictly(head, weights, origin=f"model = {str(folder)!r}")
    centering = build_centering(
        settings.centering, prototypes=settings.head.prototypes, momentum=settings.center_momentum
    ).to(device)
    centre = {key.removeprefix(CENTRE): value for key, value in saved.model.items() if key.startswith(CENTRE)}
    load_strictly(centering, centre, origin=f"model = {str(folder)!r}")
    temperature = settings.teacher_temperature.at(max(0, saved.step - 1), steps=int(recipe["steps"]))

    def targets(features: Tensor) -> Tensor:
        with torch.inference_mode():
            return centering(head(features), temperature=temperature)

    return targets


def run_folder(spec: str) -> Path | None:
    """The folder of the run that `spec` is of, None where it is of none."""
    folder, _ = at_step(spec.removeprefix("random:"))
    return folder if (folder / "recipe.yaml").is_file() else None


def _what(path: Path) -> str:
    if not path.exists():
        return "there is no such file or folder"
    return "no recipe.yaml in it" if path.is_dir() else "is a file of another kind"


def _recipe(folder: Path) -> tuple[BackboneConfig, Size, Normalisation, int]:
    """Network, size of its images, their normalisation and the seed, from a run's recipe.

    Part by part: the file does not say which method the recipe is of, and a teacher is the same thing to all.
    """
    if not (folder / "recipe.yaml").is_file():
        raise ConfigError(f"model = {str(folder)!r}: {_what(folder)}; give the folder of a run.")
    recipe = read_yaml_file(folder / "recipe.yaml")
    try:
        backbone = BackboneConfig().override(recipe["backbone"])
        size = MethodConfig().global_crops.override(recipe["method"]["global_crops"]).size
        return backbone, size, Normalisation().override(recipe["data"]["normalisation"]), int(recipe["seed"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"model = {str(folder)!r}: its recipe.yaml is of no run ({error}); give the folder of one."
        ) from error


def _of_run(folder: Path, step: int | None, device: str | torch.device) -> Model:
    config, size, normalisation, _ = _recipe(folder)
    try:
        saved = saved_state(folder, step, device)
    except CheckpointError as error:
        raise ConfigError(f"model = {str(folder)!r}: {error}") from error
    backbone = config.build(image_size=size, drop_path=0.0).to(device)
    weights = {key.removeprefix(PREFIX): value for key, value in saved.model.items() if key.startswith(PREFIX)}
    load_strictly(backbone, weights, origin=f"model = {str(folder)!r}")
    name = f"{folder.resolve().name}@{saved.step}"
    return frozen(name, backbone, config, size=size, normalisation=normalisation, step=saved.step)


def saved_state(folder: Path, step: int | None, device: str | torch.device) -> Checkpoint:
    """The checkpoint of `step`, or the newest sound one. Raises ConfigError where there is none, CheckpointError for damage."""
    checkpoints = folder / "checkpoints"
    steps = [step_of(path) for path in committed(checkpoints)]
    if not steps:
        raise ConfigError(
            f"model = {str(folder)!r}: no checkpoint has been committed yet; wait for the first, or give another run."
        )
    if step is None:
        path, _ = newest(checkpoints)
        assert path is not None, "there is a committed one, and a damaged one would have been named"
        return load(path, device=device)
    if step not in steps:
        raise ConfigError(
            f"model = '{folder}@{step}': no checkpoint of that step is kept; give one of {', '.join(map(str, sorted(steps)))}."
        )
    if (fault := damage(path_of(checkpoints, step))) is not None:
        raise ConfigError(f"model = '{folder}@{step}': damaged ({fault}); give another step of {sorted(steps)}.")
    return load(path_of(checkpoints, step), device=device)


def _untrained(folder: Path, device: str | torch.device) -> Model:
    """The network of a run before its first step: the student's backbone is the first thing that a method draws."""
    config, size, normalisation, seed = _recipe(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key64(seed, "weights"))
        backbone = config.build(image_size=size, drop_path=0.0).to(device)
    name = f"random:{folder.resolve().name}"
    return frozen(name, backbone, config, size=size, normalisation=normalisation, step=0)
