"""A run that is killed and resumed at random steps is the run that was left alone: order, pixels, losses and every weight.

The whole chain but Ray, over more than two epochs: the plan, the stream, the method, the optimiser, and checkpoints on disk in
between. Order and pixels are also compared over numbers of workers, from any step and where the number changes within an epoch.
The run has a curriculum, so that crops grow in the middle of it.
"""

import random
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import phases
import pytest
import torch
from torch import Tensor

from raydino.curation.synthetic import write_builtin
from raydino.data.batches import batches
from raydino.data.fetch import local_windows
from raydino.launch.cluster import ClusterConfig
from raydino.launch.init import keep, settled
from raydino.launch.inputs import Inputs, open_inputs
from raydino.launch.workers import audit
from raydino.launch.workers.worker import build_loop
from raydino.methods.config import DINOv2Config
from raydino.nn.config import BackboneConfig
from raydino.recipe import Recipe
from raydino.train import checkpoint as cp
from raydino.train.config import OptimConfig
from raydino.train.steps import Loop, training_steps
from raydino.views import Batch

LATE = 30
GROWN = 17  # the step from which crops have their full size
RECIPE = Recipe(
    steps=33,
    global_batch=16,
    lanes=4,
    backbone=BackboneConfig(
        name="vit_tiny_patch16_224", patch_size=4, width=32, depth=2, heads=2, drop_path=0.1, layer_scale=0.1
    ),
    method=DINOv2Config().override(
        {
            "global_crops.size": 16,
            "local_crops.size": 8,
            "local_crops.count": 2,
            "head": {"prototypes": 64, "hidden": 32, "bottleneck": 16},
            "freeze_last_layer": 5,
            "curriculum": {"length": GROWN, "global_size": 8, "local_size": 4},
        }
    ),
    optim=OptimConfig(lr=1e-3, warmup=0.2, layer_decay=0.9),
).override({"data.window": 16})


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = str(tmp_path_factory.mktemp("resume") / "images")
    write_builtin(folder, train=240, test=60)
    inputs = open_inputs(RECIPE.override({"data.path": folder}), folder)
    assert 2 * inputs.plan.steps_per_epoch < RECIPE.steps
    return inputs


def stream_of(
    inputs: Inputs, start: int, *, rank: int = 0, world: int = 1, steps: int, recipe: Recipe = RECIPE
) -> Generator[Batch, None, None]:
    """The batches of `steps` steps of a run that began, or went on, at `start`."""
    for asked, views in recipe.phases(start, start + steps):
        yield from batches(
            inputs.collection,
            inputs.plan,
            views,
            seed=recipe.seed,
            rank=rank,
            world=world,
            start_step=asked.start,
            steps=len(asked),
            max_bad=1.0,
            on_bad=lambda bad: None,
            read=local_windows,
        )


def state_of(loop: Loop) -> dict[str, Tensor]:
    """Student, teacher, centres and optimiser."""
    return {
        name: value.clone()
        for part in (loop.method.state_dict(), cp.optimizer_tensors(loop.optimizer))
        for name, value in part.items()
    }


