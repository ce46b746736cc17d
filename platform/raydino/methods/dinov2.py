"""DINOv2: DINO on masked crops, plus iBOT on the masked patches and KoLeo (Oquab et al. 2023, arXiv 2304.07193, section 4).

The teacher sees whole global crops. The student sees them with patches masked, and the local crops. Three losses:
the cls token must
agree across crops (DINO), each masked patch must be told from its surroundings (iBOT), the cls features of a batch
must spread (KoLeo).
Letters: V global views, L local views, B images, P patches, M masked patches in the micro-batch, K prototypes, D width.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from raydino.methods.config import DINOv2Shared
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


@dataclass(frozen=True)
class Asked:
    """The patches that the student is asked about, those of all global crops in a row."""

    hidden: Bool[Tensor, "VB P"] | None
    """Which the student does not see; None where it sees all."""
    rows: Int[Tensor, " M"] | slice
    """Which it is asked about."""
    weights: Float[Tensor, " M"]
    """1 over the number that its crop has of them."""
    crops: int
    """V B, also those with none."""
    valid: Bool[Tensor, " M"] | None = None
    """Which of `rows` count; the others, of weight 0, are there for the sake of M. None: all."""


class DINOv2(SelfDistillation):
    """See the module docstring."""

    settings: DINOv2Shared  # pyright: ignore[reportIncompatibleVariableOverride] never assigned again, so a subclass will do
    masked: ClassVar[bool] = True
    """Whether patches that the student is asked about are hidden from it."""

    def __init__(self, config: DINOv2Shared, backbone: BackboneConfig, *, steps: int) -> None:
        scored = config.ibot_weight > 0
        ibot_head = config.ibot_head if scored else None
        super().__init__(config, backbone, steps=steps, masked=scored and self.masked, ibot_head=ibot_head)
        self.centering = build_centering(
            config.centering, prototypes=config.head.prototypes, momentum=config.center_momentum
        )
        # one for patches too where no loss asks for them: it costs K floats and spares every reader a None
        self.ibot_centering = build_centering(
            config.centering, prototypes=(ibot_head or config.head).prototypes, momentum=config.center_momentum
        )

    def forward(self, batch: Batch, step: int) -> StepOutput:
        """Losses `dino_global`, `dino_local`, `ibot` and `koleo` of one micro-batch."""
        asked = self.asks(batch) if self.settings.ibot_weight > 0 else None
        teacher = self.teacher_says(batch, asked, step)
        student = self.student_says(batch, asked)
        return self.losses(teacher, student, asked)

    def asks(self, batch: Batch) -> Asked | None:
        """The masked patches; None for a batch without masks."""
        if batch.masks is None:
            return None
        masks = batch.masks.flatten(0, 1)
        rows = batch.masked if batch.masked is not None else batch.to(masks.device).masked
        assert rows is not None, "there are masks"
        hidden = masks.sum(dim=1, keepdim=True)  # masked patches per crop
        weights = (masks / hidden.clamp(min=1)).flatten()[rows]
        return Asked(masks, rows, weights, crops=len(masks), valid=None if batch.most_masked is None else weights > 0)

    @torch.no_grad()
    def teacher_says(self, batch: Batch, asked: Asked | None, step: int) -> Said:
        """Targets for the whole global crops: cls tokens, and the patches that the student is asked about."""
        crops, temperature, teacher = batch.crops["global"], self.teacher_temperature(step), self.teaching
        tokens = teacher.backbone(crops.flatten(0, 1))
        cls = self.centering(teacher.head(self.teacher_cls(batch, tokens.cls)), temperature=temperature)
        patches = None
        if asked is not None:
            ibot_head = teacher.ibot_head or teacher.head
            scores = ibot_head(tokens.patches.flatten(0, 1)[asked.rows])
            patches = self.ibot_centering(scores, temperature=temperature, valid=asked.valid)
        return Said(cls.unflatten(0, (-1, batch.images)), patches, tokens.cls.unflatten(0, crops.shape[:2]))

    def student_says(self, batch: Batch, asked: Asked | None) -> Said:
        """Scores for global crops, local crops and the patches asked about; one head pass for all that share a head."""
        crops, student = batch.crops["global"], self.student
        tokens = student.backbone(crops.flatten(0, 1), None if asked is None else asked.hidden)
        cls = tokens.cls
        if self.settings.local_crops.count:
            cls = torch.cat([cls, student.backbone(batch.crops["local"].flatten(0, 1)).cls])
        if asked is None:
            scores, patches = student.head(cls), None
        elif student.ibot_head is not None:
            scores, patches = student.head(cls), student.ibot_head(tokens.patches.flatten(0, 1)[asked.rows])
        else:
            rows = tokens.patches.flatten(0, 1)[asked.rows]
            both = student.head(torch.cat([cls, rows]))
            # "unsafe": autograd need not watch the whole, which nothing else reads, when the losses overwrite its parts
            scores, patches = torch.unsafe_split_with_sizes(both, [len(cls), len(rows)])
        return Said(scores.unflatten(0, (-1, batch.images)), patches, tokens.cls.unflatten(0, crops.shape[:2]))

    def losses(self, teacher: Said, student: Said, asked: Asked | None) -> StepOutput:
        """The weighted losses between what the teacher and the student said."""
        config = self.settings
        on_global, on_local = dino_loss(
            student_scores=student.cls,
            teacher_probs=teacher.cls,
            temperature=config.student_temperature,
            global_views=len(teacher.features),
            fused=self.fused_losses,
        )
        losses = {"dino_global": config.dino_weight * on_global, "dino_local": config.dino_weight * on_local}
        if asked is not None and student.patches is not None and teacher.patches is not None:
            losses["ibot"] = config.ibot_weight * ibot_loss(
                student_scores=student.patches,
                teacher_probs=teacher.patches,
                weights=asked.weights,
                crops=asked.crops,
                temperature=config.student_temperature,
                fused=self.fused_losses,
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
