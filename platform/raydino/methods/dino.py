"""DINO: self-distillation with no labels (Caron et al. 2021, arXiv 2104.14294).

The teacher looks at the two global crops, the student at all crops; the student learns to predict, from every crop, the teacher's
distribution over prototypes for every *other* global crop. Letters: V views, B images, K prototypes, D width.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from raydino.methods.config import DINOConfig
from raydino.methods.method import SelfDistillation, StepOutput, build_centering, teacher_diagnostics
from raydino.nn.config import BackboneConfig
from raydino.nn.losses import dino_loss
from raydino.views import Batch


class DINO(SelfDistillation):
    """See the module docstring."""

    def __init__(self, config: DINOConfig, backbone: BackboneConfig, *, steps: int) -> None:
        super().__init__(config, backbone, steps=steps, masked=False)
        self.centering = build_centering(
            config.centering, prototypes=config.head.prototypes, momentum=config.center_momentum
        )

    def forward(self, batch: Batch, step: int) -> StepOutput:
        """Losses `dino_global` and `dino_local` of one micro-batch."""
        targets, features = self.teacher_says(batch, step)
        scores = self.student_says(batch)
        on_global, on_local = dino_loss(
            student_scores=scores,
            teacher_probs=targets,
            temperature=self.settings.student_temperature,
            global_views=len(features),
            fused=self.fused_losses,
        )
        diagnostics = teacher_diagnostics(teacher_probs=targets, features=features, cross_entropy=on_global + on_local)
        return StepOutput({"dino_global": on_global, "dino_local": on_local}, diagnostics)

    @torch.no_grad()
    def teacher_says(self, batch: Batch, step: int) -> tuple[Float[Tensor, "T B K"], Float[Tensor, "V B D"]]:
        """Targets for all crops that the teacher sees, global ones first, and cls features for the global ones."""
        crops = batch.crops["global"]
        features = self.teacher.backbone(crops.flatten(0, 1)).cls
        scores = self.teacher.head(self.teacher_cls(batch, features))
        probs = self.centering(scores, temperature=self.teacher_temperature(step))
        return probs.unflatten(0, (-1, batch.images)), features.unflatten(0, crops.shape[:2])

    def student_says(self, batch: Batch) -> Float[Tensor, "V B K"]:
        """Scores for all crops, global ones first. One backbone pass per size, one head pass for all."""
        groups = [batch.crops["global"]]
        if self.settings.local_crops.count:
            groups.append(batch.crops["local"])
        cls = torch.cat([self.student.backbone(crops.flatten(0, 1)).cls for crops in groups])
        return self.student.head(cls).unflatten(0, (-1, batch.images))
