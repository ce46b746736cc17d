"""Sharded training gives what replicated training and one process give, and its checkpoints fit all of them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from raydino import collectives
from raydino.config import ConfigError
from raydino.methods.config import DINOConfig, DINOv2Config, MethodConfig, SelfDistillationConfig, SupervisedConfig
from raydino.methods.distillation_config import DistillationConfig, FrozenTeacher
from raydino.methods.method import Method
from raydino.nn.config import BackboneConfig, HeadConfig
from raydino.schedule import constant
from raydino.train import checkpoint as cp
from raydino.train.config import OptimConfig
from raydino.train.health import teacher_distance
from raydino.train.optim import build_optimizer
from raydino.train.parallel import distribute, recompute_blocks
from raydino.train.sharding import is_sharded, load_whole, whole_encoder
from raydino.train.steps import Loop, training_steps
from raydino.views import Batch, Normalisation

CPU, STEPS, IMAGES = torch.device("cpu"), 5, 8
SMALL = {"global_crops.size": 32, "local_crops": {"size": 16, "count": 2}}
HEAD = {"head": {"prototypes": 50, "hidden": 32, "bottleneck": 16}}  # 50 rows over 4 ranks: 13, 13, 13, 11
PATCHES = HeadConfig(prototypes=48, hidden=32, bottleneck=16)


def backbone(drop_path: float = 0.0) -> BackboneConfig:
    return BackboneConfig(
        name="vit_tiny_patch16_224",
        patch_size=8,
        width=24,
        depth=2,
        heads=2,
        registers=2,
        layer_scale=0.1,
        drop_path=drop_path,
        stochastic_depth="batch_subset",
    )


def method_of(config: MethodConfig, *, drop_path: float = 0.0) -> Method:
    torch.manual_seed(0)
    small = {**SMALL, **(HEAD if isinstance(config, SelfDistillationConfig) else {})}
    if isinstance(config, DistillationConfig):
        small["teacher.head"] = HEAD["head"]
    return config.override(small).build(backbone(drop_path), steps=STEPS)


def loop_of(
    config: MethodConfig,
    parallel: str,
    *,
    optimizer: str = "adamw",
    drop_path: float = 0.0,
    accumulate: int = 1,
    recompute: bool = False,
    reduce: str = "fp32",
) -> Loop:
    method = method_of(config, drop_path=drop_path)
    if recompute:
        recompute_blocks(method.student.backbone)
    module = distribute(method, CPU, parallel=parallel, compute="fp32", reduce=reduce)
    optim = OptimConfig(optimizer=optimizer, lr=1e-3, warmup=1, weight_decay=constant(0.04), clip=1.0, layer_decay=0.9)
    return Loop(
        method=method,
        module=module,
        optimizer=build_optimizer(method.student, optim),
        optim=optim,
        peak_lr=1e-3,
        seed=5,
        steps=STEPS,
        device=CPU,
        normalise=Normalisation(),
        accumulate=accumulate,
    )


def batches(start: int = 0, stop: int = STEPS):
    rank, world = collectives.rank(), collectives.world_size()
    for step in range(start, stop):
        generator = torch.Generator().manual_seed(step)
        crops = {
            "global": torch.randint(0, 256, (2, IMAGES, 3, 32, 32), generator=generator, dtype=torch.uint8),
            "local": torch.randint(0, 256, (2, IMAGES, 3, 16, 16), generator=generator, dtype=torch.uint8),
        }
        masks = torch.zeros(2, IMAGES, 16, dtype=torch.bool)
        masks[0, ::2, 2:7] = True  # of two ranks or four, some mask nothing
        mine = slice(rank, None, world)
        ids = tuple(bytes([i]) * 16 for i in range(IMAGES))[mine]
        labels = (torch.arange(IMAGES) % 3)[mine]
        yield Batch({k: v[:, mine] for k, v in crops.items()}, masks[:, mine], ids, step, labels)


def train(loop: Loop, start: int = 0, stop: int = STEPS) -> dict[str, Tensor]:
    """Losses and norms of every step, then the whole state."""
    seen: dict[str, list[Tensor]] = {}
    for report in training_steps(loop, batches(start, stop)):
        assert report.skipped is None
        for name in ("loss/total", "optim/grad_norm", "optim/grad_norm_head", "optim/grad_norm_backbone"):
            value = torch.as_tensor(report.metrics[name])
            seen.setdefault(name, []).append(collectives.all_mean(value) if name == "loss/total" else value)
    return {name: torch.stack(values) for name, values in seen.items()} | whole_state(loop)


def whole_state(loop: Loop) -> dict[str, Tensor]:
    state = {**loop.method.state_dict(), **cp.optimizer_tensors(loop.optimizer)}
    state["distance"] = teacher_distance(student=loop.method.student, teacher=loop.method.teacher)
    return {name: collectives.whole(value).clone() for name, value in state.items()}


def assert_same(
    found: dict[str, Tensor], expected: dict[str, Tensor], *, rtol: float = 1e-3, atol: float = 1e-4
) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=atol, msg=lambda text, at=name: f"{at}: {text}")


# KoLeo looks for neighbours within a rank, so it alone depends on their number.
METHODS: dict[str, MethodConfig] = {
    "dino": DINOConfig(freeze_last_layer=2),  # clips each tensor by itself
    "dinov2": DINOv2Config(koleo_weight=0.0, ibot_head=PATCHES, freeze_last_layer=2),  # clips each sub-module
    "sinkhorn": DINOv2Config(koleo_weight=0.0, centering="sinkhorn_knopp"),
    "supervised": SupervisedConfig(classes=3),
    "distillation": DistillationConfig(
        koleo_weight=0.0, teacher=FrozenTeacher(size=32, backbone=backbone().override({"width": 48}))
    ),
}


def _sharded(rank: int) -> dict[str, dict[str, Tensor]]:
    return {name: train(loop_of(config, "fsdp")) for name, config in METHODS.items()}


@pytest.mark.parametrize("world", [1, 2, 4])
def test_shard_method__trains_what_one_process_does(world: int, gloo):
    """Losses, gradient norms of each sub-module on each rank, centres, weights, teacher and moments after all steps."""
    expected = {name: train(loop_of(config, "ddp")) for name, config in METHODS.items()}
    for rank in gloo(_sharded, world):
        for name in METHODS:
            assert_same(rank[name], expected[name])


def _beside_ddp(rank: int) -> dict[str, list[dict[str, Tensor]]]:
    settings = {
        "adamw": {},
        "sgd": {"optimizer": "sgd"},
        "lars": {"optimizer": "lars"},
        "depth": {"drop_path": 0.4},
        "accumulated": {"drop_path": 0.4, "accumulate": 2},
        "recomputed": {"drop_path": 0.4, "accumulate": 2, "recompute": True},
    }
    method = DINOv2Config(ibot_head=PATCHES)
    return {
        name: [train(loop_of(method, parallel, **kinds)) for parallel in ("ddp", "fsdp")]
        for name, kinds in settings.items()
    }


def test_shard_method__trains_what_replicas_do(gloo):
    """Each optimiser, stochastic depth on subsets, micro-batches without communication, blocks computed again."""
    for rank in gloo(_beside_ddp, 2):
        for replicated, sharded in rank.values():
            assert_same(sharded, replicated, rtol=1e-4, atol=2e-5)


def _held(rank: int) -> tuple[int, int, list[int]]:
    loop = loop_of(DINOv2Config(ibot_head=PATCHES), "fsdp")
    train(loop)
    mine = sum(collectives.shard(p).numel() for p in loop.method.parameters())
    moments = cp.optimizer_tensors(loop.optimizer).values()
    sizes = [collectives.shard(p).numel() for p in loop.method.student.parameters()]
    return mine, sum(collectives.shard(t).numel() for t in moments), sizes


def test_shard_method__each_rank_holds_its_part_of_networks_and_moments(gloo):
    whole = loop_of(DINOv2Config(ibot_head=PATCHES), "ddp")
    train(whole)
    parameters = sum(p.numel() for p in whole.method.parameters())
    moments = sum(t.numel() for t in cp.optimizer_tensors(whole.optimizer).values() if t.ndim)
    ranks = gloo(_held, 4)
    steps = sum(not t.ndim for t in cp.optimizer_tensors(whole.optimizer).values())
    assert sum(rank[0] for rank in ranks) == parameters
    assert sum(rank[1] - steps for rank in ranks) == moments
    assert max(rank[0] for rank in ranks) < 0.3 * parameters


def _saves(folder: Path, parallel: str, rank: int) -> None:
    loop = loop_of(DINOv2Config(ibot_head=PATCHES, koleo_weight=0.0), parallel)
    train(loop, 0, 3)
    state = {
        name: {key: collectives.whole(value) for key, value in part.items()}
        for name, part in (("model", loop.method.state_dict()), ("optimizer", cp.optimizer_tensors(loop.optimizer)))
    }
    if rank == 0:
        cp.save(folder, cp.Checkpoint(3, state["model"], state["optimizer"], {}), keep=2)


def _goes_on(folder: Path, parallel: str, rank: int) -> dict[str, Tensor]:
    loop = loop_of(DINOv2Config(ibot_head=PATCHES, koleo_weight=0.0), parallel)
    saved = cp.load_newest(folder)
    assert saved is not None
    load_whole(loop.method, saved.model)
    cp.load_optimizer(loop.optimizer, saved.optimizer)
    return train(loop, 3)


@pytest.mark.parametrize(
    ("before", "after"), [(("fsdp", 4), ("ddp", 1)), (("ddp", 1), ("fsdp", 2)), (("fsdp", 2), ("fsdp", 4))]
)
def test_load_whole__a_checkpoint_is_taken_up_by_another_number_and_kind_of_workers(before, after, tmp_path, gloo):
    undisturbed = train(loop_of(DINOv2Config(ibot_head=PATCHES, koleo_weight=0.0), "ddp"))
    gloo(lambda rank: _saves(tmp_path, before[0], rank), before[1])
    for rank in gloo(lambda rank: _goes_on(tmp_path, after[0], rank), after[1]):
        for name in ("loss/total", "optim/grad_norm", "optim/grad_norm_head", "optim/grad_norm_backbone"):
            torch.testing.assert_close(rank.pop(name), undisturbed[name][3:], rtol=1e-3, atol=1e-4)
        assert_same(rank, {name: undisturbed[name] for name in rank})


def _encoders(rank: int) -> tuple[dict[str, Tensor], Tensor | None, Tensor | None]:
    loop = loop_of(DINOv2Config(), "fsdp")
    train(loop, 0, 2)
    encoder = whole_encoder(loop.method.encoder(), lambda: method_of(DINOv2Config()).encoder())
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    alone = rank == 1  # what one rank does with it needs no other
    with torch.inference_mode():
        said = encoder.eval()(images).patches if alone else None
        attention = encoder.attention(images) if alone else None
    train(loop, 2)  # training goes on as if nobody had looked
    return whole_state(loop), said, attention


def test_whole_encoder__is_the_teachers_backbone_on_every_rank(gloo):
    _, (state, said, attention) = gloo(_encoders, 2)
    (undisturbed, *_), _ = gloo(lambda rank: (train(loop_of(DINOv2Config(), "fsdp")), None, None), 2)
    assert_same(state, {name: undisturbed[name] for name in state}, rtol=0, atol=0)
    loop = loop_of(DINOv2Config(), "ddp")
    assert whole_encoder(loop.method.encoder(), lambda: pytest.fail("built in vain")) is loop.method.encoder()
    (expected, *_), _ = gloo(lambda rank: (_trained_encoder(), None), 2)
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    encoder = method_of(DINOv2Config()).encoder()
    encoder.load_state_dict(expected)
    with torch.inference_mode():
        torch.testing.assert_close(said, encoder.eval()(images).patches, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(attention, encoder.attention(images), rtol=1e-4, atol=1e-5)


def _trained_encoder() -> dict[str, Tensor]:
    loop = loop_of(DINOv2Config(), "ddp")
    train(loop, 0, 2)
    return {name: value.clone() for name, value in loop.method.encoder().state_dict().items()}


@pytest.mark.parametrize("subsets", [True, False], ids=["batch_subset", "per_sample"])
def test_recompute_blocks__the_same_bits_with_stochastic_depth(subsets: bool):
    def states(recompute: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        kind = "batch_subset" if subsets else "per_sample"
        method = DINOv2Config(ibot_head=PATCHES).override({**SMALL, **HEAD})
        built = method.build(backbone(0.4).override({"stochastic_depth": kind}), steps=STEPS)
        calls = _counted(built)
        if recompute:
            recompute_blocks(built.student.backbone)
        loop = loop_of(DINOv2Config(ibot_head=PATCHES), "ddp")
        loop = replace(loop, method=built, module=built, optimizer=build_optimizer(built.student, loop.optim))
        state = train(loop)
        assert calls[0] == STEPS * 2 * 2 * (2 if recompute else 1)  # blocks, sizes of crops, computations
        return state

    assert_same(states(recompute=True), states(recompute=False), rtol=0, atol=0)


def _counted(method: Method) -> list[int]:
    calls = [0]
    for block in method.student.backbone.blocks():
        block.attn.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    return calls


def test_recompute_blocks__a_convolutional_network_has_none():
    network = BackboneConfig(name="resnet18", patch_size=32).build(image_size=32, drop_path=0.0)
    with pytest.raises(ConfigError, match=r"cluster\.checkpoint_activations.*set it to false"):
        recompute_blocks(network)


def _rounded(rank: int) -> dict[str, tuple[Tensor, bool]]:
    out = {}
    for parallel in ("ddp", "fsdp"):
        for reduce in ("fp32", "bf16"):
            loop = loop_of(DINOv2Config(), parallel, reduce=reduce)
            gradients: list[Tensor] = []
            weight = loop.method.student.backbone.vit.blocks[0].attn.qkv.weight
            object.__setattr__(loop.optim, "clip", 0.0)  # else scaled after the mean
            loop.optimizer.register_step_pre_hook(
                lambda *_, w=weight, g=gradients: g.append(collectives.whole(w.grad).clone())
            )
            train(loop, 0, 1)
            coarse = torch.equal(gradients[0].bfloat16().float(), gradients[0])
            out[f"{parallel} {reduce}"] = gradients[0], coarse
    return out


def test_distribute__gradients_may_be_averaged_in_bfloat16(gloo):
    for rank in gloo(_rounded, 2):
        exact = rank["ddp fp32"][0]
        assert {name: coarse for name, (_, coarse) in rank.items()} == {
            "ddp fp32": False,
            "ddp bf16": True,
            "fsdp fp32": False,
            "fsdp bf16": True,
        }
        for gradient, _ in rank.values():
            assert float((gradient - exact).norm() / exact.norm()) < 0.01


def test_distribute__without_other_workers_nothing_is_sharded():
    assert not is_sharded(loop_of(DINOv2Config(), "fsdp").method)
