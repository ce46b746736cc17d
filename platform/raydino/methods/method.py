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
from raydino.methods.config import MethodConfig
from raydino.nn.backbone import Backbone
from raydino.nn.centering import Centering, SinkhornKnopp, SoftmaxCentering
from raydino.nn.config import BackboneConfig, HeadConfig
from raydino.nn.ema import update_teacher
from raydino.nn.heads import Head
from raydino.tracking.run import FEATURE_STD, TEACHER_ENTROPY, TEACHER_KL
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

    def __init__(self, backbone: Backbone, head: Head, ibot_head: Head | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.ibot_head = ibot_head
        """A head of its own for patches; None where `head` serves them, or patches are not scored."""


class Method(nn.Module):
    """Student, teacher and the loss between them.

    `forward(batch, step)` computes the losses of one micro-batch; `after_step(step)` moves teacher and centres once
    per optimiser step.
    """

    def __init__(
        self,
        config: MethodConfig,
        backbone: BackboneConfig,
        *,
        steps: int,
        masked: bool,
        ibot_head: HeadConfig | None = None,
    ) -> None:
        super().__init__()
        self.settings = config
        self.steps = steps
        self.student = self._network(backbone, ibot_head, drop_path=backbone.drop_path)
        self.teacher = self._network(backbone, ibot_head, drop_path=0.0)
        self.teacher.load_state_dict(self.student.state_dict())
        for parameter in self.teacher.parameters():
            parameter.requires_grad = False
        if not masked:  # a parameter that no loss reaches would stall the gradient all-reduce
            self.student.backbone.mask_token.requires_grad = False

    def _network(self, backbone: BackboneConfig, ibot_head: HeadConfig | None, *, drop_path: float) -> Network:
        body = backbone.build(image_size=self.settings.global_crops.size, drop_path=drop_path)
        patch_head = ibot_head.build(body.width) if ibot_head is not None else None
        return Network(body, self.settings.head.build(body.width), patch_head)

    def forward(self, batch: Batch, step: int) -> StepOutput:
        """Losses and diagnostics of one micro-batch with float crops."""
        raise TypeError(f"{type(self).__name__} does not define forward")

    def centerings(self) -> list[Centering]:
        """The target normalisers, for `after_step`."""
        return [module for module in self.children() if isinstance(module, Centering)]

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Move the teacher towards the student and the centres towards what the teacher said; after the optimiser's step."""
        update_teacher(teacher=self.teacher, student=self.student, momentum=self.teacher_momentum(step))
        for centering in self.centerings():
            centering.update()

    def encoder(self) -> Backbone:
        """The teacher's backbone: what evaluations judge and exports hand out (DINO, section 3.1)."""
        return self.teacher.backbone

    def teacher_temperature(self, step: int) -> float:
        """Temperature of the teacher's softmax at `step`."""
        return self.settings.teacher_temperature.at(step, steps=self.steps)

    def teacher_momentum(self, step: int) -> float:
        """Weight of the old teacher at `step`."""
        return self.settings.teacher_momentum.at(step, steps=self.steps)

    def last_layer_frozen(self, step: int) -> bool:
        """Whether the prototypes stay as they are at `step`."""
        return step < in_steps(self.settings.freeze_last_layer, self.steps)

    def last_layer(self) -> list[nn.Parameter]:
        """The student's prototypes."""
        return [p for name, p in self.student.named_parameters() if ".prototypes." in name]


def build_centering(kind: Literal["softmax", "sinkhorn_knopp"], *, prototypes: int, momentum: float) -> Centering:
    """The target normaliser named in the config."""
    return SoftmaxCentering(prototypes, momentum) if kind == "softmax" else SinkhornKnopp()


@torch.no_grad()
def teacher_diagnostics(
    *, teacher_probs: Float[Tensor, "T B K"], features: Float[Tensor, "T B D"], cross_entropy: Tensor
) -> dict[str, Tensor]:
    """Entropy of the targets, KL from teacher to student, spread of the features (DINO, section 5.3).

    KL -> 0 means collapse; entropy -> 0 tells that one prototype took all (no centring), -> ln K that all are alike
    (no sharpening). `health/feature_std` is 1 for features spread evenly over the sphere and 0 for constant ones.
    """
    entropy = torch.special.entr(teacher_probs).sum(dim=-1).mean()
    flat = F.normalize(features.float().flatten(0, 1), dim=-1)
    return {
        TEACHER_ENTROPY: entropy,
        TEACHER_KL: cross_entropy.detach() - entropy,
        FEATURE_STD: flat.std(dim=0).mean() * flat.shape[1] ** 0.5,
    }