def same(state: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return state.keys() == other.keys() and all(torch.equal(state[name], other[name]) for name in state)


def train(
    inputs: Inputs,
    log: Path,
    saves: Path,
    *,
    kill: int,
    save: set[int],
    recipe: Recipe = RECIPE,
    run_dir: Path | None = None,
) -> Loop:
    """One life of a run: up from its newest checkpoint, then on until `kill` steps are done. `run_dir` has what `recipe` begins
    with."""
    saved = cp.load_newest(saves)
    loop = build_loop(recipe, ClusterConfig(threads=1), torch.device("cpu"), run_dir, fresh=saved is None)
    if saved is not None:
        loop.method.load_state_dict(saved.model)
        cp.load_optimizer(loop.optimizer, saved.optimizer)
    start = saved.step if saved else 0
    witness = audit.Audit(log, inputs.plan, rank=0, world=1, start=start)
    with closing(stream_of(inputs, start, steps=kill - start, recipe=recipe)) as stream:
        for report in training_steps(loop, witness.batches(stream)):
            witness.step(report)
            done = report.step + 1
            if done in save:
                cp.save(
                    saves,
                    cp.Checkpoint(done, loop.method.state_dict(), cp.optimizer_tensors(loop.optimizer), {}),
                    keep=2,
                )
    return loop


@dataclass
class Golden:
    lines: dict[int, dict[str, Any]]
    final: dict[str, Tensor]
    late: cp.Checkpoint
    """Of step `LATE`."""


@pytest.fixture(scope="module")
def golden(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Golden:
    folder = tmp_path_factory.mktemp("golden-run")
    loop = train(inputs, folder / "audit", folder / "saves", kill=RECIPE.steps, save={LATE})
    late = cp.load_newest(folder / "saves")
    assert late is not None
    return Golden(audit.effective(audit.read(folder / "audit", 0)), state_of(loop), late)


def without_pid(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name != "pid"} for line in lines]


def test_run__killed_at_many_random_steps_is_the_undisturbed_one_bit_for_bit(
    inputs: Inputs, golden: Golden, tmp_path: Path
):
    """Lives follow each other; each dies up to two steps after a checkpoint, so that lost steps are done again."""
    draw = random.Random(7)
    saves, kills, done = tmp_path / "saves", 0, 0
    while done < RECIPE.steps:
        save = min(RECIPE.steps, done + draw.choice([1, 1, 2]))
        kill = min(RECIPE.steps, save + draw.randint(0, 2))
        loop = train(inputs, tmp_path / "audit", saves, kill=kill, save={save})
        kills, done = kills + 1, save if kill < RECIPE.steps else RECIPE.steps
    assert kills >= 20
    written = audit.read(tmp_path / "audit", 0)
    steps = [line for line in written if "step" in line]
    assert len(steps) > RECIPE.steps  # some were done twice
    assert without_pid(steps) == without_pid(golden.lines[line["step"]] for line in steps)
    assert list(audit.effective(written)) == list(range(RECIPE.steps))
    assert same(state_of(loop), golden.final)


def test_run__one_step_less_is_noticed(inputs: Inputs, golden: Golden, tmp_path: Path):
    """The comparison is no formality: a run that takes up a checkpoint one step too late ends with other weights."""
    early = cp.Checkpoint(LATE + 1, golden.late.model, golden.late.optimizer, {})
    cp.save(tmp_path / "saves", early, keep=2)
    assert not same(
        state_of(train(inputs, tmp_path / "audit", tmp_path / "saves", kill=RECIPE.steps, save=set())), golden.final
    )


def images_of(inputs: Inputs, start: int, steps: int, world: int) -> list[list[tuple[int, str, str]]]:
    """By step, what all ranks together see, as (slot, id, pixels)."""
    ranks = []
    for rank in range(world):
        with closing(stream_of(inputs, start, rank=rank, world=world, steps=steps)) as stream:
            ranks.append([audit.line_of(batch, inputs.plan, rank=rank, world=world) for batch in stream])
    return [audit.merged(lines) for lines in zip(*ranks, strict=True)]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_order__is_the_same_on_every_number_of_workers_from_any_step(inputs: Inputs, golden: Golden, world: int):
    expected = [audit.merged([golden.lines[step]]) for step in range(RECIPE.steps)]
    for start in random.Random(world).sample(range(RECIPE.steps - 2), 4):
        assert images_of(inputs, start, 2, world) == expected[start : start + 2]


def test_order__survives_a_change_from_two_workers_to_one_and_back_within_an_epoch(inputs: Inputs, golden: Golden):
    epoch = inputs.plan.steps_per_epoch
    legs = [(epoch + 1, 3, 2), (epoch + 4, 4, 1), (epoch + 8, 3, 2)]
    seen = [step for start, steps, world in legs for step in images_of(inputs, start, steps, world)]
    assert seen == [audit.merged([golden.lines[step]]) for step in range(epoch + 1, epoch + 11)]


def test_curriculum__every_step_has_the_pixels_of_a_run_that_has_its_size_all_along(inputs: Inputs, golden: Golden):
    full = RECIPE.override({"method.curriculum": None})
    small = full.override({"method.global_crops.size": 8, "method.local_crops.size": 4})
    for recipe, steps in ((small, range(GROWN - 3, GROWN)), (full, range(GROWN, GROWN + 3))):
        with closing(stream_of(inputs, steps.start, steps=len(steps), recipe=recipe)) as stream:
            seen = [audit.line_of(batch, inputs.plan, rank=0, world=1) for batch in stream]
        assert seen == [{name: golden.lines[line["step"]][name] for name in line} for line in seen]
        assert [line["step"] for line in seen] == list(steps)


@pytest.mark.parametrize("kind", ["highres", "distill"])
def test_phase__killed_and_resumed_is_the_undisturbed_one_bit_for_bit(
    inputs: Inputs, golden: Golden, tmp_path: Path, kind: str
):
    """Killed before its first checkpoint, when it begins again with the other run's state, and after it."""
    parent = tmp_path / "parent"
    parent.mkdir()
    (parent / "recipe.yaml").write_text(RECIPE.to_yaml())
    (parent / "summary.json").write_text('{"status": "finished"}')
    cp.save(parent / "checkpoints", golden.late, keep=2)
    if kind == "highres":
        recipe = phases.HIGHRES["laptop"].recipe(RECIPE, str(parent))
    else:
        recipe = phases.DISTILL["laptop"].recipe(RECIPE, str(parent)).override({"backbone.width": 24})
    recipe = settled(recipe.override({"steps": 8}))
    keep(recipe, tmp_path)
    whole, lives = tmp_path / "whole", tmp_path / "lives"
    expected = state_of(train(inputs, whole, whole, kill=8, save=set(), recipe=recipe, run_dir=tmp_path))
    for kill, save in ((3, set[int]()), (6, {4}), (8, set())):
        loop = train(inputs, lives, lives / "saves", kill=kill, save=save, recipe=recipe, run_dir=tmp_path)
    first, second = (audit.effective(audit.read(folder, 0)) for folder in (whole, lives))
    assert without_pid(first.values()) == without_pid(second.values())
    assert same(state_of(loop), expected)
