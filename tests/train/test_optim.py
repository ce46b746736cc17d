"""Groups, schedules and clipping against their published rules."""

import pytest
import torch

from raydino.config import ConfigError
from raydino.methods.config import DINOConfig, DINOv2Config
from raydino.methods.method import Network
from raydino.nn.config import BackboneConfig, HeadConfig
from raydino.train.config import OptimConfig
from raydino.train.optim import (
    build_optimizer,
    clip_gradients,
    drop_last_layer_gradients,
    learning_rate,
    set_schedules,
)


def _student() -> Network:
    backbone = BackboneConfig(
        name="vit_tiny_patch16_224", patch_size=8, width=32, depth=3, heads=2, registers=1, layer_scale=1e-5
    ).build(image_size=32, drop_path=0.0)
    head = HeadConfig(prototypes=16, hidden=16, bottleneck=8, train_gain=True).build(32)
    return Network(backbone, head)


def _group_of(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter) -> dict:
    return next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))


def test_build_optimizer__decay_and_rate_factors_by_published_rule():
    student = _student()
    optimizer = build_optimizer(student, OptimConfig(layer_decay=0.9, patch_embed_lr=0.2))
    parameters = dict(student.named_parameters())
    decayed = {name: bool(_group_of(optimizer, p)["weight_decay_factor"]) for name, p in parameters.items()}
    for name, decays in decayed.items():
        token = any(word in name for word in ("cls_token", "pos_embed", "reg_token", "mask_token", "gain"))
        plain = name.endswith(".bias") or "norm" in name or ".ls" in name
        assert decays == (token or not plain), name
    rate = {name: _group_of(optimizer, p)["lr_factor"] for name, p in parameters.items()}
    assert rate["head.mlp.0.weight"] == 1.0
    assert rate["backbone.vit.norm.weight"] == 1.0
    assert rate["backbone.vit.blocks.2.attn.qkv.weight"] == pytest.approx(0.9)
    assert rate["backbone.vit.blocks.0.attn.qkv.weight"] == pytest.approx(0.9**3)
    assert rate["backbone.vit.pos_embed"] == pytest.approx(0.9**4)
    assert rate["backbone.vit.patch_embed.proj.weight"] == pytest.approx(0.9**4 * 0.2)


def test_build_optimizer__holds_every_trainable_parameter_once():
    student = _student()
    held = [p for group in build_optimizer(student, OptimConfig()).param_groups for p in group["params"]]
    assert len(held) == len({id(p) for p in held}) == sum(p.requires_grad for p in student.parameters())


def test_learning_rate__warms_up_from_zero_and_ends_at_the_minimum():
    config = OptimConfig(lr=1.0, min_lr=1e-6, warmup=10)
    values = [learning_rate(config, 0.5, step, steps=100) for step in range(100)]
    assert values[0] == 0.0
    assert values[9] == values[10] == 0.5
    assert values[55] == pytest.approx((0.5 + 1e-6) / 2)
    assert learning_rate(config, 0.5, 100, steps=100) == 1e-6


def test_set_schedules__scales_by_group():
    optimizer = build_optimizer(_student(), OptimConfig(patch_embed_lr=0.2))
    set_schedules(optimizer, lr=1.0, weight_decay=0.3)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.3}
    assert {round(group["lr"], 6) for group in optimizer.param_groups} == {0.2, 1.0}


@pytest.mark.parametrize("per", ["per_tensor", "per_module"])
def test_clip_gradients__bounds_what_it_says_and_returns_the_norm_from_before(per: str):
    student = _student()
    for number, parameter in enumerate(student.parameters()):
        parameter.grad = torch.full_like(parameter, 0.001 * (1 + number))
    before = torch.cat([p.grad.flatten() for p in student.parameters()]).norm()
    originals = {n: p.grad.clone() for n, p in student.named_parameters()}
    returned = clip_gradients(student, 0.05, per=per)
    whole = torch.stack(list(returned.values())).norm()
    torch.testing.assert_close(whole, before, rtol=2e-5, atol=0)  # float32, summed in another order
    assert returned.keys() == {"backbone", "head"}
    for module_name, module in student.named_children():
        whole = torch.cat([originals[f"{module_name}.{n}"].flatten() for n, _ in module.named_parameters()]).norm()
        for name, parameter in module.named_parameters():
            original = originals[f"{module_name}.{name}"]
            norm = original.norm() if per == "per_tensor" else whole
            torch.testing.assert_close(parameter.grad, original * min(1.0, 0.05 / (norm.item() + 1e-6)))


