"""DINO in plain torch, as its paper and settings say: PIL crops in a DataLoader, one pass per resolution, the loss pair by pair.

Written from a description of the official code, its structure kept where it costs time: a log-softmax for every pair of views,
clipping and moving average tensor by tensor, the loss read by the host at every step.
"""

import io
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms as T

from alternatives.setting import (
    CLIP,
    DECAY,
    GLOBAL_SCALE,
    LOCAL_SCALE,
    MEAN,
    MOMENTUM,
    RATE,
    STD,
    STUDENT_TEMPERATURE,
    TEACHER_TEMPERATURE,
    Setting,
)


class Blur:
    """PIL's Gaussian blur of a random radius."""

    def __call__(self, image: Image.Image) -> Image.Image:
        """The image, blurred."""
        return image.filter(ImageFilter.GaussianBlur(float(torch.empty(1).uniform_(0.1, 2.0))))


def view(*, size: int, scale: tuple[float, float], blur: float, solarize: float) -> T.Compose:
    """The chain of one crop."""
    return T.Compose(
        [
            T.RandomResizedCrop(size, scale=scale, interpolation=T.InterpolationMode.BICUBIC),
            T.RandomHorizontalFlip(0.5),
            T.RandomApply([T.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            T.RandomGrayscale(0.2),
            T.RandomApply([Blur()], p=blur),
            T.RandomApply([T.Lambda(ImageOps.solarize)], p=solarize),
            T.ToTensor(),
            T.Normalize(MEAN, STD),
        ]
    )


class Photographs(Dataset[list[Tensor]]):
    """The crops of the JPEGs in a folder."""

    def __init__(self, folder: Path, setting: Setting) -> None:
        self.files = sorted(folder.glob("*.jpg"))
        first = view(size=setting.large, scale=GLOBAL_SCALE, blur=1.0, solarize=0.0)
        second = view(size=setting.large, scale=GLOBAL_SCALE, blur=0.1, solarize=0.2)
        local = view(size=setting.small, scale=LOCAL_SCALE, blur=0.5, solarize=0.0)
        self.views = [first, second, *[local] * setting.local]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> list[Tensor]:
        image = Image.open(io.BytesIO(self.files[index].read_bytes())).convert("RGB")
        return [view(image) for view in self.views]


class Head(nn.Module):
    """MLP, normalised bottleneck, weight-normed prototypes of length one."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        width, hidden, bottleneck = setting.width, setting.hidden, setting.bottleneck
        self.mlp = nn.Sequential(
            *(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck))
        )
        last = nn.utils.weight_norm(nn.Linear(bottleneck, setting.prototypes, bias=False))
        last.weight_g.data.fill_(1)
        last.weight_g.requires_grad = False
        self.last_layer = last

    def forward(self, x: Tensor) -> Tensor:
        """Scores."""
        return self.last_layer(F.normalize(self.mlp(x), dim=-1))


class MultiCrop(nn.Module):
    """Backbone and head over crops of several sizes: one backbone pass per size, one head pass for all."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.backbone = timm.create_model("vit_tiny_patch16_224", **setting.timm_options)
        self.head = Head(setting)

    def forward(self, crops: Sequence[Tensor]) -> Tensor:
        """Scores of all crops, view by view."""
        sides = [crop.shape[-1] for crop in crops]
        passes = [
            self.backbone(torch.cat([crop for crop, s in zip(crops, sides, strict=True) if s == side]))
            for side in dict.fromkeys(sides)
        ]
        return self.head(torch.cat(passes))


class PairLoss(nn.Module):
    """Cross-entropy of every pair of a teacher and another student view, and the centre."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.views = 2 + setting.local
        self.register_buffer("center", torch.zeros(1, setting.prototypes))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The mean over pairs."""
        targets = F.softmax((teacher - self.center) / TEACHER_TEMPERATURE, dim=-1).detach().chunk(2)
        total, pairs = student.new_zeros(()), 0
        for q, target in enumerate(targets):
            for v, scores in enumerate((student / STUDENT_TEMPERATURE).chunk(self.views)):
                if v != q:
                    total = total + torch.sum(-target * F.log_softmax(scores, dim=-1), dim=-1).mean()
                    pairs += 1
        with torch.no_grad():
            self.center = self.center * 0.9 + teacher.mean(dim=0, keepdim=True) * 0.1
        return total / pairs


class Training:
    """Student, teacher, optimiser; a step at a time."""

    def __init__(self, setting: Setting) -> None:
        torch.manual_seed(0)
        self.student = MultiCrop(setting)
        self.teacher = MultiCrop(setting).requires_grad_(requires_grad=False)
        self.teacher.load_state_dict(self.student.state_dict())
        self.loss = PairLoss(setting)
        decayed = [p for p in self.student.parameters() if p.requires_grad and p.ndim > 1]
        others = [p for p in self.student.parameters() if p.requires_grad and p.ndim == 1]
        groups = [{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=RATE)

    def step(self, crops: Sequence[Tensor]) -> float:
        """One step; the loss."""
        loss = self.loss(self.student(crops), self.teacher(crops[:2]))
        value = loss.item()
        if not math.isfinite(value):
            sys.exit(f"loss is {value}")
        self.optimizer.zero_grad()
        loss.backward()
        for parameter in self.student.parameters():
            if parameter.grad is not None:
                shrink = CLIP / (parameter.grad.norm(2) + 1e-6)
                if shrink < 1:
                    parameter.grad.mul_(shrink)
        self.optimizer.step()
        with torch.no_grad():
            for new, old in zip(self.student.parameters(), self.teacher.parameters(), strict=True):
                old.mul_(MOMENTUM).add_((1 - MOMENTUM) * new.detach())
        return value


def loader(data: Dataset[list[Tensor]], setting: Setting, *, workers: int) -> DataLoader[list[Tensor]]:
    """An epoch without end, because restarting workers every 430 images would be no user's cost."""
    endless = RandomSampler(data, replacement=True, num_samples=10**7)  # type: ignore[arg-type]
    return DataLoader(data, setting.images, sampler=endless, num_workers=workers, drop_last=True)


def train(setting: Setting, folder: Path, *, workers: int) -> Iterator[float]:
    """The loss of one step after the other."""
    training = Training(setting)
    for crops in loader(Photographs(folder, setting), setting, workers=workers):
        yield training.step(crops)
