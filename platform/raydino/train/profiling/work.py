"""How many floating-point operations an image costs, counted without computing anything: two for every multiply-add.

torch's counter looks at the matrix products of one pass through a network on the meta device, forward and backward, and the
method's views say how many passes there are. Element-wise work is left out, as is usual: it is a matter of bytes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from raydino.methods.config import DINOv2Shared, MethodConfig, SelfDistillationConfig, SupervisedConfig
from raydino.methods.method import SelfDistillation
from raydino.nn.config import BackboneConfig
from raydino.train.profiling.parts import HEADS, STUDENT, TEACHER
from raydino.views import Crops


@dataclass(frozen=True)
class Work:
    """Floating-point operations for one image, by part."""

    nominal: dict[str, float]
    """As if every block saw every crop."""
    effective: dict[str, float]
    """As computed: with stochastic depth by subsets, blocks see fewer (nn/depth.py)."""


def work_per_image(config: MethodConfig, backbone: BackboneConfig, *, images: int) -> Work | None:
    """What an image costs in micro-batches of `images`; None for a method whose passes are not known here."""
    if not isinstance(config, SelfDistillationConfig | SupervisedConfig):
        return None
    large, small = config.global_crops, config.local_crops
    teaches = isinstance(config, SelfDistillationConfig)
    with torch.device("meta"):
        plain = backbone.build(image_size=large.size, drop_path=0.0)
        method = config.build(backbone, steps=1)
        crops = [_crops(group, backbone.channels, 1) for group in (large, small) if group.count]
        student = sum(_count(plain, crop, backward=True) for crop in crops)
        teaching = method.teaching if isinstance(method, SelfDistillation) else method.teacher
        teacher = _count(teaching.backbone, crops[0], backward=False) if teaches else 0.0
        views = large.count + small.count
        heads = _head(method.student.head, plain.width, views, backward=True)
        heads += _head(teaching.head, teaching.backbone.width, large.count, backward=False) if teaches else 0.0
        if isinstance(config, DINOv2Shared) and config.ibot_weight > 0:
            asked, masks = large.count * _patches(large, backbone), config.views(backbone).masks
            if masks is not None:
                asked *= masks.probability * sum(masks.ratio) / 2
            for network, backward in ((method.student, True), (teaching, False)):
                heads += _head(network.ibot_head or network.head, network.backbone.width, asked, backward=backward)
        effective = student
        if backbone.drop_path > 0 and backbone.stochastic_depth == "batch_subset":
            crops = [_crops(group, backbone.channels, images) for group in (large, small) if group.count]
            effective = sum(_count(method.student.backbone, crop, backward=True) for crop in crops) / images
    fixed = {TEACHER: teacher, HEADS: heads}
    return Work({STUDENT: student, **fixed}, {STUDENT: effective, **fixed})


def _crops(group: Crops, channels: int, images: int) -> Tensor:
    return torch.empty(group.count * images, channels, group.height, group.width)


def _patches(group: Crops, backbone: BackboneConfig) -> int:
    return (group.height // backbone.patch_size) * (group.width // backbone.patch_size)


def _head(head: nn.Module, width: int, rows: float, *, backward: bool) -> float:
    """What a head costs for so many rows."""
    return _count(head, torch.empty(1, width, requires_grad=True), backward=backward) * rows


def _count(network: Callable[..., object], x: Tensor, *, backward: bool) -> float:
    with FlopCounterMode(display=False) as counter:
        out = network(x)
        if backward:
            scores = out if isinstance(out, Tensor) else out.cls  # type: ignore[attr-defined]
            scores.sum().backward()
    return float(counter.get_total_flops())