def test_set_schedules__last_layer_alone_stands_still():
    student = _student()
    optimizer = build_optimizer(student, OptimConfig())
    set_schedules(optimizer, lr=1.0, weight_decay=0.3, last_layer_still=True)
    still = {id(p) for group in optimizer.param_groups if group["lr"] == 0.0 for p in group["params"]}
    assert still == {id(p) for p in student.head.prototypes.parameters()}


def test_drop_last_layer_gradients__leaves_the_others():
    student = _student()
    for parameter in student.parameters():
        parameter.grad = torch.ones_like(parameter)
    drop_last_layer_gradients(student)
    without = {name for name, p in student.named_parameters() if p.grad is None}
    assert without == {"head.prototypes.direction", "head.prototypes.gain"}


def test_lars__equals_the_rule_written_out_per_number():
    student = _student()
    optimizer = build_optimizer(student, OptimConfig(optimizer="lars", momentum=0.8))
    weights = {name: p.detach().clone().double() for name, p in student.named_parameters()}
    speeds = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for step in range(3):
        set_schedules(optimizer, lr=0.5, weight_decay=0.1)
        for number, (name, parameter) in enumerate(student.named_parameters()):
            gradient = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(100 * step + number))
            parameter.grad = gradient.clone()
            update = gradient.double()
            if weights[name].ndim > 1:
                update = update + 0.1 * weights[name]
                if weights[name].norm() > 0:
                    update = update * 0.001 * weights[name].norm() / update.norm()
            speeds[name] = 0.8 * speeds[name] + update
            weights[name] = weights[name] - 0.5 * speeds[name]
        optimizer.step()
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(parameter.detach().double(), weights[name], rtol=1e-4, atol=1e-6)


def test_build_optimizer__sgd_has_the_momentum_asked_for():
    optimizer = build_optimizer(_student(), OptimConfig(optimizer="sgd", momentum=0.7))
    assert isinstance(optimizer, torch.optim.SGD)
    assert {group["momentum"] for group in optimizer.param_groups} == {0.7}


def test_clip_gradients__zero_means_no_bound():
    student = _student()
    for parameter in student.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    clip_gradients(student, 0.0, per="per_module")
    assert all((p.grad == 7.0).all() for p in student.parameters())


def test_build_optimizer__layer_factors_need_layers():
    method = DINOConfig().override({"head": {"prototypes": 8, "hidden": 8, "bottleneck": 4}})
    student = method.build(BackboneConfig(name="resnet10t", patch_size=32), steps=10).student
    assert len(build_optimizer(student, OptimConfig()).param_groups) == 3  # decayed, not decayed, last layer
    for name in ("layer_decay", "patch_embed_lr"):
        with pytest.raises(ConfigError, match=f"optim.{name} = 0.5"):
            build_optimizer(student, OptimConfig().override({name: 0.5}))


def test_build_optimizer__no_decay_rule_of_dinov2_by_name():
    """The official rule goes by name (no decay for `.bias` and for names with norm or gamma), ours by shape; they must agree."""
    backbone = BackboneConfig(
        name="vit_tiny_patch16_224",
        patch_size=8,
        width=32,
        depth=3,
        heads=2,
        ffn="swiglu",
        registers=2,
        layer_scale=1e-5,
    )
    head = {"prototypes": 8, "hidden": 8, "bottleneck": 4}
    config = DINOv2Config(ibot_head=HeadConfig(**head, train_gain=True)).override({"head": head})
    student = config.build(backbone, steps=10).student
    optimizer = build_optimizer(student, OptimConfig(layer_decay=0.9, patch_embed_lr=0.2))
    factors = {0: 0.9**4, 1: 0.9**3, 2: 0.9**2, 3: 0.9, 4: 1.0}
    for name, parameter in student.named_parameters():
        if not parameter.requires_grad:
            continue
        group = _group_of(optimizer, parameter)
        exempt = name.endswith(".bias") or "norm" in name or "gamma" in name
        assert group["weight_decay_factor"] == (0.0 if exempt else 1.0), name
        if name.startswith("backbone.vit.blocks."):
            rate = factors[int(name.split(".")[3]) + 1]
        elif (
            name.startswith("backbone") and "norm" not in name
        ):  # patch embedding, cls, registers, positions, mask token
            rate = factors[0] * (0.2 if "patch_embed" in name else 1.0)
        else:
            rate = 1.0
        assert group["lr_factor"] == pytest.approx(rate), name
        assert group["last_layer"] == (".prototypes." in name), name
