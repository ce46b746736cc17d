"""Recipe: everything that changes the result of a run, and nothing about machines (that is launch/cluster.py).

It knows every config class and holds no logic beyond the checks between them. The fingerprint leaves out the name, the
cadence and the guards, so renaming a run or logging more often does not make it another experiment.
"""

import re
from collections.abc import Iterator
from typing import Annotated, Self

from pydantic import Field, model_validator

from raydino.config import Config, in_steps
from raydino.data.config import DataConfig
from raydino.evals.config import EvaluationConfig, KNNConfig
from raydino.methods.config import DINOv2Config, MethodConfig
from raydino.nn.config import BackboneConfig
from raydino.train.config import Cadence, Guards, InitConfig, OptimConfig
from raydino.views import Positive, Views, height_width

NOT_IN_FINGERPRINT = frozenset({"name", "cadence", "guards"})


class Recipe(Config):
    """One experiment."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")] = "dinov2"
    """Name of the run; with the fingerprint it makes the run's directory."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of everything random: weights, order, crops, masks, stochastic depth."""
    steps: Positive = 1000
    """Optimiser steps."""
    global_batch: Positive = 64
    """Images per step over all workers and micro-batches."""
    lanes: Positive = 8
    """Lanes of the order; the same samples come in the same order on every number of workers that divides it."""
    data: DataConfig = DataConfig()
    """Images."""
    backbone: BackboneConfig = BackboneConfig()
    """Network."""
    init: InitConfig = InitConfig()
    """Initial weights."""
    method: MethodConfig = DINOv2Config()
    """Method."""
    optim: OptimConfig = OptimConfig()
    """Optimiser."""
    evals: dict[str, EvaluationConfig] = {"knn": KNNConfig()}
    """Evaluations on the teacher, by name."""
    cadence: Cadence = Cadence()
    """How often to log, evaluate and save."""
    guards: Guards = Guards()
    """What to do about losses that are not finite, spikes, and checkpoints that cannot be saved."""

    @property
    def id(self) -> str:
        """Name and fingerprint: the run's identity, whatever machines it runs on."""
        return f"{self.name}-{self.fingerprint(exclude=NOT_IN_FINGERPRINT)}"

    @property
    def views(self) -> Views:
        """What the method asks to see of an image; under a curriculum, in the end."""
        return self.method.views(self.backbone).override({"fast_crops": self.data.fast_crops})

    def phases(self, start: int = 0, end: int | None = None) -> Iterator[tuple[range, Views]]:
        """Steps [start, end) in stretches whose views have one size, with those views: one stretch without a curriculum, at most
        two with one. `end` None is the run's."""
        end = self.steps if end is None else end
        grown = in_steps(self.method.curriculum.length, self.steps) if self.method.curriculum is not None else 0
        if start < min(grown, end):
            small = self.method.small_views(self.backbone).override({"fast_crops": self.data.fast_crops})
            yield range(start, min(grown, end)), small
        if max(start, grown) < end:
            yield range(max(start, grown), end), self.views

    @property
    def tokens(self) -> int:
        """Tokens of a global crop: cls, registers and patches."""
        rows, columns = self.views.grid
        return 1 + self.backbone.registers + rows * columns

    @property
    def learning_rate(self) -> float:
        """Peak learning rate after scaling with the global batch."""
        scale = {"linear/256": self.global_batch / 256, "sqrt/1024": (self.global_batch / 1024) ** 0.5}
        return self.optim.lr * scale[self.method.learning_rate_batch]

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if self.global_batch % self.lanes:
            near = max(self.lanes, round(self.global_batch / self.lanes) * self.lanes)
            raise ValueError(
                f"global_batch = {self.global_batch} is not a multiple of lanes = {self.lanes}; use {near}, or other lanes"
            )
        self.method.check_network(self.backbone)
        self._check_sizes()
        channels = self.backbone.channels
        given = {name: len(getattr(self.data.normalisation, name)) for name in ("mean", "std")}
        if wrong := {name: count for name, count in given.items() if count not in (1, channels)}:
            counts = " and ".join(f"data.normalisation.{name} has {count}" for name, count in wrong.items())
            raise ValueError(
                f"{counts} entries for backbone.channels = {channels}; give one for each or one for all, such as "
                "--data.normalisation.mean 0.5 --data.normalisation.std 0.25"
            )
        lengths = {
            "optim.warmup": self.optim.warmup,
            "init.frozen_steps": self.init.frozen_steps,
            **{f"method.{name}": length for name, length in self.method.lengths().items()},
        }
        for name, length in lengths.items():
            if in_steps(length, self.steps) >= self.steps > 1:
                raise ValueError(
                    f"{name} = {length} lasts the whole run of {self.steps} steps; shorten it (a float is a share of the run)"
                )
        if wrong := [
            name for name in self.evals if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", name) or ".." in name
        ]:
            raise ValueError(
                f"evals.{wrong[0]}: the name becomes a metric's prefix; use letters, digits and _ - . alone"
            )
        return self

    def _check_sizes(self) -> None:
        """Crops are whole patches, and enough of them to be masked, in every phase of the run. Raises ValueError."""
        patch, small, method = self.backbone.patch_size, self.method.curriculum, self.method
        sizes = {"global_crops.size": method.global_crops.size, "local_crops.size": method.local_crops.size}
        if small is not None:
            if in_steps(small.length, self.steps) > self.steps:
                raise ValueError(
                    f"method.curriculum.length = {small.length} is more than steps = {self.steps}; lower it, or give a share "
                    "of the run such as 0.75"
                )
            sizes |= {"curriculum.global_size": small.global_size, "curriculum.local_size": small.local_size}
        for name, size in sizes.items():
            sides = height_width(size)
            if "local" in name and not method.local_crops.count:
                continue
            if any(side % patch for side in sides):
                near = [max(patch, round(side / patch) * patch) for side in sides]
                use = near[0] if isinstance(size, int) else f"{near[0]} {near[1]}"
                raise ValueError(
                    f"method.{name} = {size} is not a multiple of backbone.patch_size = {patch}; use {use}"
                )
            rows, columns = (side // patch for side in sides)
            if "global" in name and self.views.masks is not None and min(rows, columns) < 2:
                raise ValueError(
                    f"method.{name} = {size} is {rows} x {columns} patches, on which no block can be masked; enlarge it, or set "
                    "method.ibot_weight to 0"
                )
