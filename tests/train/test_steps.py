"""The loop: resumed equals undisturbed bit for bit, several ranks equal one."""

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from raydino import collectives
from raydino.data.masks import block_masks
from raydino.methods.config import DINOConfig, DINOv2Config, MethodConfig, SelfDistillationConfig, SupervisedConfig
from raydino.nn.config import BackboneConfig, HeadConfig
from raydino.schedule import constant
from raydino.train import checkpoint as cp
from raydino.train.config import OptimConfig
from raydino.train.optim import build_optimizer
from raydino.train.parallel import replicate
from raydino.train.steps import Loop, train_step, training_steps
from raydino.views import Batch, Masks, Normalisation

STEPS, IMAGES = 8, 8
SMALL = {
    "global_crops.size": 32,
    "local_crops": {"size": 16, "count": 2},
    "head": {"prototypes": 64, "hidden": 32, "bottleneck": 16},
}


def make_loop(config: MethodConfig, *, drop_path: float = 0.2, accumulate: int = 1) -> Loop:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    backbone = BackboneConfig(
        name="vit_tiny_patch16_224", patch_size=8, width=32, depth=2, heads=2, drop_path=drop_path
    )
    small = {
        name: value for name, value in SMALL.items() if name != "head" or isinstance(config, SelfDistillationConfig)
    }
    method = config.override(small).build(backbone, steps=STEPS)
    optim = OptimConfig(lr=1e-3, warmup=2, weight_decay=constant(0.04))
    return Loop(
        method=method,
        module=replicate(method, torch.device("cpu")),
        optimizer=build_optimizer(method.student, optim),
        optim=optim,
        peak_lr=1e-3,
        seed=5,
        steps=STEPS,
        device=torch.device("cpu"),
        normalise=Normalisation(),
        accumulate=accumulate,
    )


def make_batches(start: int = 0, *, rank: int = 0, world: int = 1) -> Iterator[Batch]:
    for step in range(start, STEPS):
        generator = torch.Generator().manual_seed(step)
        crops = {
            "global": torch.randint(0, 256, (2, IMAGES, 3, 32, 32), generator=generator, dtype=torch.uint8),
            "local": torch.randint(0, 256, (2, IMAGES, 3, 16, 16), generator=generator, dtype=torch.uint8),
        }
        masks = torch.zeros(2, IMAGES, 16, dtype=torch.bool)
        masks[0, ::2, 2:7] = True  # of two ranks, one masks nothing
        mine = slice(rank, None, world)
        ids = tuple(bytes([i]) * 16 for i in range(IMAGES))[mine]
        labels = (torch.arange(IMAGES) % 3)[mine]
        yield Batch({k: v[:, mine] for k, v in crops.items()}, masks[:, mine], ids, step, labels)


def losses_of(loop: Loop, batches: Iterator[Batch]) -> list[float]:
    return [float(report.metrics["loss/total"]) for report in training_steps(loop, batches)]


def state_of(loop: Loop) -> dict[str, torch.Tensor]:
    tensors = {**loop.method.state_dict(), **cp.optimizer_tensors(loop.optimizer)}
    return {name: value.clone() for name, value in tensors.items()}


@pytest.mark.parametrize(
    "config",
    [DINOConfig(), DINOv2Config(), DINOv2Config(centering="sinkhorn_knopp")],
    ids=["dino", "dinov2", "dinov2_sinkhorn"],
)
@pytest.mark.parametrize("stop", [1, 3, 6])
def test_training_steps__resumed_repeats_the_undisturbed_run_bit_for_bit(config: MethodConfig, stop: int, tmp_path):
    whole = make_loop(config)
    expected = losses_of(whole, make_batches())
    first = make_loop(config)
    reports = training_steps(first, make_batches())
    for _ in range(stop):
        next(reports)
    state = cp.Checkpoint(stop, first.method.state_dict(), cp.optimizer_tensors(first.optimizer), {})
    cp.save(tmp_path, state, keep=2)
    resumed = make_loop(config)
    saved = cp.load_newest(tmp_path)
    resumed.method.load_state_dict(saved.model)
    cp.load_optimizer(resumed.optimizer, saved.optimizer)
    assert losses_of(resumed, make_batches(stop)) == expected[stop:]
    after, undisturbed = state_of(resumed), state_of(whole)
    assert after.keys() == undisturbed.keys()
    assert all(torch.equal(after[name], undisturbed[name]) for name in undisturbed)


