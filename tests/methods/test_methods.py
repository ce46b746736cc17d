"""What each method adds of its own: what the networks see, what is masked, how the loss starts and that it falls."""

import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from raydino.config import ConfigError
from raydino.methods.config import Curriculum, DINOConfig, DINOv2Config, MethodConfig, SupervisedConfig
from raydino.methods.distillation_config import DistillationConfig, FrozenTeacher
from raydino.nn import losses
from raydino.nn.config import BackboneConfig, HeadConfig
from raydino.schedule import constant
from raydino.views import Batch

TINY = BackboneConfig(name="vit_tiny_patch16_224", patch_size=8, width=32, depth=2, heads=2, drop_path=0.1)
LARGER = FrozenTeacher(
    size=32,
    backbone=TINY.override({"width": 48, "depth": 3, "drop_path": 0.0, "registers": 2}),
    head=HeadConfig(prototypes=64, hidden=48, bottleneck=24, train_gain=True),
)
SMALL = {
    "global_crops.size": 32,
    "local_crops": {"size": 16, "count": 2},
    "head": {"prototypes": 64, "hidden": 32, "bottleneck": 16},
}
CONFIGS = {
    "dino": DINOConfig().override(SMALL),
    "dino_sinkhorn": DINOConfig(centering="sinkhorn_knopp").override(SMALL),
    "dino_no_centering": DINOConfig(centering="none").override(SMALL),
    "dino_teacher_sees_all": DINOConfig(teacher_sees="all").override(SMALL),
    "dino_no_local": DINOConfig().override({**SMALL, "local_crops.count": 0}),
    "dinov2": DINOv2Config().override(SMALL),
    "dinov2_long": DINOv2Config(
        centering="sinkhorn_knopp", ibot_head=HeadConfig(prototypes=48, hidden=32, bottleneck=16, train_gain=True)
    ).override(SMALL),
    "dinov2_no_centering": DINOv2Config(centering="none").override(SMALL),
    "dinov2_teacher_sees_all": DINOv2Config(teacher_sees="all").override(SMALL),
    "dinov2_no_ibot": DINOv2Config(ibot_weight=0.0).override(SMALL),
    "dinov2_ibot_only": DINOv2Config(dino_weight=0.0, koleo_weight=0.0).override(SMALL),
    "dinov2_no_local": DINOv2Config().override({**SMALL, "local_crops.count": 0}),
    "distillation": DistillationConfig().override({**SMALL, "teacher": LARGER}),
    "distillation_long": DistillationConfig(centering="sinkhorn_knopp").override(
        {
            **SMALL,
            "ibot_head": HeadConfig(prototypes=48, hidden=32, bottleneck=16),
            "teacher": LARGER.override({"ibot_head": HeadConfig(prototypes=48, hidden=40, bottleneck=24)}),
        }
    ),
    "supervised": SupervisedConfig(classes=3).override({k: v for k, v in SMALL.items() if k != "head"}),
}


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> MethodConfig:
    """Every method in its published and switched-off forms."""
    return CONFIGS[request.param]


