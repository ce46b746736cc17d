"""What an ablation compares: a recipe, and the same recipe with one component off, on or swapped.

Each variant is a few dotted overrides of the recipe it is made for. Where a recipe lacks a component (an untied head, a frozen
last layer), having it is the variant, and the expected direction turns round. What is expected stands in the papers or is left
open; figures are ImageNet-1k k-NN top-1 unless another measure is named. DINO: arXiv 2104.14294; iBOT: 2111.07832; DINOv2:
2304.07193; FastDINOv2: 2507.03779.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from raydino.config import ConfigError, in_steps
from raydino.methods.config import DINOv2Config, SelfDistillationConfig
from raydino.recipe import Recipe
from raydino.schedule import Schedule, constant
from raydino.views import Size, height_width

FULL = "full"
"""Name of the recipe itself among the variants."""
SLOW_CENTRE = 0.999
SCALE_WITHOUT_LOCAL = (0.14, 1.0)  # of global crops (DINO's official advice)
FROZEN = 0.01  # of the run: 1 epoch of 100 (DINO)
REGISTERS = 4
SMALL_SIDE = 0.5  # of the full one (FastDINOv2)
SMALL_SHARE = 0.75  # of the run
SHORTER_MEMORY = 10

Expected = Literal["worse", "same", "better", "collapse"]


@dataclass(frozen=True)
class Variant:
    """One change of a recipe."""

    name: str
    component: str
    """What is ablated, in the words of the papers."""
    change: str
    """What the variant does about it."""
    changes: Mapping[str, Any]
    """Fields of the recipe, dotted."""
    expected: Expected | None = None
    """What k-NN does, according to the papers; None where they do not say."""
    published: str = "no figure"
    """The figures behind it, with their source."""


@dataclass(frozen=True)
class LeftOut:
    """A variant that a recipe cannot have."""

    name: str
    reason: str


def variants(recipe: Recipe) -> tuple[list[Variant], list[LeftOut]]:
    """All variants of `recipe`, and those that it cannot have. Raises ConfigError for a method without a teacher that teaches."""
    method = recipe.method
    if not isinstance(method, SelfDistillationConfig):
        raise ConfigError(f"{type(method).__name__} does not learn from a teacher; give a recipe of DINO or DINOv2.")
    parts = (
        *_teacher(method),
        *_targets(method),
        *_views(recipe, method),
        *_losses(method),
        *_head(method),
        *_network(recipe),
        *_schedules(recipe, method),
    )
    return [part for part in parts if isinstance(part, Variant)], [part for part in parts if isinstance(part, LeftOut)]


def chosen(recipe: Recipe, only: Sequence[str]) -> tuple[list[Variant], list[LeftOut]]:
    """`variants`, or those named in `only`. Raises ConfigError for a name that is unknown or does not apply."""
    there, left_out = variants(recipe)
    names, reasons = [variant.name for variant in there], {part.name: part.reason for part in left_out}
    for name in only:
        if name in reasons:
            raise ConfigError(f"--only {name}: {reasons[name]}.")
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}."
            raise ConfigError(f"--only {name}: no such variant; {hint}")
    return [variant for variant in there if not only or variant.name in only], [] if only else left_out


def applied(recipe: Recipe, variant: Variant | None, *, seed: int) -> Recipe:
    """`recipe` with a variant's changes (None: as it is) at `seed`, named after it. Raises ConfigError if that cannot be."""
    changes = dict(variant.changes) if variant is not None else {}
    return recipe.override({**changes, "seed": seed, "name": f"{recipe.name}-{variant.name if variant else FULL}"})


def _teacher(method: SelfDistillationConfig) -> Iterator[Variant | LeftOut]:
    component, momentum = "EMA teacher", method.teacher_momentum
    if momentum.start == momentum.end == 0:
        yield LeftOut("copied_teacher", "the recipe's teacher is the student already")
    elif method.centering == "sinkhorn_knopp":
        published = "linear 71.8 against 76.0 with Sinkhorn-Knopp (DINO, ViT-S/16, 300 epochs)"
        yield Variant("copied_teacher", component, "student copied", _copied(), "worse", published)
    else:
        published = "0.1 against 72.8 (DINO, ViT-S/16, 300 epochs)"
        yield Variant("copied_teacher", component, "student copied", _copied(), "collapse", published)
    faster = _faster(momentum)
    if faster == momentum:
        yield LeftOut("fast_teacher", "the recipe's teacher remembers nothing already")
    else:
        change = f"momentum {momentum.start:g} → {faster.start:g}, a tenth of its memory"
        yield Variant("fast_teacher", "momentum", change, {"method.teacher_momentum": faster})


def _copied() -> dict[str, Any]:
    return {"method.teacher_momentum": constant(0.0)}