# KoLeo looks for neighbours within a rank, so it alone depends on their number.
OVER_RANKS = {
    "dino": DINOConfig(),
    "dinov2": DINOv2Config(koleo_weight=0.0),
    "dinov2_long": DINOv2Config(
        koleo_weight=0.0, centering="sinkhorn_knopp", ibot_head=HeadConfig(prototypes=48, hidden=32, bottleneck=16)
    ),
    "supervised": SupervisedConfig(classes=3),
}


def _over_ranks(rank: int, most_masked: int | None = None) -> dict[str, tuple[list[float], dict[str, torch.Tensor]]]:
    out = {}
    for name, config in OVER_RANKS.items():
        if most_masked is not None and not isinstance(config, DINOv2Config):
            continue  # masks nothing
        loop, gradients = make_loop(config, drop_path=0.0), []
        weight = loop.method.student.backbone.vit.blocks[0].attn.qkv.weight
        # after the mean over ranks and after clipping; `append` returns the None that a hook has to
        loop.optimizer.register_step_pre_hook(lambda *_, w=weight, g=gradients: g.append(w.grad.clone()))
        batches = make_batches(rank=rank, world=collectives.world_size())
        losses = [
            float(collectives.all_mean(report.metrics["loss/total"]))
            for report in training_steps(loop, (replace(batch, most_masked=most_masked) for batch in batches))
        ]
        centers = {key: value for key, value in loop.method.state_dict().items() if key.endswith("center")}
        teacher = loop.method.teacher.backbone.vit.blocks[0].attn.qkv.weight.detach().clone()
        out[name] = (losses, {**centers, "gradient": gradients[0], "teacher": teacher})
    return out


def test_training_steps__two_ranks_train_what_one_does_and_so_they_do_with_fixed_shapes(gloo):
    """Losses, centres, Sinkhorn targets (through the loss), gradients and the teacher after all steps."""
    one, two = gloo(_over_ranks, 1)[0], gloo(_over_ranks, 2)
    padded = [found for world in (1, 2) for found in gloo(lambda rank: _over_ranks(rank, most_masked=90), world)]
    for name, (losses, tensors) in one.items():
        for rank in (found for found in (*two, *padded) if name in found):
            torch.testing.assert_close(torch.tensor(rank[name][0]), torch.tensor(losses), rtol=2e-4, atol=0)
            assert rank[name][1].keys() == tensors.keys()
            for key, tensor in tensors.items():
                torch.testing.assert_close(
                    rank[name][1][key], tensor, rtol=2e-3, atol=2e-4, msg=lambda m, at=(name, key): f"{at}: {m}"
                )
        assert len([key for key in tensors if key.endswith("center")]) == {"dino": 1, "dinov2": 2}.get(name, 0)


def test_training_steps__micro_batches_train_what_one_batch_does():
    config = DINOv2Config(koleo_weight=0.0)
    one, four = make_loop(config, drop_path=0.0), make_loop(config, drop_path=0.0, accumulate=4)
    torch.testing.assert_close(
        torch.tensor(losses_of(four, make_batches())), torch.tensor(losses_of(one, make_batches())), rtol=2e-4, atol=0
    )


def test_training_steps__a_batch_that_does_not_split_names_both_numbers():
    with pytest.raises(ValueError, match="8 images cannot be cut into 3"):
        losses_of(make_loop(DINOConfig(), accumulate=3), make_batches())


@pytest.mark.parametrize(
    "config", [DINOConfig(freeze_last_layer=3), DINOv2Config(freeze_last_layer=3)], ids=["dino", "dinov2"]
)
def test_training_steps__prototypes_stand_still_while_frozen(config: MethodConfig):
    """DINO's AdamW knows nothing of the frozen steps, DINOv2's has gathered moments in them."""
    loop = make_loop(config)
    prototypes = loop.method.student.head.prototypes.direction
    start, moved, moments = prototypes.detach().clone(), [], []
    for _ in training_steps(loop, make_batches()):
        moved.append(not torch.equal(prototypes, start))
        moments.append("exp_avg" in loop.optimizer.state[prototypes])
    assert moved == [False] * 3 + [True] * (STEPS - 3)
    assert moments == [isinstance(config, DINOv2Config)] * 3 + [True] * (STEPS - 3)


