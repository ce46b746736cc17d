"""The optimiser and its schedules: AdamW, parameter groups by layer and by shape, published learning-rate and clipping rules."""

from collections.abc import Iterable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from raydino.config import in_steps
from raydino.methods.method import Network
from raydino.schedule import cosine
from raydino.train.config import OptimConfig


def build_optimizer(student: Network, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the student's trainable parameters, grouped by learning-rate and weight-decay factor.

    Biases, norms and LayerScale (one dimension) have no weight decay; cls, registers, position embeddings, mask token and the
    prototypes' gain have it (DINO's and DINOv2's rule alike). Backbone layers below the last get `layer_decay` per step down, the
    patch embedding `patch_embed_lr` on top of it (DINOv2, appendix B.1).
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((_lr_factor(student, name, config), float(parameter.ndim > 1)), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": params, "lr_factor": lr, "weight_decay_factor": decay}
            for (lr, decay), params in sorted(groups.items(), key=lambda item: item[0])
        ],
        lr=0.0,
        betas=config.betas,
        fused=next(student.parameters()).is_cuda,
        foreach=None if next(student.parameters()).is_cuda else True,
    )


def _lr_factor(student: Network, name: str, config: OptimConfig) -> float:
    part, _, inner = name.partition(".")
    if part != "backbone":
        return 1.0
    backbone = student.backbone
    factor = config.layer_decay ** (backbone.depth + 1 - backbone.layer_of(inner))
    return factor * (config.patch_embed_lr if "patch_embed" in inner else 1.0)


def learning_rate(config: OptimConfig, peak: float, step: int, *, steps: int) -> float:
    """Linear warm-up from 0 to `peak`, half cosine to `min_lr`."""
    return cosine(peak, config.min_lr, warmup=in_steps(config.warmup, steps)).at(step, steps=steps)


def set_schedules(optimizer: torch.optim.Optimizer, *, lr: float, weight_decay: float) -> None:
    """Give every group its share of the step's learning rate and weight decay."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]
        group["weight_decay"] = weight_decay * group["weight_decay_factor"]


@torch.no_grad()
def clip_gradients(student: nn.Module, limit: float, *, per: Literal["per_tensor", "per_module"]) -> Float[Tensor, ""]:
    """Bound gradient norms by `limit` (0: no bound) and return the global norm from before.

    `per_tensor` rescales every gradient tensor on its own (DINO), `per_module` the gradients of each sub-module
    together (DINOv2).
    """
    norms = []
    for module in student.children():
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        if not gradients:
            continue
        each = torch.stack(torch._foreach_norm(gradients))
        whole = torch.linalg.vector_norm(each)
        norms.append(whole)
        if limit > 0:
            norm = each if per == "per_tensor" else whole.expand_as(each)
            # 1e-6 as in the published code; it also keeps a zero gradient from dividing by zero
            torch._foreach_mul_(gradients, list((limit / (norm + 1e-6)).clamp(max=1.0).unbind()))
    return torch.linalg.vector_norm(torch.stack(norms))


def drop_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Forget gradients, so that the optimiser neither moves these parameters nor keeps moments for them (DINO's
    frozen last layer)."""
    for parameter in parameters:
        parameter.grad = None
