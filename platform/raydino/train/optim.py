"""The optimisers and their schedules: AdamW, SGD, LARS; parameter groups by layer and shape; published rates and clipping."""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from raydino import collectives
from raydino.config import ConfigError, in_steps
from raydino.methods.method import Network
from raydino.schedule import cosine
from raydino.train.config import OptimConfig


def build_optimizer(student: Network, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimiser over the student's trainable parameters, grouped by learning-rate factor, weight-decay factor and last layer.

    Biases, norms and LayerScale (one dimension) have no weight decay; cls, registers, position embeddings, mask token and the
    prototypes' gain have it (DINO's and DINOv2's rule alike). Backbone layers below the last get `layer_decay` per step down, the
    patch embedding `patch_embed_lr` on top of it (DINOv2's code). Raises ConfigError for such factors without such layers.
    """
    for name, value in (("layer_decay", config.layer_decay), ("patch_embed_lr", config.patch_embed_lr)):
        if value != 1 and student.backbone.depth == 0:
            raise ConfigError(f"optim.{name} = {value}: a convolutional network has no such layers; set it to 1")
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            key = (_lr_factor(student, name, config), float(parameter.ndim > 1), is_last_layer(name))
            groups.setdefault(key, []).append(parameter)
    params = [
        {"params": params, "lr_factor": lr, "weight_decay_factor": decay, "last_layer": last}
        for (lr, decay, last), params in sorted(groups.items(), key=lambda item: item[0])
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(params, lr=0.0, momentum=config.momentum)
    if config.optimizer == "lars":
        return LARS(params, momentum=config.momentum)
    cuda = next(student.parameters()).is_cuda
    return torch.optim.AdamW(params, lr=0.0, betas=config.betas, fused=cuda, foreach=None if cuda else True)


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose step is scaled per tensor by `trust` * |weight| / |gradient| (You et al. 2017, arXiv 1708.03888).

    As in DINO: one-dimensional parameters are neither decayed nor scaled. Weight decay is part of the gradient.
    """

    def __init__(self, params: Iterable[dict[str, Any]], *, momentum: float, trust: float = 0.001) -> None:
        super().__init__(params, {"lr": 0.0, "weight_decay": 0.0, "momentum": momentum, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] no loss is evaluated again
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                update = parameter.grad
                if parameter.ndim > 1:
                    update = update.add(parameter, alpha=group["weight_decay"])
                    weight, gradient = collectives.norms([parameter, update])
                    scale = group["trust"] * weight / gradient
                    update = update * torch.where((weight > 0) & (gradient > 0), scale, torch.ones_like(scale))
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                state["momentum_buffer"].mul_(group["momentum"]).add_(update)
                parameter.add_(state["momentum_buffer"], alpha=-group["lr"])


def is_last_layer(name: str) -> bool:
    """Whether a student's parameter belongs to the prototypes of a head."""
    return ".prototypes." in name


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


def set_schedules(
    optimizer: torch.optim.Optimizer, *, lr: float, weight_decay: float, last_layer_still: bool = False
) -> None:
    """Give every group its share of the step's rate and weight decay; the last layer has no rate while it is to stand still."""
    for group in optimizer.param_groups:
        group["lr"] = 0.0 if last_layer_still and group["last_layer"] else lr * group["lr_factor"]
        group["weight_decay"] = weight_decay * group["weight_decay_factor"]


@torch.no_grad()
def clip_gradients(
    student: nn.Module, limit: float, *, per: Literal["per_tensor", "per_module"]
) -> dict[str, Float[Tensor, ""]]:
    """Bound gradient norms by `limit` (0: no bound) and return each sub-module's norm from before, by name.

    `per_tensor` rescales every gradient tensor on its own (DINO), `per_module` the gradients of each sub-module
    together (DINOv2). Of sharded gradients norms are those of the whole, the same on all ranks, which call this together.
    """
    norms = {}
    for name, module in student.named_children():
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        if not gradients:
            continue
        each = collectives.norms(gradients)
        whole = norms[name] = torch.linalg.vector_norm(each)
        if limit > 0:
            norm = each if per == "per_tensor" else whole.expand_as(each)
            # 1e-6 as in the published code; it also keeps a zero gradient from dividing by zero
            mine = [collectives.shard(gradient) for gradient in gradients]
            torch._foreach_mul_(mine, list((limit / (norm + 1e-6)).clamp(max=1.0).unbind()))
    return norms


def drop_backbone_gradients(student: Network) -> None:
    """Forget the backbone's gradients, so that the optimiser neither moves nor decays it nor keeps moments for it."""
    for parameter in student.backbone.parameters():
        parameter.grad = None


def drop_last_layer_gradients(student: nn.Module) -> None:
    """Forget the prototypes' gradients, so that the optimiser neither moves them nor keeps moments for them (DINO)."""
    for name, parameter in student.named_parameters():
        if is_last_layer(name):
            parameter.grad = None
