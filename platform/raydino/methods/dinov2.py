"""DINOv2: DINO on masked crops, plus iBOT on the masked patches and KoLeo (Oquab et al. 2023, arXiv 2304.07193, section 4).

The teacher sees whole global crops. The student sees them with patches masked, and the local crops. Three losses:
the cls token must
agree across crops (DINO), each masked patch must be told from its surroundings (iBOT), the cls features of a batch
must spread (KoLeo).
Letters: V global views, L local views, B images, P patches, M masked patches in the micro-batch, K prototypes, D width.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from raydino.methods.config import DINOv2Config
from raydino.methods.method import SelfDistillation, StepOutput, build_centering, teacher_diagnostics
from raydino.nn.config import BackboneConfig
from raydino.nn.losses import dino_loss, ibot_loss, koleo_loss
from raydino.tracking.run import DISPLAYED_GROUP
from raydino.views import Batch


@dataclass(frozen=True)
class Said:
    """What a network says of a micro-batch; for the teacher probabilities, for the student scores."""

    cls: Float[Tensor, "views B K"]
    patches: Float[Tensor, "M K"] | None
    features: Float[Tensor, "V B D"]


class DINOv2(SelfDistillation):
    """See the module docstring."""

    settings: DINOv2Config  # pyright: ignore[reportIncompatibleVariableOverride] never assigned again, so a subclass will do

    def __init__(self, config: DINOv2Config, backbone: BackboneConfig, *, steps: int) -> None:
        masked = config.ibot_weight > 0
        ibot_head = config.ibot_head if masked else None
        super().__init__(config, backbone, steps=steps, masked=masked, ibot_head=ibot_head)
        self.masked = masked
        self.centering = build_centering(
            config.centering, prototypes=config.head.prototypes, momentum=config.center_momentum
        )
        # one for patches too where no loss asks for them: it costs K floats and spares every reader a None
        self.ibot_centering = build_centering(
            config.centering, prototypes=(ibot_head or config.head).prototypes, momentum=config.center_momentum
        )

    def forward(self, batch: Batch, step: int) -> StepOutput:
        """Losses `dino_global`, `dino_local`, `ibot` and `koleo` of one micro-batch."""
        masks = None
        if self.masked and batch.masks is not None:
            masks = batch.masks.flatten(0, 1)
            batch = batch if batch.masked is not None else batch.to(masks.device)
        teacher = self.teacher_says(batch, masks, step)
        student = self.student_says(batch, masks)
        return self.losses(teacher, student, masks, batch.masked)

    @torch.no_grad()
    def teacher_says(self, batch: Batch, masks: Bool[Tensor, "VB P"] | None, step: int) -> Said:
        """Targets for the whole global crops: cls tokens, and the patches that the student will not see."""
        crops, temperature = batch.crops["global"], self.teacher_temperature(step)
        tokens = self.teacher.backbone(crops.flatten(0, 1))
        cls = self.centering(self.teacher.head(self.teacher_cls(batch, tokens.cls)), temperature=temperature)
        patches = None
        if masks is not None:
            ibot_head = self.teacher.ibot_head or self.teacher.head
            patches = self.ibot_centering(
                ibot_head(tokens.patches.flatten(0, 1)[batch.masked]), temperature=temperature
            )
        return Said(cls.unflatten(0, (-1, batch.images)), patches, tokens.cls.unflatten(0, crops.shape[:2]))

    def student_says(self, batch: Batch, masks: Bool[Tensor, "VB P"] | None) -> Said:
        """Scores for masked global crops, local crops and masked patches; one head pass for all that share a head."""
        crops, student = batch.crops["global"], self.student
        tokens = student.backbone(crops.flatten(0, 1), masks)
        cls = tokens.cls
        if self.settings.local_crops.count:
            cls = torch.cat([cls, student.backbone(batch.crops["local"].flatten(0, 1)).cls])
        if masks is None:
            scores, patches = student.head(cls), None
        elif student.ibot_head is not None:
            scores, patches = student.head(cls), student.ibot_head(tokens.patches.flatten(0, 1)[batch.masked])
        else:
            hidden = tokens.patches.flatten(0, 1)[batch.masked]
            scores, patches = student.head(torch.cat([cls, hidden])).split([len(cls), len(hidden)])
        return Said(scores.unflatten(0, (-1, batch.images)), patches, tokens.cls.unflatten(0, crops.shape[:2]))

    def losses(
        self, teacher: Said, student: Said, masks: Bool[Tensor, "VB P"] | None, masked: Int[Tensor, " M"] | None
    ) -> StepOutput:
        """The weighted losses between what the teacher and the student said."""
        config = self.settings
        on_global, on_local = dino_loss(
            student_scores=student.cls,
            teacher_probs=teacher.cls,
            temperature=config.student_temperature,
            global_views=len(teacher.features),
        )
        losses = {"dino_global": config.dino_weight * on_global, "dino_local": config.dino_weight * on_local}
        if masks is not None and student.patches is not None and teacher.patches is not None:
            hidden = masks.sum(dim=1, keepdim=True)  # masked patches per crop
            weights = (1.0 / hidden.clamp(min=1)).expand_as(masks).flatten()[masked]
            losses["ibot"] = config.ibot_weight * ibot_loss(
                student_scores=student.patches,
                teacher_probs=teacher.patches,
                weights=weights,
                crops=len(masks),
                temperature=config.student_temperature,
            )
        if config.koleo_weight > 0:
            losses["koleo"] = config.koleo_weight * torch.stack([koleo_loss(view) for view in student.features]).sum()
        diagnostics = teacher_diagnostics(
            teacher_probs=teacher.cls, features=teacher.features, cross_entropy=on_global + on_local
        )
        return StepOutput(losses, {**diagnostics, **_displayed(losses)})


def _displayed(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """The losses as DINOv2's official logs show them: iBOT and KoLeo halved, one half per global view; the total is of those.

    Published curves and figures (ibot 2.77 at the first step with K = 65,536) are in this unit; what is optimised is whole.
    """
    shown = {name: value.detach() / (2 if name in ("ibot", "koleo") else 1) for name, value in losses.items()}
    shown["total"] = torch.stack(list(shown.values())).sum()
    return {f"{DISPLAYED_GROUP}/{name}": value for name, value in shown.items()}
