"""The supervised twin: the same backbone, views and budget, but with labels.

It says what labels would have given, as the baseline for studies of self-distillation. Letters: V views, B images, C classes.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from raydino.config import ConfigError
from raydino.methods.config import SupervisedConfig
from raydino.methods.method import Method, Network, StepOutput
from raydino.nn.config import BackboneConfig
from raydino.tracking.run import TRAIN_ACCURACY
from raydino.views import Batch

NO_LABEL = -1


class Supervised(Method):
    """Cross-entropy of every crop's cls token; the teacher is the student's moving average and only judged."""

    settings: SupervisedConfig

    def __init__(self, config: SupervisedConfig, backbone: BackboneConfig, *, steps: int) -> None:
        def network(drop_path: float) -> Network:
            body = backbone.build(image_size=config.global_crops.size, drop_path=drop_path)
            classifier = nn.Linear(body.width, config.classes)
            nn.init.trunc_normal_(classifier.weight, std=0.02)
            nn.init.zeros_(classifier.bias)
            return Network(body, classifier)

        super().__init__(config, network(backbone.drop_path), network(0.0), masked=False, steps=steps)

    def forward(self, batch: Batch, step: int) -> StepOutput:
        """Loss `supervised` of one micro-batch: the mean over all views of all labelled images.

        Raises:
            ConfigError: the batch carries no labels.
        """
        if batch.labels is None:
            raise ConfigError(
                "data.path: these images have no labels; train with recipes/dinov2.py, or give labelled ones"
            )
        scores = torch.cat([self.student_says(crops) for crops in batch.crops.values() if len(crops)])
        labels = batch.labels.expand(len(scores), -1)
        loss = F.cross_entropy(
            scores.float().flatten(0, 1),
            labels.flatten(),
            ignore_index=NO_LABEL,
            label_smoothing=self.settings.label_smoothing,
            reduction="sum",
        ) / (labels != NO_LABEL).sum().clamp(min=1)  # a micro-batch without a label has loss 0, not 0 / 0
        views = len(batch.crops["global"])
        return StepOutput({"supervised": loss}, {TRAIN_ACCURACY: _accuracy(scores[:views], labels[:views])})

    def student_says(self, crops: Float[Tensor, "V B C H W"]) -> Float[Tensor, "V B classes"]:
        """Class scores for crops of one size."""
        return self.student.head(self.student.backbone(crops.flatten(0, 1)).cls).unflatten(0, crops.shape[:2])


@torch.no_grad()
def _accuracy(scores: Float[Tensor, "V B classes"], labels: Int[Tensor, "V B"]) -> Float[Tensor, ""]:
    known = labels != NO_LABEL
    return ((scores.argmax(dim=-1) == labels) & known).sum() / known.sum().clamp(min=1)
