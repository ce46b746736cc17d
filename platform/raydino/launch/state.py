"""The state that a run has come to, all but its optimiser's, for another run: to go on from, or its teacher to learn from."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from raydino.config import ConfigError
from raydino.launch.lineage import at_step, recipe_of
from raydino.launch.model import saved_state
from raydino.launch.resume import RECIPE_FILE
from raydino.launch.summary import finished
from raydino.methods.distillation import Distillation
from raydino.methods.method import Method, Network
from raydino.nn.weights import at_size, digest_of, load_strictly
from raydino.recipe import Recipe
from raydino.train.verify import CheckpointError

WEIGHTS, ORIGIN = "state.safetensors", "origin.json"
OF_TEACHER = ("teacher.", "centering.", "ibot_centering.")


@dataclass(frozen=True)
class State:
    """Weights of a method by name, and the recipe that they were trained with."""

    run: str
    """Name of the run's folder."""
    step: int
    recipe: Recipe
    weights: Mapping[str, Tensor]

    @property
    def digest(self) -> str:
        """sha256 of the weights (nn/weights.py)."""
        return digest_of(self.weights)

    def of_teacher(self) -> "State":
        """The teacher's weights alone, and its centres."""
        return replace(
            self, weights={name: value for name, value in self.weights.items() if name.startswith(OF_TEACHER)}
        )

    def write(self, folder: Path) -> None:
        """Write it into `folder`, for `read`."""
        save_file(dict(self.weights), folder / WEIGHTS)
        (folder / RECIPE_FILE).write_text(self.recipe.to_yaml())
        (folder / ORIGIN).write_text(json.dumps({"run": self.run, "step": self.step}) + "\n")

    @staticmethod
    def read(folder: Path) -> "State":
        """What `write` left in `folder`. Raises ConfigError where that is missing or damaged."""
        try:
            origin = json.loads((folder / ORIGIN).read_text())
            weights = load_file(folder / WEIGHTS)
            return State(origin["run"], int(origin["step"]), recipe_of(folder), weights)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ConfigError(
                f"{folder}: the copy of another run's weights is damaged ({error}); start the run anew."
            ) from error

    def go_on(self, method: Method) -> None:
        """Load it into a fresh `method` of the same kind, the positions resampled once for its grid. Raises ConfigError."""
        weights = dict(self.weights)
        for name, network in (("student", method.student), ("teacher", method.teacher)):
            weights |= self._backbone(name, network)
        load_strictly(method, weights, origin=f"init.weights = {self.run}@{self.step}")

    def teach(self, method: Distillation) -> None:
        """Load the teacher's networks as the frozen one of `method`, and its centres where both have them. Raises ConfigError."""
        own = {
            name.removeprefix("teacher."): value for name, value in self.weights.items() if name.startswith("teacher.")
        }
        load_strictly(method.frozen, own, origin=f"method.teacher.weights = {self.run}@{self.step}")
        for name, buffer in method.named_buffers():
            if name in self.weights and name.startswith(OF_TEACHER[1:]):
                buffer.copy_(self.weights[name])

    def _backbone(self, name: str, network: Network) -> dict[str, Tensor]:
        """The weights of one network's backbone at the grid of `network`'s."""
        prefix = f"{name}.backbone."
        was = self.recipe.backbone.build(image_size=self.recipe.method.global_crops.size, drop_path=0.0)
        own = {key.removeprefix(prefix): value for key, value in self.weights.items() if key.startswith(prefix)}
        load_strictly(was, own, origin=f"init.weights = {self.run}@{self.step}")
        return {prefix + key: value for key, value in at_size(was, like=network.backbone).items()}


def open_state(spec: str, *, field: str) -> State:
    """The state of the run `RUN`, which is finished, at its newest sound checkpoint, or of `RUN@STEP`.

    Raises:
        ConfigError: it is no run's folder, the run is unfinished and no step is named, or there is no such checkpoint; `field`
            is named.
    """
    folder, step = at_step(spec)
    if not (folder / RECIPE_FILE).is_file():
        raise ConfigError(
            f"{field} = {spec!r}: it is no run's folder (no {RECIPE_FILE} in it); give one, RUN or RUN@STEP."
        )
    if step is None and finished(folder) is None:
        raise ConfigError(
            f"{field} = {spec!r}: that run is not finished; let it finish, or name a step that is to be taken: {spec}@STEP."
        )
    try:
        saved = saved_state(folder, step, "cpu")
    except CheckpointError as error:
        raise ConfigError(f"{field} = {spec!r}: {error}") from error
    return State(folder.resolve().name, saved.step, recipe_of(folder), saved.model)
