"""What distillation does beyond DINOv2: a teacher that stays what it is, nothing masked, a loss on all patches."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from raydino import collectives
from raydino.config import ConfigError
from raydino.methods.config import DINOv2Config
from raydino.methods.distillation import Distillation
from raydino.recipe import Recipe
from raydino.schedule import constant
from raydino.train.config import OptimConfig
from raydino.train.optim import build_optimizer
from raydino.train.parallel import distribute
from raydino.train.profiling.parts import STUDENT, TEACHER
from raydino.train.profiling.work import work_per_image
from raydino.train.steps import Loop, training_steps
from raydino.views import Batch, Normalisation
from tests.methods.test_methods import CONFIGS, TINY

PLAIN = TINY.override({"drop_path": 0.0})
STEPS, IMAGES = 4, 8


def a_method(name: str = "distillation", **changes: Any) -> Distillation:
    torch.manual_seed(0)
    method = CONFIGS[name].override(changes).build(PLAIN, steps=STEPS)
    assert isinstance(method, Distillation)
    return method


def batches():
    rank, world = collectives.rank(), collectives.world_size()
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        sizes = {"global": 32, "local": 16}
        crops = {
            name: torch.randint(0, 256, (2, IMAGES, 3, size, size), generator=generator, dtype=torch.uint8)
            for name, size in sizes.items()
        }
        mine = slice(rank, None, world)
        ids = tuple(bytes([i]) * 16 for i in range(IMAGES))[mine]
        yield Batch({name: crop[:, mine] for name, crop in crops.items()}, None, ids, step)


def trained(method: Distillation) -> dict[str, torch.Tensor]:
    """Losses of a few steps, averaged over ranks, and the state after them; the frozen teacher's too."""
    cpu = torch.device("cpu")
    module = distribute(method, cpu, parallel="ddp", compute="fp32", reduce="fp32")
    optim = OptimConfig(lr=1e-3, warmup=1, clip=1.0)
    loop = Loop(method, module, build_optimizer(method.student, optim), optim, 1e-3, 5, STEPS, cpu, Normalisation())
    losses = [
        collectives.all_mean(torch.as_tensor(report.metrics["loss/total"]))
        for report in training_steps(loop, batches())
    ]
    frozen = {f"frozen.{name}": value for name, value in method.frozen.state_dict().items()}
    return {"loss": torch.stack(losses), **method.state_dict(), **frozen}


@pytest.mark.parametrize("name", ["distillation", "distillation_long"])
def test_losses__are_those_of_nested_loops_over_pairs_and_patches(name: str):
    """Crop by crop, pair by pair, patch by patch, from the frozen teacher's own outputs."""
    method = a_method(name, centering="softmax", teacher_temperature=constant(0.05), koleo_weight=0.0)
    for centering in method.centerings():
        torch.nn.init.normal_(centering.center, std=0.02)
    batch = next(iter(batches()))
    crops = {group: [Normalisation()(crop) for crop in views] for group, views in batch.crops.items()}
    student, teacher = method.student, method.frozen

    def entropy(target: torch.Tensor, scores: torch.Tensor) -> float:
        return -(target * torch.log_softmax(scores / 0.1, -1)).sum().item()

    def target(scores: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
        return torch.softmax((scores - centre) / 0.05, -1)

    with torch.no_grad():
        said = [teacher.backbone(crop) for crop in crops["global"]]
        heard = [student.backbone(crop) for crop in [*crops["global"], *crops["local"]]]
        total = {"dino_global": 0.0, "dino_local": 0.0, "ibot": 0.0}
        for q in range(2):
            targets = target(teacher.head(said[q].cls), method.centering.center)
            for v in range(4):
                if v != q:
                    scores = student.head(heard[v].cls)
                    for image in range(IMAGES):
                        share = entropy(targets[image], scores[image]) / IMAGES / 6
                        total["dino_global" if v < 2 else "dino_local"] += share
            patch_targets = target(
                (teacher.ibot_head or teacher.head)(said[q].patches.flatten(0, 1)), method.ibot_centering.center
            ).unflatten(0, (IMAGES, 16))
            patch_scores = (student.ibot_head or student.head)(heard[q].patches.flatten(0, 1)).unflatten(
                0, (IMAGES, 16)
            )
            for image in range(IMAGES):
                for patch in range(16):
                    total["ibot"] += (
                        entropy(patch_targets[image, patch], patch_scores[image, patch]) / 16 / (2 * IMAGES)
                    )
        float_batch = Batch({group: torch.stack(views) for group, views in crops.items()}, None, batch.ids, 0)
        losses = method(float_batch, 0).losses
    assert losses.keys() == total.keys()
    for key, value in total.items():
        assert losses[key].item() == pytest.approx(value, rel=1e-4), key


def test_training__leaves_the_teacher_bit_for_bit_and_averages_the_student():
    before = {name: value.clone() for name, value in a_method().frozen.state_dict().items()}
    method = a_method(teacher_momentum=constant(0.75))
    first = [value.clone() for value in method.student.parameters()]
    seen: list[list[torch.Tensor]] = []
    step = method.after_step

    def after_step(number: int) -> None:
        seen.append([value.detach().clone() for value in method.student.parameters()])
        step(number)

    method.after_step = after_step  # type: ignore[method-assign]
    trained(method)
    assert all(torch.equal(value, before[name]) for name, value in method.frozen.state_dict().items())
    assert all(value.grad is None and not value.requires_grad for value in method.frozen.parameters())
    assert len(seen) == STEPS
    for number, average in enumerate(method.teacher.parameters()):
        expected = 0.75**STEPS * first[number]
        for at, students in enumerate(seen):
            expected = expected + 0.25 * 0.75 ** (STEPS - 1 - at) * students[number]
        torch.testing.assert_close(average, expected, rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(old, new) for old, new in zip(first, method.student.parameters(), strict=True))


def test_method__asks_for_no_masks_and_gives_the_student_whole_crops():
    config = CONFIGS["distillation"]
    assert config.views(PLAIN).masks is None and "masks" not in type(config).model_fields
    method, seen = a_method(), []
    method.student.backbone.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[1:]))
    masked = Batch(
        {name: torch.randn(2, 2, 3, size, size) for name, size in (("global", 32), ("local", 16))},
        torch.ones(2, 2, 16, dtype=torch.bool),
        (b"a", b"b"),
        0,
    )
    method(masked, 0)
    assert seen == [(None,), ()]
    assert "mask_token" not in {n.rpartition(".")[2] for n, p in method.student.named_parameters() if p.requires_grad}


