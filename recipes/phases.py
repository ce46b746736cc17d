"""Recipes that begin with another run: the high-resolution phase, and distillation from a frozen teacher.

Each is made of the recipe of the run that the command line names, so that images, method and heads are that run's; without one,
of a DINOv2 preset. What a preset here says, and every other field, is a flag. The presets of runs from scratch are in presets.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from presets import DINOV2

from raydino.config import Config, ConfigError
from raydino.methods.config import DINOv2Shared
from raydino.methods.distillation_config import DistillationConfig, FrozenTeacher
from raydino.recipe import Recipe
from raydino.schedule import Schedule, cosine
from raydino.train.config import InitConfig
from raydino.views import Size, height_width

LENGTH = Schedule.model_fields["length"].annotation


@dataclass(frozen=True)
class HighResolution:
    """A short phase on larger crops: the same procedure, all schedules compressed into it, a lower rate (DINOv2, B.2)."""

    base: str
    """DINOv2 preset that it continues where no run is named."""
    enlarge: float
    """Side of the crops over that of the run; sides become whole patches. The papers give the global side alone, and local crops
    grow with it, so that they show the same share of an image at the same number of pixels."""
    steps: int
    rate: float = 0.25
    """`optim.lr` over that of the run. The papers say "reduced" and no number."""

    def recipe(self, parent: Recipe | None, spec: str = "") -> Recipe:
        """The phase after `parent`, the recipe of the run `spec`."""
        before = compressed(DINOV2[self.base] if parent is None else parent)
        sizes = {
            f"method.{name}.size": enlarged(getattr(before.method, name).size, self.enlarge, before.backbone.patch_size)
            for name in ("global_crops", "local_crops")
        }
        return before.override(
            {
                **sizes,
                "name": f"{before.name}-highres",
                "steps": self.steps,
                "method.curriculum": None,
                "optim.lr": before.optim.lr * self.rate,
                "init": InitConfig() if parent is None else InitConfig(weights=spec, parts="all"),
            }
        )


# 10,000 steps at 518 pixels end every published run; 416 is the ablation on ImageNet-1k, where 10,000 steps were as good as all
# steps at 416 (DINOv2, sections 4 and 6.6). Only "laptop" has been measured here: docs/phases.md.
HIGHRES = {
    "laptop": HighResolution("laptop", enlarge=1.5, steps=60),
    "416": HighResolution("vitl16-short", enlarge=416 / 224, steps=10_000),
    "518": HighResolution("vitl14", enlarge=518 / 224, steps=10_000),
}


@dataclass(frozen=True)
class Student:
    """A smaller network under a frozen teacher, without stochastic depth (DINOv2, section 5 and appendix B)."""

    base: str
    """DINOv2 preset whose network would be the teacher where no run is named."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the teacher's recipe that are the student's own."""

    def recipe(self, parent: Recipe | None, spec: str = "") -> Recipe:
        """Distillation from the run `spec` of recipe `parent`. Raises ConfigError where that is none of DINOv2."""
        before = compressed(DINOV2[self.base] if parent is None else parent)
        if not isinstance(method := before.method, DINOv2Shared):
            raise ConfigError(
                f"--teacher {spec}: a run of {type(method).__name__}, whose heads score no patches; give one of DINOv2."
            )
        shared = {name: getattr(method, name) for name in DINOv2Shared.model_fields}
        teacher = FrozenTeacher(
            weights=spec,
            size=method.global_crops.size,
            backbone=before.backbone,
            head=method.head,
            ibot_head=method.ibot_head,
        )
        return (
            compressed(before)
            .override(
                {
                    "name": f"{before.name}-distilled",
                    "method": DistillationConfig(**shared, teacher=teacher),
                    "init": InitConfig(),
                    "backbone.drop_path": 0.0,
                }
            )
            .override(self.changes)
        )


def _published(name: str) -> Student:
    """Appendix B, tables 16 and 17: 625,000 steps of 2,048 images, a GELU MLP, no stochastic depth."""
    return Student(
        "vitg14",
        {
            "backbone": {"name": name, "width": None, "depth": None, "heads": None, "ffn": "mlp"},
            "steps": 625_000,
            "global_batch": 2048,
            "lanes": 64,
            "method.teacher_momentum": cosine(0.994, 1.0),
            "optim": {"lr": 1e-3 / 2**0.5, "warmup": 100_000 / 625_000, "weight_decay": cosine(0.04, 0.2)},
        },
    )


# The laptop's student has half the teacher's width and a head of half its hidden width. Scores: docs/phases.md.
DISTILL = {
    "laptop": Student("laptop", {"backbone.width": 96, "method.head.hidden": 128}),
    "vits14": _published("vit_small_patch14_dinov2"),
    "vitb14": _published("vit_base_patch14_dinov2"),
    "vitl14": _published("vit_large_patch14_dinov2"),
}


def enlarged(size: Size, by: float, patch: int) -> Size:
    """A size times `by`, in whole patches."""
    height, width = (max(patch, patch * round(side * by / patch)) for side in height_width(size))
    return height if isinstance(size, int) else (height, width)


def compressed(recipe: Recipe) -> Recipe:
    """The recipe with every length in steps as the share that it is of the run, so that `steps` compresses them all."""
    return recipe.override(_shares(recipe, recipe.steps))


def _shares(config: Config, steps: int) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for name, info in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, Config):
            changes |= {f"{name}.{inner}": share for inner, share in _shares(value, steps).items()}
        elif info.annotation == LENGTH and isinstance(value, int) and value:
            changes[name] = min(1.0, value / steps)
    return changes
