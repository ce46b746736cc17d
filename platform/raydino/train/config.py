"""Settings of the optimiser, of what happens how often, and of what is done when something goes wrong."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from raydino.config import Config, Length
from raydino.schedule import Schedule, cosine


class OptimConfig(Config):
    """The optimiser with the published schedules."""

    optimizer: Literal["adamw", "sgd", "lars"] = "adamw"
    """AdamW for transformers; SGD or LARS for convolutional networks (DINO's official code)."""
    lr: Annotated[float, Field(gt=0)] = 5e-4
    """Peak learning rate before scaling with the batch (see `method.learning_rate_batch`)."""
    min_lr: Annotated[float, Field(ge=0)] = 1e-6
    """Learning rate at the end of the run, not scaled."""
    warmup: Length = 0.1
    """Linear warm-up from 0: steps (int) or share of the run (float)."""
    weight_decay: Schedule = cosine(0.04, 0.4)
    """Weight decay; biases and one-dimensional parameters have none."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's moment decays."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD and LARS."""
    clip: Annotated[float, Field(ge=0)] = 3.0
    """Largest gradient norm (see `method.clip`); 0 for no clipping."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Learning-rate factor per block below the last (DINOv2 short: 0.9)."""
    patch_embed_lr: Annotated[float, Field(gt=0)] = 1.0
    """Learning-rate factor of the patch embedding (DINOv2: 0.2)."""


class InitConfig(Config):
    """Where student and teacher begin: at random, or from known weights."""

    weights: Annotated[str, Field(pattern=r"^[^\x00]*$")] = ""
    """Weights to go on from, as evaluate.py names a model (a run, timm:NAME, a folder of export.py); empty for random ones."""
    parts: Literal["backbone", "all"] = "backbone"
    """What is taken: the backbone, under fresh heads, or of a run all of its last state but the optimiser's: student, teacher,
    heads and centres, as recipes/highres.py does."""
    digest: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    """sha256 of those weights; filled in when the run starts, or given to insist on them."""
    frozen_steps: Length = 0
    """Steps (int) or share of the run (float) at the start in which the backbone stays as loaded while the fresh head learns."""

    @model_validator(mode="after")
    def _only_with_weights(self) -> Self:
        if not self.weights and (self.digest or self.frozen_steps or self.parts == "all"):
            raise ValueError("parts, digest and frozen_steps are about weights; give weights too")
        return self


class Cadence(Config):
    """How often a run logs, evaluates and saves. It does not change the result, so it is not part of the fingerprint."""

    log: Annotated[int, Field(gt=0)] = 10
    """Steps between log lines."""
    evaluate: Length = 0.25
    """Steps (int) or share of the run (float) between evaluations; 0 evaluates only before and after."""
    checkpoint: Length = 0.25
    """Steps (int) or share of the run (float) between checkpoints; the last step always saves one."""
    keep: Annotated[int, Field(ge=2)] = 3
    """Checkpoints to keep."""
    pictures: bool = True
    """Draw the crop sheet at the start and patch PCA and attention maps at every evaluation."""


class Guards(Config):
    """What is done when something goes wrong. A run in which nothing does is the same for all settings, so they are not part of
    the fingerprint."""

    not_finite: Annotated[int, Field(gt=0)] = 3
    """Steps in a row that may have a NaN or infinite loss or gradient: each is skipped, the last of them ends the run. One is an
    odd batch, which DINOv3 lets pass twice as well."""
    spike: Literal["warn", "skip", "stop"] = "warn"
    """What to do about a loss that is a spike: count it and say so, leave the step out like one not finite, or end the run."""
    spike_factor: Annotated[float, Field(gt=1)] = 5.0
    """A loss is a spike above this many times the median of the last 32; in sound runs the most was 3.2, while DINO warms up."""
    save_failures: Annotated[int, Field(gt=0)] = 3
    """Checkpoints in a row that may fail to be saved; the last of them ends the run."""
