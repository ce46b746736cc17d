"""Presets resolve to the published numbers. What is expected is typed from the papers' tables, not computed."""

import math
from dataclasses import replace

import phases
import presets
import pytest
import torch

from raydino.launch.cluster import ClusterConfig
from raydino.launch.workers.worker import build_loop
from raydino.methods.distillation_config import DistillationConfig
from raydino.recipe import Recipe
from raydino.train.steps import train_step
from raydino.views import Batch


def at_quarters(schedule, steps: int) -> list[float]:
    return [schedule.at(step, steps=steps) for step in (0, steps // 4, steps // 2, 3 * steps // 4, steps)]


def half_cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2


# name: batch, steps, peak rate, last rate, clip, prototypes, gain trained, start of the momentum
DINO = {
    "vits16": (512, 250_200, 1e-3, 1e-6, 3.0, 65_536, False, 0.996),
    "vits16-boosted": (1024, 375_300, 2e-3, 1e-6, 3.0, 65_536, True, 0.996),
    "vits16-800ep": (1024, 1_000_800, 2e-3, 1e-5, 0.0, 65_536, True, 0.996),
    "vitb16": (1024, 500_400, 3e-3, 2e-6, 0.3, 65_536, False, 0.996),
    "resnet50": (512, 250_200, 0.06, 1e-6, 3.0, 65_536, False, 0.996),
}
DINOV2 = {
    "vitl16-short": (2048, 125_000, 5.66e-3, 1e-6, 3.0, 65_536, True, 0.992),
    "vitl14": (3072, 625_000, 3.46e-4, 1e-6, 3.0, 131_072, True, 0.994),
    "vitg14": (3072, 625_000, 3.46e-4, 1e-6, 3.0, 131_072, True, 0.994),
}
PUBLISHED = [
    pytest.param(group[name], numbers, id=f"{kind}:{name}")
    for kind, group, table in (("dino", presets.DINO, DINO), ("dinov2", presets.DINOV2, DINOV2))
    for name, numbers in table.items()
]


@pytest.mark.parametrize(("recipe", "numbers"), PUBLISHED)
def test_published__rates_lengths_and_heads(recipe: Recipe, numbers: tuple):
    batch, steps, peak, last, clip, prototypes, gain, momentum = numbers
    assert (recipe.global_batch, recipe.steps) == (batch, steps)
    assert recipe.learning_rate == pytest.approx(peak, rel=2e-3)
    assert (recipe.optim.min_lr, recipe.optim.clip) == (last, clip)
    head = recipe.method.head
    assert (head.prototypes, head.train_gain, head.hidden, head.layers) == (prototypes, gain, 2048, 3)
    assert recipe.method.student_temperature == 0.1 and recipe.method.center_momentum == 0.9
    expected = [half_cosine(momentum, 1.0, done) for done in (0, 0.25, 0.5, 0.75, 1)]
    assert at_quarters(recipe.method.teacher_momentum, steps) == pytest.approx(expected, abs=1e-9)


# name: teacher temperature at 0, 25, 50, 75 and 100 %, its warm-up, that of the rate, frozen last layer (shares of the run)
TEMPERATURES = {
    "dino:vits16": ([0.04] * 5, 0, 10 / 100, 1 / 100),
    "dino:vits16-boosted": ([0.04, 0.07, 0.07, 0.07, 0.07], 30 / 300, 10 / 300, 1 / 300),
    "dino:vits16-800ep": ([0.04, 0.07, 0.07, 0.07, 0.07], 30 / 800, 10 / 800, 1 / 800),
    "dino:vitb16": ([0.04, 0.07, 0.07, 0.07, 0.07], 50 / 400, 10 / 400, 3 / 400),
    "dino:resnet50": ([0.04] * 5, 0, 10 / 100, 1 / 100),
    "dinov2:vitl16-short": ([0.04, 0.065, 0.07, 0.07, 0.07], 30 / 100, 10 / 100, 1 / 100),
    "dinov2:vitl14": ([0.04, 0.07, 0.07, 0.07, 0.07], 30 / 500, 80 / 500, 1 / 500),
    "dinov2:vitg14": ([0.04, 0.07, 0.07, 0.07, 0.07], 30 / 500, 80 / 500, 1 / 500),
}


@pytest.mark.parametrize("name", TEMPERATURES)
def test_published__temperatures_and_warm_ups(name: str):
    kind, _, key = name.partition(":")
    recipe = {"dino": presets.DINO, "dinov2": presets.DINOV2}[kind][key]
    values, warmup, rate_warmup, frozen = TEMPERATURES[name]
    assert at_quarters(recipe.method.teacher_temperature, recipe.steps) == pytest.approx(values, abs=2e-6)
    assert recipe.method.teacher_temperature.warmup == pytest.approx(warmup)
    assert recipe.optim.warmup == pytest.approx(rate_warmup)
    assert recipe.method.freeze_last_layer == pytest.approx(frozen)


# name: global scale, local crops, their size and scale, drop path, weight decay at the start and end
CROPS = {
    "dino:vits16": ((0.4, 1.0), 8, 96, (0.05, 0.4), 0.1, (0.04, 0.4)),
    "dino:vits16-boosted": ((0.4, 1.0), 8, 96, (0.05, 0.4), 0.1, (0.04, 0.4)),
    "dino:vits16-800ep": ((0.25, 1.0), 10, 96, (0.05, 0.25), 0.1, (0.04, 0.4)),
    "dino:vitb16": ((0.25, 1.0), 10, 96, (0.05, 0.25), 0.1, (0.04, 0.4)),
    "dino:resnet50": ((0.14, 1.0), 8, 96, (0.05, 0.14), 0.0, (1e-4, 1e-4)),
    "dinov2:vitl16-short": ((0.32, 1.0), 8, 96, (0.05, 0.32), 0.3, (0.04, 0.4)),
    "dinov2:vitl14": ((0.32, 1.0), 8, 98, (0.05, 0.32), 0.4, (0.04, 0.2)),
    "dinov2:vitg14": ((0.32, 1.0), 8, 98, (0.05, 0.32), 0.4, (0.04, 0.2)),
}


@pytest.mark.parametrize("name", CROPS)
def test_published__crops_and_regularisation(name: str):
    kind, _, key = name.partition(":")
    recipe = {"dino": presets.DINO, "dinov2": presets.DINOV2}[kind][key]
    scale, count, size, local_scale, drop_path, decay = CROPS[name]
    method = recipe.method
    assert (method.global_crops.count, method.global_crops.size, method.global_crops.scale) == (2, 224, scale)
    assert (method.local_crops.count, method.local_crops.size, method.local_crops.scale) == (count, size, local_scale)
    assert recipe.backbone.drop_path == drop_path
    ends = [recipe.optim.weight_decay.at(step, steps=recipe.steps) for step in (0, recipe.steps)]
    assert ends == pytest.approx(decay)


def test_published__networks_have_the_published_shapes():
    """Widths, depths, heads and feed-forward sizes of methods.md 1.1 and 2.4, from the networks themselves, on no memory."""
    shapes = {
        "dino:vits16": (384, 12, 6, 1536),
        "dino:vitb16": (768, 12, 12, 3072),
        "dinov2:vitl16-short": (1024, 24, 16, 4096),
        "dinov2:vitl14": (1024, 24, 16, 2736),
        "dinov2:vitg14": (1536, 40, 24, 4096),
    }
    for name, (width, depth, heads, hidden) in shapes.items():
        kind, _, key = name.partition(":")
        recipe = {"dino": presets.DINO, "dinov2": presets.DINOV2}[kind][key]
        with torch.device("meta"):
            backbone = recipe.backbone.build(image_size=224, drop_path=0.0)
        block = backbone.vit.blocks[0]
        found = (backbone.width, backbone.depth, block.attn.num_heads, block.mlp.fc2.in_features)
        assert found == (width, depth, heads, hidden), name
        grid = 224 // recipe.backbone.patch_size
        assert backbone.vit.pos_embed.shape == (1, grid**2 + 1, width)


def test_published__as_many_workers_as_published_can_share_the_lanes():
    workers = {"vitl16-short": 32, "vitl14": 96, "vitg14": 256}
    assert all(presets.DINOV2[name].lanes % count == 0 for name, count in workers.items())
    workers = {"vits16": 8, "vits16-boosted": 16, "vitb16": 32}
    assert all(presets.DINO[name].lanes % count == 0 for name, count in workers.items())


def test_published__dinov2_long_has_two_heads_and_sinkhorn():
    for name in ("vitl14", "vitg14"):
        method = presets.DINOV2[name].method
        assert method.centering == "sinkhorn_knopp"
        assert (method.head.bottleneck, method.ibot_head.bottleneck, method.ibot_head.prototypes) == (384, 256, 131_072)
    assert presets.DINOV2["vitl16-short"].method.ibot_head is None


def test_ours__schedules_are_shares_of_the_run_and_end_in_time():
    for group in (presets.DINOV2, presets.DINO):
        for key, recipe in group.items():
            if group is presets.DINOV2 and not key.startswith("vitl") and key != "vitg14":
                lengths = [recipe.optim.warmup, *recipe.method.lengths().values()]
                assert all(isinstance(length, float) or length == 0 for length in lengths), key


def shrunk(recipe: Recipe) -> Recipe:
    """The same recipe at a size that a laptop steps through in a second: what is switched on stays switched on."""
    patch, small = recipe.backbone.patch_size, {"backbone.width": 32, "backbone.depth": 2, "backbone.heads": 2}
    if recipe.backbone.name == "resnet50":
        small = {"backbone.name": "resnet10t"}
    if hasattr(recipe.method, "head"):
        head = {"prototypes": 32, "hidden": 16, "bottleneck": 8}
        untied = getattr(recipe.method, "ibot_head", None) is not None
        small |= {"method.head": head} | ({"method.ibot_head": head} if untied else {})
        if isinstance(recipe.method, DistillationConfig):
            network = {"width": 48, "depth": 3, "heads": 2}
            small |= {"method.teacher": {"backbone": network, "size": 4 * patch, "head": head}}
            small |= {"method.teacher.ibot_head": head} if untied else {}
    return recipe.override(
        {
            **small,
            "global_batch": 4,
            "lanes": 4,
            "method.global_crops.size": 4 * patch,
            "method.local_crops": {"size": 2 * patch, "count": 2},
        }
    )


def batch_of(recipe: Recipe, images: int = 4) -> Batch:
    torch.manual_seed(1)
    views = recipe.views
    crops = {name: torch.randint(0, 256, shape, dtype=torch.uint8) for name, shape in views.shapes(images).items()}
    masks = None
    if views.masks is not None:
        masks = torch.zeros(2, images, views.grid[0] * views.grid[1], dtype=torch.bool)
        masks[:, ::2, 3:9] = True
    labels = torch.arange(images) if views.labels else None
    return Batch(crops, masks, tuple(bytes([i]) for i in range(images)), 0, labels)


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(recipe, id=f"{kind}:{key}")
        for kind, group in (
            ("dinov2", presets.DINOV2),
            ("dino", presets.DINO),
            ("supervised", presets.SUPERVISED),
            ("highres", {name: kind.recipe(None) for name, kind in phases.HIGHRES.items()}),
            ("distill", {name: kind.recipe(None) for name, kind in phases.DISTILL.items()}),
        )
        for key, recipe in group.items()
    ],
)
def test_preset__takes_a_step(recipe: Recipe):
    """Finite losses, gradients on the student only, a teacher that moves after the step alone, a state that comes back."""
    small = shrunk(recipe)
    plain = ClusterConfig(precision="fp32", attention="fused")  # as `again` below
    loop, batch = build_loop(small, plain, torch.device("cpu")), batch_of(small)
    method = loop.method
    before = {name: value.clone() for name, value in method.teacher.named_parameters()}
    float_batch = replace(batch, crops={name: loop.normalise(crop) for name, crop in batch.crops.items()})
    output = method(float_batch, 0)
    sum(output.losses.values()).backward()
    assert all(torch.isfinite(value) for value in [*output.losses.values(), *output.diagnostics.values()])
    assert all(value.grad is None for value in method.teacher.parameters())
    assert not [n for n, value in method.student.named_parameters() if value.requires_grad and value.grad is None]
    assert all(torch.equal(before[name], value) for name, value in method.teacher.named_parameters())
    loop.optimizer.zero_grad()
    metrics = train_step(loop, replace(batch, step=small.steps // 2)).metrics
    assert math.isfinite(float(metrics["loss/total"]))
    assert any(not torch.equal(before[name], value) for name, value in method.teacher.named_parameters())
    again = small.method.build(small.backbone, steps=small.steps)
    again.load_state_dict(method.state_dict())
    losses = []
    for one in (method, again):
        torch.manual_seed(5)
        losses.append(one(float_batch, 1).losses)
    assert all(torch.equal(losses[0][name], losses[1][name]) for name in losses[0])
