"""DINO with lightly (MIT, found by import), put together as its documentation's example does: every view by itself.

See docs.lightly.ai/examples/dino.html; network, head and crops are the setting's, the optimiser is AdamW as on the other sides.
"""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path

import timm
import torch
from lightly.loss import DINOLoss
from lightly.models.modules import DINOProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms.dino_transform import DINOTransform
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from alternatives.plain import loader
from alternatives.setting import DECAY, MOMENTUM, RATE, STUDENT_TEMPERATURE, TEACHER_TEMPERATURE, Setting


class Photographs(Dataset[list[Tensor]]):
    """JPEGs of a folder through lightly's transform."""

    def __init__(self, folder: Path, setting: Setting) -> None:
        self.files = sorted(folder.glob("*.jpg"))
        self.transform = DINOTransform(
            global_crop_size=setting.large, local_crop_size=setting.small, n_local_views=setting.local
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> list[Tensor]:
        return self.transform(Image.open(self.files[index]).convert("RGB"))


class DINO(nn.Module):
    """Student and teacher."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        sizes = (setting.width, setting.hidden, setting.bottleneck, setting.prototypes)
        self.student_backbone = timm.create_model("vit_tiny_patch16_224", **setting.timm_options)
        self.student_head = DINOProjectionHead(*sizes, freeze_last_layer=0)
        self.teacher_backbone = copy.deepcopy(self.student_backbone)
        self.teacher_head = DINOProjectionHead(*sizes)
        deactivate_requires_grad(self.teacher_backbone)
        deactivate_requires_grad(self.teacher_head)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the student."""
        return self.student_head(self.student_backbone(x).flatten(start_dim=1))

    def forward_teacher(self, x: Tensor) -> Tensor:
        """Scores of the teacher."""
        return self.teacher_head(self.teacher_backbone(x).flatten(start_dim=1))


class Training:
    """A step at a time."""

    def __init__(self, setting: Setting) -> None:
        torch.manual_seed(0)
        self.model = DINO(setting)
        self.criterion = DINOLoss(
            setting.prototypes,
            teacher_temp=TEACHER_TEMPERATURE,
            student_temp=STUDENT_TEMPERATURE,
            warmup_teacher_temp_epochs=5,
        )
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=DECAY)

    def step(self, views: Sequence[Tensor]) -> float:
        """One step; the loss."""
        model = self.model
        update_momentum(model.student_backbone, model.teacher_backbone, m=MOMENTUM)
        update_momentum(model.student_head, model.teacher_head, m=MOMENTUM)
        teacher_out = [model.forward_teacher(view) for view in views[:2]]
        student_out = [model.forward(view) for view in views]
        loss = self.criterion(teacher_out, student_out, epoch=0)
        value = loss.detach()
        loss.backward()
        model.student_head.cancel_last_layer_gradients(current_epoch=0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(value)


def train(setting: Setting, folder: Path, *, workers: int) -> Iterator[float]:
    """The loss of one step after the other."""
    training = Training(setting)
    for views in loader(Photographs(folder, setting), setting, workers=workers):
        yield training.step(views)
