"""A run as the beginning of another: which one a command names, and the recipe that it was trained with.

Importing this file loads no torch, because flags of the new run have the old one's values.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from raydino.config import Config, ConfigError, read_yaml_file
from raydino.evals.config import EvaluationConfig
from raydino.launch.resume import RECIPE_FILE
from raydino.launch.terminal.command import SHORT
from raydino.methods.config import DINOConfig, DINOv2Config, MethodConfig, SupervisedConfig
from raydino.methods.distillation_config import DistillationConfig
from raydino.recipe import Recipe

METHODS: tuple[type[MethodConfig], ...] = (DINOConfig, DINOv2Config, DistillationConfig, SupervisedConfig)


def parent_asked(field: str, words: Sequence[str]) -> tuple[Recipe | None, str]:
    """What the flag of `field`, in either spelling, says on a command line, and the recipe of the run that it names; None where
    it names none. Raises ConfigError where that run's recipe cannot be used."""
    spec = ""
    for word, after in pairwise([*words, ""]):
        flag, equals, value = word.partition("=")
        if flag in (SHORT[field], "--" + field.replace("_", "-")):
            spec = value if equals else after
    folder, _ = at_step(spec)
    return recipe_of(folder) if spec and (folder / RECIPE_FILE).is_file() else None, spec


def at_step(spec: str) -> tuple[Path, int | None]:
    """The folder and the step that a spec names; a folder that exists is never cut at an @ in its name."""
    folder, at, step = spec.rpartition("@")
    if at and step.isdecimal() and not Path(spec).exists():
        return Path(folder), int(step)
    return Path(spec), None


def recipe_of(folder: Path) -> Recipe:
    """The recipe that the run in `folder` was last trained with.

    recipe.yaml does not name its classes: a method, and each evaluation, is of the class whose fields it has.

    Raises:
        ConfigError: it is missing, damaged, or of a method that is not one of this version's.
    """
    path = folder / RECIPE_FILE
    data = read_yaml_file(path)
    try:
        method = _of_its_class(METHODS, data["method"], at=f"{path}: method")
        known = list(_below(EvaluationConfig))
        evals = {name: _of_its_class(known, each, at=f"{path}: evals.{name}") for name, each in data["evals"].items()}
        return Recipe(evals={}).override({**data, "method": method, "evals": evals})
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path}: it is of no run ({type(error).__name__}: {error}); give the folder of one."
        ) from error


def _below(kind: type[Config]) -> Iterator[type[Config]]:
    """All classes below one, those of your own too."""
    for each in kind.__subclasses__():
        yield each
        yield from _below(each)


def _of_its_class(known: Sequence[type[Config]], data: dict[str, Any], *, at: str) -> Config:
    """`data` as the config of the class in `known` that has all of its fields and the fewest others."""
    fitting = [kind for kind in known if data.keys() <= kind.model_fields.keys()]
    if not fitting:
        raise ConfigError(f"{at} has the fields {', '.join(data)}, as no class of this version; give another run.")
    return min(fitting, key=lambda kind: len(kind.model_fields))().override(data)