def _faster(momentum: Schedule) -> Schedule:
    """A teacher that forgets ten times as fast."""

    def less(value: float) -> float:
        return round(max(0.0, 1 - SHORTER_MEMORY * (1 - value)), 6)

    return momentum.override({"start": less(momentum.start), "end": less(momentum.end), "warmup": 0})


def _targets(method: SelfDistillationConfig) -> Iterator[Variant | LeftOut]:
    balanced = method.centering == "sinkhorn_knopp"
    if method.centering == "none":
        yield LeftOut("no_centering", "the recipe has none")
    else:
        published = "all targets become one prototype; no k-NN figure (DINO, section 5.3)"
        change = {"method.centering": "none"}
        yield Variant("no_centering", "centring", "softmax alone", change, "collapse", published)
    if method.centering == "softmax":
        slow = {"method.center_momentum": SLOW_CENTRE}
        published = "0.1 against 69.7 at 0.9 (DINO, ViT-S/16, 100 epochs)"
        yield Variant("slow_centre", "centring", f"centre momentum {SLOW_CENTRE}", slow, "collapse", published)
    else:
        yield LeftOut("slow_centre", f"centering = {method.centering} keeps no centre")
    flat = {"method.teacher_temperature": constant(method.student_temperature)}
    published = "teacher at 0.08 without warm-up: 0.1 against 69.6 at 0.04 (DINO, ViT-S/16, 100 epochs)"
    change = f"teacher temperature {method.student_temperature:g}, as the student's"
    yield Variant("no_sharpening", "sharpening", change, flat, None if balanced else "collapse", published)
    other = "softmax" if balanced else "sinkhorn_knopp"
    published = (
        "81.7 with either (DINOv2, table 1, ViT-L); linear 76.0 against 76.1 centred (DINO, ViT-S/16, 300 epochs)"
    )
    change = f"{'centred softmax' if balanced else 'Sinkhorn-Knopp'} instead"
    name = "softmax_centering" if balanced else "sinkhorn_knopp"
    yield Variant(name, "Sinkhorn-Knopp or centring", change, {"method.centering": other}, "same", published)


def _views(recipe: Recipe, method: SelfDistillationConfig) -> Iterator[Variant | LeftOut]:
    if method.local_crops.count:
        without = {"method.local_crops.count": 0, "method.global_crops.scale": SCALE_WITHOUT_LOCAL}
        published = "67.9 against 72.8 (DINO, ViT-S/16, 300 epochs)"
        change = "2 global crops of 0.14 to 1 of the area"
        yield Variant("no_multi_crop", "multi-crop", change, without, "worse", published)
    else:
        yield LeftOut("no_multi_crop", "the recipe has no local crops")
    if method.local_crops.count and method.teacher_sees == "global":
        published = "local to global is DINO's definition (section 3.1); no figure"
        change = {"method.teacher_sees": "all"}
        yield Variant(
            "teacher_sees_all", "local crops for the student only", "teacher sees them too", change, None, published
        )
    else:
        yield LeftOut("teacher_sees_all", "the recipe has no local crops that its teacher does not see")
    if method.curriculum is not None:
        change = {"method.curriculum": None}
        yield Variant("no_curriculum", "curriculum (resolution)", "full size throughout", change, "same", _CURRICULUM)
        return
    small = {
        "global_size": _small(recipe, method.global_crops.size),
        "local_size": _small(recipe, method.local_crops.size),
    }
    sides = f"{small['global_size']} and {small['local_size']} pixels"
    arms: tuple[tuple[str, float, Expected, str], ...] = (
        ("curriculum", SMALL_SHARE, "same", _CURRICULUM),
        ("low_resolution", 1.0, "worse", _LOW),
    )
    for name, length, expected, published in arms:
        if small["global_size"] == method.global_crops.size:
            yield LeftOut(name, f"crops of {method.global_crops.size} pixels cannot be halved")
            continue
        change = f"{sides} for {'the whole' if length == 1.0 else f'{length:.0%} of the'} run"
        changes = {"method.curriculum": {"length": length, **small}}
        yield Variant(name, "curriculum (resolution)", change, changes, expected, published)


_CURRICULUM = (
    "half the side for 75 % of the epochs: 1.6 times faster, accuracy close (FastDINOv2, ViT-B/16); 224, then 416 for 10,000 "
    "steps: nearly 416 throughout, at a third of its cost (DINOv2, ViT-L/16)"
)
_LOW = "a short phase of 416 after 224 reaches nearly what 416 throughout does (DINOv2, ViT-L/16)"