def test_state_dict__is_without_the_frozen_teacher_and_loads_without_it():
    method, other = a_method(), a_method("distillation")
    state = method.state_dict()
    assert state and not [name for name in state if "frozen" in name]
    other.load_state_dict(state)
    with pytest.raises(RuntimeError, match="student"):
        other.load_state_dict({name: value for name, value in state.items() if not name.startswith("student.head")})


def _on_ranks(rank: int) -> dict[str, torch.Tensor]:
    return trained(a_method(koleo_weight=0.0))


def test_training__is_the_same_on_one_worker_and_on_two(gloo: Callable[..., list[dict[str, torch.Tensor]]]):
    expected = trained(a_method(koleo_weight=0.0))  # KoLeo looks for neighbours within a rank
    for rank in gloo(_on_ranks, 2):
        assert rank.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(
                rank[name], value, rtol=1e-3, atol=1e-5, msg=lambda text, at=name: f"{at}: {text}"
            )
            if name.startswith("frozen."):
                assert torch.equal(rank[name], value)


def test_config__other_prototypes_than_the_teachers_are_refused_by_name():
    with pytest.raises(ConfigError, match=r"head\.prototypes = 32: the teacher has 64, .*set it to 64"):
        CONFIGS["distillation"].override({"head.prototypes": 32})
    with pytest.raises(ConfigError, match=r"ibot_head \(of patches\)\.prototypes = 32: the teacher has 48"):
        CONFIGS["distillation_long"].override({"ibot_head.prototypes": 32})
    with pytest.raises(ConfigError, match=r"head \(of patches\)\.prototypes = 64: the teacher has 48"):
        CONFIGS["distillation_long"].override({"ibot_head": None})
    CONFIGS["distillation_long"].override({"ibot_head": None, "ibot_weight": 0.0})  # then nobody asks


def test_recipe__another_grid_of_patches_than_the_teachers_is_refused():
    recipe = Recipe(method=CONFIGS["distillation"], backbone=TINY)
    with pytest.raises(ConfigError, match=r"backbone\.patch_size = 4: the teacher has 8, .*set it to 8"):
        recipe.override({"backbone.patch_size": 4})
    with pytest.raises(ConfigError, match=r"backbone\.channels = 1: the teacher has 3"):
        recipe.override({"backbone.channels": 1})


def test_work__counts_the_teacher_that_speaks_and_all_patches():
    """A teacher of the student's own network costs what DINOv2's does; a larger one more; patches are all asked about."""
    own = CONFIGS["distillation"].override({"teacher.backbone": PLAIN, "teacher.head": CONFIGS["distillation"].head})
    masked = DINOv2Config().override(
        {name: getattr(own, name) for name in ("global_crops", "local_crops", "head")} | {"masks.ratio": (1.0, 1.0)}
    )
    assert (twin := work_per_image(own, PLAIN, images=4)) is not None
    hidden = work_per_image(masked.override({"masks.probability": 1.0}), PLAIN, images=4)
    assert hidden is not None and twin.nominal == hidden.nominal
    larger = work_per_image(CONFIGS["distillation"], PLAIN, images=4)
    assert larger is not None and larger.nominal[STUDENT] == twin.nominal[STUDENT]
    assert larger.nominal[TEACHER] > 2 * twin.nominal[TEACHER]
