"""The mean teacher: an exponential moving average of the student's parameters (Tarvainen & Valpola 2017; DINO, section 3.1)."""

import torch
from torch import Tensor, nn

from raydino import collectives


@torch.no_grad()
def update_teacher(*, teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher = momentum * teacher + (1 - momentum) * student, parameters only, in the order both modules list them.

    Of networks sharded alike every rank moves its own part.
    """
    old: list[Tensor] = [collectives.shard(parameter) for parameter in teacher.parameters()]
    new: list[Tensor] = [collectives.shard(parameter) for parameter in student.parameters()]
    torch._foreach_lerp_(old, new, 1.0 - momentum)