def test_training_steps__reports_the_gradient_norm_of_each_sub_module():
    config = DINOv2Config(ibot_head=HeadConfig(prototypes=48, hidden=32, bottleneck=16))
    report = next(training_steps(make_loop(config), make_batches()))
    parts = [float(report.metrics[f"optim/grad_norm_{name}"]) for name in ("backbone", "head", "ibot_head")]
    assert all(part > 0 for part in parts)
    assert math.hypot(*parts) == pytest.approx(float(report.metrics["optim/grad_norm"]), rel=1e-5)


def test_training_steps__reports_schedules_and_images():
    reports = list(training_steps(make_loop(DINOv2Config()), make_batches()))
    assert [r.step for r in reports] == list(range(STEPS))
    assert [r.metrics["optim/lr"] for r in reports[:3]] == [0.0, 1e-3, 1e-3]
    assert all(r.images == IMAGES and 0 <= r.waited <= r.seconds for r in reports)
    assert reports[0].metrics["teacher/temperature"] == pytest.approx(0.04)


class Asked(TorchDispatchMode):
    """The operations that would wait for a GPU, because the host has to know a value or how many there are."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name.startswith("index") and any(
            place is not None and place.dtype == torch.bool for place in args[1] if isinstance(args[1], (list, tuple))
        )
        if by_mask or name in {"_local_scalar_dense", "nonzero", "masked_select", "equal", "unique_dim", "_unique2"}:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("config", [DINOConfig(), DINOv2Config(centering="sinkhorn_knopp")], ids=["dino", "dinov2"])
def test_training_steps__the_host_asks_the_device_for_nothing_but_the_guards_verdict(config: SelfDistillationConfig):
    loop = make_loop(config)  # SGD, because AdamW keeps its counts on the host here, and in its kernel on a GPU
    loop = replace(loop, optimizer=build_optimizer(loop.method.student, OptimConfig(optimizer="sgd")))
    with Asked() as asked:
        next(training_steps(loop, make_batches()))
    # where the masks are, before the batch goes to the device; the verdict is read as a list, which is no operation
    assert asked.names == ["nonzero"]
    masked = make_batches().__next__().masks
    assert masked is not None
    with Asked() as asked:
        _ = masked[masked], float(masked.sum())
    assert asked.names == ["index", "_local_scalar_dense"]  # it sees what it has to see


class Shapes(TorchDispatchMode):
    """Every operation with the shapes of what goes in and comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, list[torch.Size]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)]
        self.seen.append((str(func), [tensor.shape for tensor in tensors]))
        return out


@pytest.mark.parametrize("config", ["dinov2", "dinov2_long"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_steps__fixed_shapes_are_those_of_every_operation_in_every_step(config: str, accumulate: int):
    def shapes(most_masked: int | None) -> list[list[tuple[str, list[torch.Size]]]]:
        loop = make_loop(OVER_RANKS[config].override({"freeze_last_layer": 0}), accumulate=accumulate)
        found = []
        for batch in islice(make_batches(), 4):
            masks = block_masks(Masks(), grid=(4, 4), seed=0, step=batch.step, lane=0, images=IMAGES, views=2)
            with Shapes() as shapes:
                train_step(loop, replace(batch, masks=torch.from_numpy(masks), most_masked=most_masked))
            found.append(shapes.seen)
        return found[1:]  # the first makes the optimiser's moments

    fixed, drawn = shapes(45), shapes(None)
    assert all(step == fixed[0] for step in fixed)
    assert not all(step == drawn[0] for step in drawn)


@pytest.mark.parametrize("config", [DINOConfig(), DINOv2Config()], ids=lambda config: type(config).__name__)
def test_training_steps__a_frozen_backbone_stays_while_the_head_learns(config: MethodConfig):
    loop = replace(make_loop(config), frozen_steps=3)
    before = {name: value.clone() for name, value in loop.method.state_dict().items()}
    for report in training_steps(loop, make_batches()):
        now = loop.method.state_dict()
        moved = {name for name, value in now.items() if not torch.equal(value, before[name])}
        assert any(name.startswith("student.head.") for name in moved) or report.step == 0  # the rate begins at 0
        frozen = not any(".backbone." in name for name in moved)
        assert frozen == (report.step < 3)
        if report.step == 3:
            break
    held = [parameter for parameter in loop.optimizer.state if parameter.shape == (1, 17, 32)]
    assert len(held) == 1  # moments of the position embeddings began when the backbone did
    assert loop.optimizer.state[held[0]]["step"] == 1
