"""The mean teacher: an exponential moving average of the student's parameters (Tarvainen & Valpola 2017; DINO, section 3.1)."""

import torch
from torch import Tensor, nn


@torch.no_grad()
def update_teacher(*, teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher = momentum * teacher + (1 - momentum) * student, parameters only, in the order both modules list them."""
    old: list[Tensor] = list(teacher.parameters())
    new: list[Tensor] = list(student.parameters())
    torch._foreach_lerp_(old, new, 1.0 - momentum)
