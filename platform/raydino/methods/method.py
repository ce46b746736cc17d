"""What a method is to the rest of raydino: a module with a student, a teacher, and a forward pass that returns named losses.

A step reads as three parts in every method: what the teacher says, what the student says, the losses between them.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from raydino.config import in_steps
from raydino.methods.config import MethodConfig, SelfDistillationConfig
from raydino.nn.backbone import Backbone
from raydino.nn.centering import Centering, NoCentering, SinkhornKnopp, SoftmaxCentering
from raydino.nn.config import BackboneConfig, HeadConfig
from raydino.nn.ema import update_teacher
from raydino.nn.heads import Head
from raydino.tracking.run import (
    FEATURE_STD,
    PROTOTYPES_USED,
    TEACHER_ENTROPY,
    TEACHER_KL,
    TEACHER_MOMENTUM,
    TEACHER_TEMPERATURE,
)
from raydino.views import Batch


@dataclass(frozen=True)
class StepOutput:
    """What one forward pass yields."""

    losses: dict[str, Tensor]
    """Scalars by name, already weighted: the loss is their plain sum."""
    diagnostics: dict[str, Tensor] = field(default_factory=dict)
    """Scalars by metric name, without gradient."""


class Network(nn.Module):
    """What student and teacher are each made of."""

    def __init__(self, backbone: Backbone, head: nn.Module, ibot_head: Head | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.ibot_head = ibot_head
        """A head of its own for patches; None where `head` serves them, or patches are not scored."""


class Method(nn.Module):
    """Student, teacher and the loss between them.

    `forward(batch, step)` computes the losses of one micro-batch; `after_step(step)` moves the teacher once per optimiser step.
    """

    fused_losses = False
    """Whether a Triton kernel computes the losses over prototypes: where it runs, and no matter of the recipe."""

    def __init__(self, config: MethodConfig, student: Network, teacher: Network, *, masked: bool, steps: int) -> None:
        super().__init__()
        self.settings = config
        self.steps = steps
        self.student = student
        self.teacher = teacher
        self.teacher.load_state_dict(self.student.state_dict())
        for parameter in self.teacher.parameters():
            parameter.requires_grad = False
        if not masked:
            self.student.backbone.forgo_masks()

    def forward(self, batch: Batch, step: int) -> StepOutput:
        """Losses and diagnostics of one micro-batch with float crops."""
        raise TypeError(f"{type(self).__name__} does not define forward")

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Move the teacher towards the student; after the optimiser's step. All ranks call it together."""
        update_teacher(teacher=self.teacher, student=self.student, momentum=self.teacher_momentum(step))

    def forget_step(self) -> None:
        """Drop what forward passes have gathered for `after_step`: the step is skipped. All ranks call it together."""

    def networks(self) -> list[Network]:
        """The student, the teacher, and any other network that it holds."""
        return [part for part in self.children() if isinstance(part, Network)]

    def encoder(self) -> Backbone:
        """The teacher's backbone: what evaluations judge and exports hand out (DINO, section 3.1)."""
        return self.teacher.backbone

    def teacher_momentum(self, step: int) -> float:
        """Weight of the old teacher at `step`."""
        return self.settings.teacher_momentum.at(step, steps=self.steps)

    def scheduled(self, step: int) -> dict[str, float]:
        """The method's scheduled values at `step`, by metric name."""
        return {TEACHER_MOMENTUM: self.teacher_momentum(step)}

    def last_layer_frozen(self, step: int) -> bool:
        """Whether the prototypes stay as they are at `step`."""
        return False


class SelfDistillation(Method):
    """What DINO and DINOv2 share: heads with prototypes, a teacher temperature, and centres that follow the teacher's scores."""

    settings: SelfDistillationConfig

    def __init__(
        self,
        config: SelfDistillationConfig,
        backbone: BackboneConfig,
        *,
        steps: int,
        masked: bool,
        ibot_head: HeadConfig | None = None,
    ) -> None:
        def network(drop_path: float) -> Network:
            body = backbone.build(image_size=config.global_crops.size, drop_path=drop_path, masked=masked)
            patch_head = ibot_head.build(body.width) if ibot_head is not None else None
            return Network(body, config.head.build(body.width), patch_head)

        super().__init__(config, network(backbone.drop_path), network(0.0), masked=masked, steps=steps)

    @property
    def teaching(self) -> Network:
        """The network whose targets the student learns."""
        return self.teacher

    def centerings(self) -> list[Centering]:
        """The target normalisers, for `after_step`."""
        return [module for module in self.children() if isinstance(module, Centering)]

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Move the teacher towards the student and the centres towards what the teacher said; after the optimiser's step."""
        super().after_step(step)
        for centering in self.centerings():
            centering.update()

    def forget_step(self) -> None:
        """Drop what the centres have seen of the step."""
        for centering in self.centerings():
            centering.forget()

    def teacher_cls(self, batch: Batch, on_global: Float[Tensor, "VB D"]) -> Float[Tensor, "views_B D"]:
        """The teacher's cls features of all crops it is to see: `on_global` as they are, those of local crops after them."""
        if self.settings.teacher_sees == "global" or not self.settings.local_crops.count:
            return on_global
        return torch.cat([on_global, self.teaching.backbone(batch.crops["local"].flatten(0, 1)).cls])

    def teacher_temperature(self, step: int) -> float:
        """Temperature of the teacher's softmax at `step`."""
        return self.settings.teacher_temperature.at(step, steps=self.steps)

    def scheduled(self, step: int) -> dict[str, float]:
        """The method's scheduled values at `step`, by metric name."""
        return {**super().scheduled(step), TEACHER_TEMPERATURE: self.teacher_temperature(step)}

    def last_layer_frozen(self, step: int) -> bool:
        """Whether the prototypes stay as they are at `step`."""
        return step < in_steps(self.settings.freeze_last_layer, self.steps)


def build_centering(
    kind: Literal["softmax", "sinkhorn_knopp", "none"], *, prototypes: int, momentum: float
) -> Centering:
    """The target normaliser named in the config."""
    if kind == "none":
        return NoCentering()
    return SoftmaxCentering(prototypes, momentum) if kind == "softmax" else SinkhornKnopp()


@torch.no_grad()
def teacher_diagnostics(
    *, teacher_probs: Float[Tensor, "T B K"], features: Float[Tensor, "V B D"], cross_entropy: Tensor
) -> dict[str, Tensor]:
    """Entropy of the targets, KL from teacher to student, use of the prototypes, spread of the features (DINO, section 5.3).

    KL -> 0 means collapse; entropy -> 0 tells that one prototype took all (no centring), -> ln K that all are alike
    (no sharpening). `teacher/prototypes_used` is the perplexity of the mean target: 1 if all views of this micro-batch go to one
    prototype, at most K. `health/feature_std` is 1 for features spread evenly over the sphere and 0 for constant ones.
    """
    entropy = torch.special.entr(teacher_probs).sum(dim=-1).mean()
    used = torch.special.entr(teacher_probs.mean(dim=(0, 1))).sum().exp()
    flat = F.normalize(features.float().flatten(0, 1), dim=-1)
    return {
        TEACHER_ENTROPY: entropy,
        TEACHER_KL: cross_entropy.detach() - entropy,
        PROTOTYPES_USED: used,
        FEATURE_STD: flat.std(dim=0).mean() * flat.shape[1] ** 0.5,
    }
