"""Compiled blocks train like the blocks as they are, and are compiled as often as their calls differ."""

from dataclasses import replace
from functools import partial
from unittest.mock import patch

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from raydino import collectives
from raydino.config import ConfigError
from raydino.data.masks import block_masks
from raydino.methods.config import DINOv2Config
from raydino.nn.config import BackboneConfig, HeadConfig
from raydino.schedule import constant
from raydino.train.config import OptimConfig
from raydino.train.optim import build_optimizer
from raydino.train.parallel import compile_blocks, distribute, recompute_blocks
from raydino.train.steps import Loop, training_steps
from raydino.views import Batch, Normalisation

STEPS, IMAGES = 3, 4
SMALL = {
    "global_crops.size": 32,
    "local_crops": {"size": 16, "count": 2},
    "head": {"prototypes": 50, "hidden": 32, "bottleneck": 16},
}


def loop_of(
    *, compiled: bool, depth: int = 2, kind: str = "batch_subset", recompute: bool = False, parallel: str = "ddp"
) -> Loop:
    torch.manual_seed(0)
    backbone = BackboneConfig(
        name="vit_tiny_patch16_224",
        patch_size=8,
        width=24,
        depth=depth,
        heads=2,
        layer_scale=0.1,
        drop_path=0.4,
        stochastic_depth=kind,
    )
    config = DINOv2Config(ibot_head=HeadConfig(prototypes=48, hidden=32, bottleneck=16)).override(SMALL)
    method = config.build(backbone, steps=STEPS)
    if compiled:
        compile_blocks(method.student.backbone)
        compile_blocks(method.teacher.backbone)
    if recompute:
        recompute_blocks(method.student.backbone)
    module = distribute(method, torch.device("cpu"), parallel=parallel, compute="fp32", reduce="fp32")
    optim = OptimConfig(lr=1e-3, warmup=1, weight_decay=constant(0.04), clip=1.0)
    return Loop(
        method=method,
        module=module,
        optimizer=build_optimizer(method.student, optim),
        optim=optim,
        peak_lr=1e-3,
        seed=5,
        steps=STEPS,
        device=torch.device("cpu"),
        normalise=Normalisation(),
    )


def batches():
    views = DINOv2Config().override(SMALL).views(BackboneConfig(patch_size=8))
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        crops = {
            "global": torch.randint(0, 256, (2, IMAGES, 3, 32, 32), generator=generator, dtype=torch.uint8),
            "local": torch.randint(0, 256, (2, IMAGES, 3, 16, 16), generator=generator, dtype=torch.uint8),
        }
        masks = block_masks(views.masks, grid=(4, 4), seed=0, step=step, lane=0, images=IMAGES, views=2)
        yield Batch(crops, torch.from_numpy(masks), (b"",) * IMAGES, step, None)


def train(loop: Loop) -> dict[str, torch.Tensor]:
    losses = [torch.as_tensor(report.metrics["loss/total"]) for report in training_steps(loop, batches())]
    return {"losses": torch.stack(losses)} | whole_state(loop)


def whole_state(loop: Loop) -> dict[str, torch.Tensor]:
    return {name: collectives.whole(value).clone() for name, value in loop.method.state_dict().items()}


def compared(backend: str, **setting) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], int, int]:
    """What training leaves with blocks as they are and compiled by `backend`; graphs, and places where one had to be cut."""
    from torch._dynamo.utils import counters  # that interpreter's own

    torch._dynamo.reset()
    counters.clear()
    with patch.object(torch, "compile", partial(torch.compile, backend=backend)):
        compiled = train(loop_of(compiled=True, **setting))
    graphs, breaks = counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())
    return train(loop_of(compiled=False, **setting)), compiled, graphs, breaks


@pytest.mark.parametrize(
    ("backend", "setting", "graphs", "workers"),
    [
        ("inductor", {"depth": 1}, 3, 1),  # the student on both sizes, the teacher on one
        ("aot_eager", {"depth": 5}, 3, 1),
        ("aot_eager", {"kind": "per_sample"}, 5, 1),  # a rate for each of the student's two blocks
        ("aot_eager", {"recompute": True}, 3, 1),
        ("aot_eager", {"parallel": "fsdp"}, 3, 2),
    ],
    ids=["inductor", "deep", "per_sample", "recomputed", "sharded"],
)
def test_compile_blocks__train_alike(gloo, backend: str, setting: dict, graphs: int, workers: int):
    """In an interpreter of its own, since checks of tensor shapes, which pytest's has, cut graphs."""
    plain, compiled, found, breaks = gloo(lambda _: compared(backend, **setting), workers)[0]
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-4)  # a step moves a weight by 1e-3
    assert (found, breaks) == (graphs, 0)


def _heads_compiled(most_masked: int | None) -> int:
    """How often the student's patch head is compiled in all steps."""
    counter, loop = CompileCounter(), loop_of(compiled=False)
    torch._dynamo.reset()
    head = loop.method.student.ibot_head
    head.forward = torch.compile(head.forward, backend=counter, dynamic=False)
    for _ in training_steps(loop, (replace(batch, most_masked=most_masked) for batch in batches())):
        pass
    return counter.frame_count


def test_fixed_shapes__a_compiled_head_is_compiled_once(gloo):
    fixed, drawn = gloo(lambda _: (_heads_compiled(25), _heads_compiled(None)), 1)[0]
    assert (fixed, drawn) == (1, len({int(batch.masks.sum()) for batch in batches()}))
    assert drawn > 1


def test_compile_blocks__a_convolutional_network_has_none():
    network = BackboneConfig(name="resnet18", patch_size=32).build(image_size=32, drop_path=0.0)
    with pytest.raises(ConfigError, match=r"cluster\.compile.*set it to false"):
        compile_blocks(network)
