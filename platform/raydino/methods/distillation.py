"""Distillation from a frozen teacher (DINOv2, Oquab et al. 2023, arXiv 2304.07193, section 5).

A step is DINOv2's with three changes: a network of another run says the targets and never moves; nothing is masked, so that the
patch loss is on all patches of the global crops; the student's recipe has no stochastic depth. The moving average of the student,
here as everywhere called its teacher, is a spare: it is judged and exported.
Letters: V global views, B images, P patches.
"""

from typing import Any, ClassVar

import torch
from torch import nn

from raydino.methods.dinov2 import Asked, DINOv2
from raydino.methods.distillation_config import DistillationConfig
from raydino.methods.method import Network
from raydino.nn.config import BackboneConfig
from raydino.views import Batch

FROZEN = "frozen."
"""Of its weights' names: checkpoints have none of them, since they are those of the teacher's run for good."""


class Distillation(DINOv2):
    """See the module docstring."""

    masked: ClassVar[bool] = False

    def __init__(self, config: DistillationConfig, backbone: BackboneConfig, *, steps: int) -> None:
        super().__init__(config, backbone, steps=steps)
        self.patch_size, theirs = backbone.patch_size, config.teacher
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # until weights are loaded it is the same network in every process
            body = theirs.backbone.build(image_size=theirs.size, drop_path=0.0)
            ibot_head = theirs.ibot_head.build(body.width) if theirs.ibot_head is not None else None
            self.frozen = Network(body, theirs.head.build(body.width), ibot_head).requires_grad_(requires_grad=False)
        self.register_state_dict_post_hook(_without_frozen)
        self.register_load_state_dict_post_hook(_not_missed)

    @property
    def teaching(self) -> Network:
        """The frozen teacher."""
        return self.frozen

    def asks(self, batch: Batch) -> Asked:
        """All patches of the global crops, seen by the student."""
        crops = batch.crops["global"]
        patches = (crops.shape[-2] // self.patch_size) * (crops.shape[-1] // self.patch_size)
        count = crops.shape[0] * crops.shape[1]
        weights = torch.full((count * patches,), 1.0 / patches, device=crops.device)
        return Asked(None, slice(None), weights, crops=count)


def _without_frozen(_: nn.Module, state: dict[str, Any], prefix: str, __: Any) -> None:
    for name in [name for name in state if name.startswith(prefix + FROZEN)]:
        del state[name]


def _not_missed(_: nn.Module, unlike: Any) -> None:
    unlike.missing_keys[:] = [name for name in unlike.missing_keys if not name.startswith(FROZEN)]