def _batch(config: MethodConfig, images: int = 4, step: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(step)
    masks = torch.zeros(2, images, 16, dtype=torch.bool)
    masks[0, :, 3:8] = True
    groups = {"global": config.global_crops, "local": config.local_crops}
    crops = {
        name: torch.randn(group.count, images, 3, group.size, group.size, generator=generator)
        for name, group in groups.items()
    }
    labels = torch.arange(images) % 3 if isinstance(config, SupervisedConfig) else None
    return Batch(crops, masks, tuple(bytes([i]) * 16 for i in range(images)), step, labels)


def test_method__losses_are_finite_and_reach_every_trainable_student_parameter(config: MethodConfig):
    method = config.build(TINY, steps=10)
    output = method(_batch(config), 0)
    sum(output.losses.values()).backward()
    assert all(math.isfinite(value.item()) for value in [*output.losses.values(), *output.diagnostics.values()])
    unreached = [n for n, p in method.student.named_parameters() if p.requires_grad and p.grad is None]
    assert not unreached
    assert all(p.grad is None for p in method.teacher.parameters())


def test_method__teacher_starts_as_the_student_and_moves_only_after_the_step(config: MethodConfig):
    method = config.build(TINY, steps=10)
    student, teacher = method.student.state_dict(), method.teacher.state_dict()
    assert all(torch.equal(student[name], teacher[name]) for name in teacher)
    with torch.no_grad():
        for parameter in method.student.parameters():
            parameter.add_(1.0)
    before = [p.clone() for p in method.teacher.parameters()]
    method(_batch(config), 0)
    assert all(torch.equal(old, new) for old, new in zip(before, method.teacher.parameters(), strict=True))
    method.after_step(0)
    share = 1 - method.teacher_momentum(0)
    for old, new in zip(before, method.teacher.parameters(), strict=True):
        torch.testing.assert_close(new, old + share, rtol=1e-4, atol=1e-5)


def test_method__state_round_trip_gives_the_same_losses(config: MethodConfig):
    first, second = (config.build(TINY, steps=10) for _ in range(2))
    first(_batch(config), 0)
    first.after_step(0)
    second.load_state_dict(first.state_dict())
    outputs = []
    for method in (first, second):
        torch.manual_seed(3)
        outputs.append(method(_batch(config, step=1), 1).losses)
    assert outputs[0].keys() == outputs[1].keys()
    assert all(torch.equal(outputs[0][name], outputs[1][name]) for name in outputs[0])


def test_method__thirty_steps_towards_a_teacher_that_stands_still_lower_the_loss(config: MethodConfig):
    """With a moving teacher the loss may rise (the targets sharpen); with a fixed one it must fall, or the gradient is wrong."""
    torch.manual_seed(0)
    method = config.build(TINY, steps=1000)
    optimizer = torch.optim.AdamW([p for p in method.student.parameters() if p.requires_grad], lr=1e-3)
    batch, totals = _batch(config, images=8), []
    for _ in range(30):
        total = sum(method(batch, 0).losses.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.9 * totals[0]


def test_method__teacher_is_the_closed_form_average_after_many_steps(config: MethodConfig):
    """A student that moves by 1 each step: the teacher is the sum that the exponential average unrolls to."""
    config = config.override({"teacher_momentum": {"start": 0.9, "end": 1.0}})
    method = config.build(TINY, steps=20)
    start = method.student.backbone.vit.pos_embed.detach().clone()
    for step in range(20):
        with torch.no_grad():
            for parameter in method.student.parameters():
                parameter.add_(1.0)
        method.after_step(step)
    kept = [1.0 - 0.1 * (1 + math.cos(math.pi * step / 20)) / 2 for step in range(20)]
    moved = sum((1 - kept[step]) * math.prod(kept[step + 1 :]) * (step + 1) for step in range(20))
    torch.testing.assert_close(method.teacher.backbone.vit.pos_embed, start + moved, rtol=1e-5, atol=1e-5)


def test_method__teacher_has_no_stochastic_depth_and_is_repeatable(config: MethodConfig):
    torch.manual_seed(0)  # one draw in 25 would drop the same branches twice
    method = config.build(TINY.override({"drop_path": 0.9}), steps=10)
    images = _batch(config).crops["global"].flatten(0, 1)
    teacher = [method.teacher.backbone(images).cls for _ in range(2)]
    student = [method.student.backbone(images).cls for _ in range(2)]
    assert torch.equal(*teacher)
    assert not torch.equal(*student)


NETWORKS = {
    "patch_4": {"patch_size": 4},
    "one_channel": {"channels": 1},
    "five_channels": {"channels": 5},
    "registers_swiglu_layer_scale": {"registers": 4, "ffn": "swiglu", "layer_scale": 1e-5},
    "batch_subset": {"drop_path": 0.5, "stochastic_depth": "batch_subset"},
    "published_positions": {"position_resampling": "offset", "token_std": 0.02},
}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", ["dino", "dinov2", "dinov2_long"])
def test_method__trains_on_every_kind_of_vit_and_on_crops_that_are_not_square(name: str, network: str):
    backbone = TINY.override(NETWORKS[network])
    config = CONFIGS[name].override({"global_crops.size": (32, 48), "local_crops.size": (16, 8)})
    method = config.build(backbone, steps=10)
    views = config.views(backbone)
    crops = {key: torch.randn(shape) for key, shape in views.shapes(4).items()}
    masks = torch.zeros(2, 4, math.prod(views.grid), dtype=torch.bool)
    masks[:, 1::2, 2:7] = True
    output = method(Batch(crops, masks, tuple(bytes([i]) for i in range(4)), 0), 0)
    sum(output.losses.values()).backward()
    assert all(math.isfinite(value.item()) for value in output.losses.values())
    assert not [n for n, p in method.student.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize("network", ["resnet10t", "convnext_atto"])
@pytest.mark.parametrize("name", ["dino", "supervised", "dinov2_no_ibot"])
def test_method__trains_convolutional_networks_where_nothing_is_masked(name: str, network: str):
    config = CONFIGS[name].override({"global_crops.size": 64, "local_crops.size": 32})
    backbone = BackboneConfig(name=network, patch_size=32)
    method = config.build(backbone, steps=10)
    batch = _batch(config)
    output = method(replace(batch, masks=None), 0)
    sum(output.losses.values()).backward()
    assert all(math.isfinite(value.item()) for value in output.losses.values())
    assert not [n for n, p in method.student.named_parameters() if p.requires_grad and p.grad is None]


def test_method__masked_patches_need_a_vit():
    with pytest.raises(ConfigError, match="ibot_weight"):
        CONFIGS["dinov2"].build(BackboneConfig(name="resnet10t", patch_size=32), steps=10)


def test_dino__first_loss_is_slightly_above_log_k_once_the_centre_has_settled():
    config = DINOConfig(head=HeadConfig(prototypes=4096, hidden=64, bottleneck=256)).override(
        {"global_crops.size": 32, "local_crops": {"size": 16, "count": 8}}
    )
    method = config.build(TINY, steps=1000)
    method.teacher_momentum = lambda step: 1.0  # only the centre moves
    for step in range(60):
        losses = method(_batch(config, images=4, step=step), 0).losses
        method.after_step(0)
    # scores of a unit bottleneck have variance 1/256; at temperature 0.1 they add 100 / 512 to the student's log-partition
    assert sum(losses.values()).item() == pytest.approx(math.log(4096) + 100 / 512, rel=0.01)


def test_method__teacher_with_momentum_0_is_the_student_bit_for_bit(config: MethodConfig):
    method = config.override({"teacher_momentum": constant(0.0)}).build(TINY, steps=10)
    with torch.no_grad():
        for parameter in method.student.parameters():
            parameter.add_(torch.randn_like(parameter))
    method.after_step(3)
    student, teacher = method.student.state_dict(), method.teacher.state_dict()
    assert all(torch.equal(student[name], teacher[name]) for name in teacher)


@pytest.mark.parametrize("name", ["dino", "dinov2_no_ibot"])
@pytest.mark.parametrize("sees", ["global", "all"])
def test_method__loss_is_the_mean_over_pairs_of_a_view_the_teacher_sees_and_another(name: str, sees: str):
    """Crop by crop and pair by pair, with a centre that is not zero."""
    config = CONFIGS[name].override({"teacher_sees": sees, "teacher_temperature": constant(0.05)})
    method, batch = config.build(TINY.override({"drop_path": 0.0}), steps=10), _batch(config)
    for centering in method.centerings():
        torch.nn.init.normal_(centering.center, std=0.02)

    def scores(network: torch.nn.Module) -> list[torch.Tensor]:
        crops = [crop for group in batch.crops.values() for crop in group]
        return [network.head(network.backbone(crop).cls) for crop in crops]

    students, teachers = scores(method.student), scores(method.teacher)
    targets = [torch.softmax((value - method.centering.center) / 0.05, -1) for value in teachers]
    pairs = [(q, v) for q in range(2 if sees == "global" else 4) for v in range(4) if q != v]
    terms = [-(targets[q] * torch.log_softmax(students[v] / 0.1, -1)).sum(-1).mean().item() for q, v in pairs]
    shares = [sum(term for term, (_, v) in zip(terms, pairs, strict=True) if (v < 2) == low) for low in (True, False)]
    losses = method(batch, 0).losses
    assert losses["dino_global"].item() == pytest.approx(shares[0] / len(pairs), rel=1e-4)
    assert losses["dino_local"].item() == pytest.approx(shares[1] / len(pairs), rel=1e-4)


@pytest.mark.parametrize("name", ["dino", "dinov2", "supervised"])
def test_method__small_crops_of_a_curriculum_move_the_positions_of_the_full_grid(name: str):
    small = {"curriculum": {"global_size": 16, "local_size": 8}}
    config = CONFIGS[name].override(small)
    method = config.build(TINY, steps=10)
    views = config.small_views(TINY)
    assert views.override({"crops.global.size": 32, "crops.local.size": 16}) == config.views(TINY)
    assert method.student.backbone.vit.pos_embed.shape == (1, 1 + 16, 32)  # of 32-pixel crops
    crops = {key: torch.randn(shape) for key, shape in views.shapes(4).items()}
    masks = torch.tensor([True, False, False, False]).expand(2, 4, 4)
    batch = Batch(crops, masks, tuple(bytes([i]) for i in range(4)), 0, torch.arange(4) % 3)
    sum(method(batch, 0).losses.values()).backward()
    assert (method.student.backbone.vit.pos_embed.grad[0].abs().sum(-1) > 0).all()


def test_dinov2__teacher_sees_whole_crops_and_student_masked_ones():
    config = CONFIGS["dinov2"]
    method = config.build(TINY, steps=10)
    seen: dict[str, list] = {"student": [], "teacher": []}
    for name in seen:
        getattr(method, name).backbone.register_forward_pre_hook(
            lambda _module, arguments, name=name: seen[name].append(arguments[1] if len(arguments) > 1 else None)
        )
    batch = _batch(config)
    method(batch, 0)
    assert seen["teacher"] == [None]
    assert torch.equal(seen["student"][0], batch.masks.flatten(0, 1))
    assert seen["student"][1] is None  # local crops


def test_dinov2__ibot_loss_at_start_is_half_log_k_because_half_the_crops_are_masked():
    config = CONFIGS["dinov2"].override({"koleo_weight": 0.0, "head.prototypes": 512, "head.bottleneck": 128})
    method = config.build(TINY, steps=1000)
    method.teacher_momentum = lambda step: 1.0
    for step in range(60):
        losses = method(_batch(config, step=step), 0).losses
        method.after_step(0)
    assert losses["ibot"].item() == pytest.approx(0.5 * math.log(512), rel=0.12)


@pytest.mark.parametrize(
    ("prototypes", "separate", "expected"),
    [
        (65_536, False, {"dino_local": 9.86, "dino_global": 1.23, "ibot": 2.77}),
        (131_072, True, {"dino_local": 10.47, "dino_global": 1.31, "ibot": 2.95}),
    ],
)
def test_dinov2__first_displayed_losses_are_those_of_the_official_logs(prototypes: int, separate: bool, expected: dict):
    """Shares of ln K that follow from 18 pairs and half the crops masked; users' logs of real runs agree within 2 %."""
    head = HeadConfig(prototypes=prototypes, hidden=32, bottleneck=256, train_gain=True)
    config = DINOv2Config(head=head, ibot_head=head if separate else None, koleo_weight=0.0).override(
        {"global_crops.size": 32, "local_crops": {"size": 16, "count": 8}}
    )
    torch.manual_seed(0)
    # half-precision-proof initial features nearly coincide, as with the published initialisation; the centre is settled by hand,
    # because it only takes away what all samples have in common
    method = config.build(TINY, steps=1000)
    batch = _batch(config, images=2)
    for centering in method.centerings():
        centering.momentum = 0.0
    method(batch, 0)
    for centering in method.centerings():
        centering.update()
    shown = {name.removeprefix("displayed/"): value.item() for name, value in method(batch, 0).diagnostics.items()}
    for name, value in expected.items():
        assert shown[name] == pytest.approx(value, rel=0.03), name
    assert shown["total"] == pytest.approx(sum(shown[name] for name in expected), rel=1e-6)


def test_dinov2__optimised_losses_are_the_displayed_ones_with_ibot_and_koleo_doubled():
    config = CONFIGS["dinov2"]
    output = config.build(TINY, steps=10)(_batch(config), 0)
    for name, value in output.losses.items():
        factor = 2 if name in ("ibot", "koleo") else 1
        assert output.diagnostics[f"displayed/{name}"].item() * factor == pytest.approx(value.item(), rel=1e-6)


def test_dinov2__blur_is_inverted_unless_the_paper_is_asked_for():
    def blur(config: DINOv2Config) -> tuple:
        crops = config.views(BackboneConfig()).crops
        return crops["global"].blur, crops["local"].blur

    assert blur(DINOv2Config()) == ((0.0, 0.9), (0.5,))
    assert blur(DINOv2Config(blur="paper")) == ((1.0, 0.1), (0.5,))
    custom = DINOv2Config(blur="custom").override({"global_crops.blur": (0.2,)})
    assert blur(custom) == ((0.2,), (0.5,))
    with pytest.raises(ValidationError, match="set blur to 'custom'"):
        DINOv2Config(global_crops=custom.global_crops)


def test_supervised__loss_is_the_mean_over_all_views_of_labelled_images():
    config = SupervisedConfig(classes=3, label_smoothing=0.2).override({k: v for k, v in SMALL.items() if k != "head"})
    torch.manual_seed(0)
    method, batch = config.build(TINY.override({"drop_path": 0.0}), steps=10), _batch(config)
    batch = replace(batch, labels=torch.tensor([2, -1, 0, 1]))
    expected = []
    for crops in batch.crops.values():
        for view in crops:
            for image, label in zip(view, batch.labels.tolist(), strict=True):
                if label >= 0:
                    scores = method.student.head(method.student.backbone(image[None]).cls)[0]
                    log_probs = scores - scores.exp().sum().log()
                    expected.append(-(0.8 * log_probs[label] + 0.2 * log_probs.mean()).item())
    output = method(batch, 0)
    assert len(expected) == 4 * 3
    assert output.losses["supervised"].item() == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    assert 0 <= output.diagnostics["train/accuracy"].item() <= 1


def test_supervised__no_labels_name_the_remedy():
    config = CONFIGS["supervised"]
    method = config.build(TINY, steps=10)
    with pytest.raises(ConfigError, match="no labels"):
        method(replace(_batch(config), labels=None), 0)
    unlabelled = replace(_batch(config), labels=torch.full((4,), -1))
    assert method(unlabelled, 0).losses["supervised"].item() == 0.0


def test_dinov2__separate_ibot_head_has_its_own_prototypes():
    method = CONFIGS["dinov2_long"].build(TINY, steps=10)
    assert method.student.ibot_head.prototypes.direction.shape == (48, 16)
    assert method.student.head.prototypes.direction.shape == (64, 16)


def test_method_config__refuses_what_cannot_be_trained():
    with pytest.raises(ValidationError, match="both 0"):
        DINOv2Config(dino_weight=0.0, ibot_weight=0.0)
    with pytest.raises(ValidationError, match="curriculum.local_size = 112 is more than local_crops.size = 96"):
        DINOConfig(curriculum=Curriculum(local_size=112))
    with pytest.raises(ValidationError, match="exactly 2 global crops"):
        DINOConfig(global_crops=DINOConfig().global_crops.override({"count": 3, "blur": (0.5,), "solarize": (0.0,)}))


@pytest.mark.parametrize("name", ["dino", "dinov2", "dinov2_long", "distillation"])
def test_forward__all_losses_over_prototypes_are_fused_or_none(name: str, monkeypatch: pytest.MonkeyPatch):
    asked, compute = [], losses.cross_entropy
    monkeypatch.setattr(losses, "cross_entropy", lambda *a, fused, **k: asked.append(fused) or compute(*a, **k))
    method = CONFIGS[name].build(TINY, steps=10)
    for fused in (False, True):
        method.fused_losses = fused
        asked.clear()
        method(_batch(CONFIGS[name]), 0)
        assert asked == [fused] * (1 if name == "dino" else 2)