def _small(recipe: Recipe, size: Size) -> Size:
    """Half of a crop's sides in whole patches, rounded up; at least 2 patches where it has as many."""
    patch = recipe.backbone.patch_size

    def half(side: int) -> int:
        patches = max(min(2, side // patch), -int(-side * SMALL_SIDE // patch))
        return patches * patch

    height, width = (half(side) for side in height_width(size))
    return height if isinstance(size, int) else (height, width)


def _losses(method: SelfDistillationConfig) -> Iterator[Variant | LeftOut]:
    if not isinstance(method, DINOv2Config):
        yield LeftOut("no_koleo", "DINO has no KoLeo")
        yield LeftOut("no_ibot", "DINO masks nothing")
        return
    if method.koleo_weight > 0:
        published = "76.6 against 78.9 (DINOv2, table 1, ViT-L)"
        yield Variant("no_koleo", "KoLeo", "weight 0", {"method.koleo_weight": 0.0}, "worse", published)
    else:
        yield LeftOut("no_koleo", "the recipe has no KoLeo")
    if method.ibot_weight > 0 and method.dino_weight > 0:
        published = "74.5 (DINO) against 75.2 (iBOT, ViT-S/16, 800 epochs); ADE20k mIoU 44.2 against 47.1 (DINOv2)"
        change = "no masks, no loss on patches"
        yield Variant("no_ibot", "iBOT masks", change, {"method.ibot_weight": 0.0}, "worse", published)
    else:
        yield LeftOut("no_ibot", "the recipe has not both of the losses")


def _head(method: SelfDistillationConfig) -> Iterator[Variant | LeftOut]:
    masked = isinstance(method, DINOv2Config) and method.ibot_weight > 0
    untied = method.ibot_head if isinstance(method, DINOv2Config) else None
    if method.head.normalise:
        off = {"method.head.normalise": False, **({"method.ibot_head.normalise": False} if untied else {})}
        published = "0.1 with 3 layers or more, 68.0 and 69.3 with it (DINO, appendix C, K = 4,096)"
        expected = "collapse" if method.head.layers >= 3 else None
        yield Variant("no_l2_bottleneck", "L2 bottleneck", "not normalised", off, expected, published)
    else:
        yield LeftOut("no_l2_bottleneck", "the recipe's bottleneck is not normalised")
    published = "82.0 untied against 81.7 (DINOv2, table 1, ViT-L)"
    if not masked:
        yield LeftOut("untied_heads", "one loss needs one head")
    elif untied is None:
        own = {"method.ibot_head": method.head.dump()}
        yield Variant("untied_heads", "untied heads", "a head of its own for patches", own, "better", published)
    else:
        yield Variant("tied_heads", "untied heads", "one head for both", {"method.ibot_head": None}, "worse", published)
    if method.freeze_last_layer:
        free = {"method.freeze_last_layer": 0}
        yield Variant("free_last_layer", "frozen last layer", "trained from the start", free)
    else:
        frozen = {"method.freeze_last_layer": FROZEN}
        yield Variant("frozen_last_layer", "frozen last layer", f"still for {FROZEN:.0%} of the run", frozen)


def _network(recipe: Recipe) -> Iterator[Variant | LeftOut]:
    published = "79.1 with 4 against 79.0 (ViT-S/14), 83.8 against 83.5 (ViT-L/14; released DINOv2 models)"
    if not recipe.backbone.name.startswith(("vit_", "deit")):
        yield LeftOut("registers", f"{recipe.backbone.name} has no tokens")
    elif recipe.backbone.registers:
        off = {"backbone.registers": 0}
        yield Variant("no_registers", "registers", "none", off, "same", published)
    else:
        on = {"backbone.registers": REGISTERS}
        yield Variant("registers", "registers", f"{REGISTERS} register tokens", on, "same", published)


def _schedules(recipe: Recipe, method: SelfDistillationConfig) -> Iterator[Variant | LeftOut]:
    component, published = "schedules", "DINOv3 trains with constant ones; no figure"
    held = {"optim.min_lr": recipe.learning_rate}
    yield Variant("constant_learning_rate", component, "no decay after the warm-up", held, None, published)
    for name, field, schedule in (
        ("constant_weight_decay", "optim.weight_decay", recipe.optim.weight_decay),
        ("constant_momentum", "method.teacher_momentum", method.teacher_momentum),
    ):
        if schedule.start == schedule.end:
            yield LeftOut(name, f"the recipe's {field} is constant")
        else:
            changes = {field: constant(schedule.start)}
            yield Variant(
                name, component, f"{schedule.start:g} throughout, not to {schedule.end:g}", changes, None, published
            )
    temperature = method.teacher_temperature
    if in_steps(temperature.warmup, recipe.steps):
        cold = {"method.teacher_temperature": constant(temperature.end)}
        published = "0.06: 68.7, 0.08: 0.1; warmed up to 0.07: 69.7 (DINO, ViT-S/16, 100 epochs)"
        change = f"teacher temperature {temperature.end:g} from the start"
        yield Variant("no_temperature_warmup", component, change, cold, None, published)
    else:
        yield LeftOut("no_temperature_warmup", "the recipe's teacher temperature has no warm-up")
