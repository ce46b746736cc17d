from dataclasses import asdict

import numpy as np
import pytest
import torch

from raydino.curation.synthetic import write_builtin
from raydino.data.plan import Plan
from raydino.launch.checks import facts as checked
from raydino.launch.checks.doubts import READ_MOST
from raydino.launch.checks.facts import (
    _memory_with,
    _traced,
    probe_speed,
    random_batch,
    run_facts,
    store_bytes,
    worker_memory,
)
from raydino.launch.checks.machine import this_machine
from raydino.launch.checks.preflight import check
from raydino.launch.cluster import ClusterConfig
from raydino.launch.inputs import open_inputs
from raydino.launch.workers.worker import with_fixed_shapes
from raydino.methods.config import DINOv2Config
from raydino.nn.config import BackboneConfig
from raydino.recipe import Recipe
from raydino.views import Crops, Views

VIEWS = Views(
    crops={
        "global": Crops(count=2, size=24, scale=(0.3, 1)),
        "local": Crops(count=3, size=8, scale=(0.05, 0.3)),
    },
    patch_size=8,
)
IMAGE = 2 * 3 * 24 * 24 + 3 * 3 * 8 * 8


@pytest.mark.parametrize("world", [1, 2, 4])
def test_store_bytes__holds_the_largest_windows_of_all_lanes_and_those_under_way(world):
    groups = np.random.default_rng(0).integers(1, 40, size=200)
    plan = Plan(groups, seed=0, global_batch=16, lanes=4, window=100)
    windows = list(plan.windows(rank=0, world=1, start_step=0, steps=plan.steps_per_epoch))
    lanes = [max(window.rows for window in windows if window.lane == lane) for lane in range(4)]
    least = (sum(lanes) + world * 3 * max(lanes)) * IMAGE
    assert least <= store_bytes(plan, VIEWS, world=world) <= 1.4 * least


def test_store_bytes__of_a_small_collection_is_not_more_than_its_epoch_needs():
    plan = Plan([64] * 4, seed=0, global_batch=16, lanes=4, window=10_000)
    assert store_bytes(plan, VIEWS, world=1) == 64 * IMAGE * (4 + 3)


def test_store_bytes__what_is_drawn_about_colours_is_in_it():
    """44 bytes of each view beside its pixels."""
    plan, views = (
        Plan([64] * 4, seed=0, global_batch=16, lanes=4, window=10_000),
        VIEWS.override({"fast_crops": "device"}),
    )
    assert store_bytes(plan, views, world=1) == 64 * (IMAGE + 5 * 44) * (4 + 3)


def test_run_facts__rows_held_back_and_masked_are_no_images_of_an_epoch(tmp_path):
    """A tenth of the only labelled split judges the rest; whole row groups are read, and that costs more than the limit alone."""
    write_builtin(str(tmp_path), train=8, test=400)  # trained on the test split: of the splits no other is judged by
    recipe = Recipe().override({"data.path": str(tmp_path), "data.split": "test", "lanes": 1, "global_batch": 8})
    inputs, machine, alone = open_inputs(recipe, str(tmp_path)), this_machine(), ON_CPU.override({"workers": 1})
    facts = run_facts(recipe, alone, inputs, machine=machine)
    assert (facts.images, facts.held_back, facts.used) == (360, 40, 0.9)
    assert facts.read_amplification > READ_MOST
    assert not [warning for warning in check(recipe, alone, facts=facts, machine=machine) if "rows are read" in warning]


RECIPE = Recipe(
    global_batch=32,
    backbone=BackboneConfig(name="vit_tiny_patch16_224", patch_size=8, width=64, depth=2, heads=4),
    method=DINOv2Config().override(
        {
            "global_crops.size": 32,
            "local_crops": {"size": 16, "count": 2},
            "head": {"prototypes": 64, "hidden": 32, "bottleneck": 16},
        }
    ),
)
ON_CPU = ClusterConfig(gpu=False, workers=2, precision="fp32", attention="fused")  # the same on every machine


def test_worker_memory__counts_what_is_drawn_about_colours():
    """The step is traced with its colours: 44 bytes of each of 4 views of 16 images are there all the time, as pixels are."""
    exact, device = (
        worker_memory(RECIPE.override({"data.fast_crops": way}), ON_CPU, blocks=2) for way in (False, "device")
    )
    assert device.activations >= exact.activations + 44 * 4 * 16


def test_worker_memory__more_micro_batches_and_workers_that_share_need_less():
    """A micro-batch of half the images has half the activations; two that share hold half of what lasts."""
    whole = worker_memory(RECIPE, ON_CPU, blocks=2)
    halves = worker_memory(RECIPE, ON_CPU.override({"accumulate": 2}), blocks=2)
    assert halves.activations == pytest.approx(whole.activations / 2, rel=0.05)
    shared = worker_memory(RECIPE, ON_CPU.override({"parallel": "fsdp"}), blocks=2)
    assert shared.moments == whole.moments // 2
    assert shared.teacher == whole.teacher // 2


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_with_fixed_shapes__every_micro_batch_has_as_many_rows(workers, accumulate):
    share, micro_batch = RECIPE.global_batch // workers, RECIPE.global_batch // workers // accumulate
    rows, masked = set(), set()
    for step in range(10):
        batch = random_batch(RECIPE, share, step=step, workers=workers)
        batch = with_fixed_shapes(RECIPE, batch, workers=workers, micro_batch=micro_batch)
        for part in batch.split(accumulate):
            rows.add(len(part.to(torch.device("cpu")).masked))
            masked.add(int(part.masks.sum()))
    assert len(rows) == 1 < len(masked) and max(masked) <= max(rows)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_worker_memory__counts_the_rows_of_fixed_shapes(accumulate):
    """What all of its 64 prototypes score for a patch more, student and teacher, is some 2 kB."""
    cluster = ON_CPU.override({"accumulate": accumulate})
    drawn = worker_memory(RECIPE, cluster, blocks=2).activations
    fixed = worker_memory(RECIPE, cluster.override({"fixed_shapes": True}), blocks=2).activations
    share = random_batch(RECIPE, 16 // accumulate, workers=2)
    most = with_fixed_shapes(RECIPE, share, workers=2, micro_batch=16 // accumulate).most_masked
    assert fixed - drawn > 4 * 64 * (most - int(share.masks.sum()))


def test_probe_speed__takes_fixed_shapes():
    cluster = ClusterConfig(gpu=False, workers=2, accumulate=4, fixed_shapes=True)
    assert probe_speed(RECIPE.override({"method.masks": {"probability": 0.3, "ratio": (0.3, 0.3)}}), cluster) > 0


def test_memory_with__names_the_settings_that_are_left():
    ways = _memory_with(RECIPE, ON_CPU, blocks=2)
    whole = worker_memory(RECIPE, ON_CPU, blocks=2).total
    names = ["cluster.accumulate = 2", "cluster.checkpoint_activations = True", "cluster.parallel = fsdp"]
    assert list(ways) == [*names, " ".join(names)]
    assert all(size < whole for size in ways.values())
    assert min(ways, key=lambda way: ways[way]) == " ".join(names)
    done = ON_CPU.override(
        {"checkpoint_activations": True, "parallel": "fsdp", "accumulate": 8}
    )  # 2 images, KoLeo's least
    assert _memory_with(RECIPE, done, blocks=2) == {}


@pytest.mark.parametrize("given", [{}, {"checkpoint_activations": True, "parallel": "fsdp", "accumulate": 2}])
def test_worker_memory__of_many_blocks_is_what_tracing_all_of_them_gives(given):
    deep, cluster = RECIPE.override({"backbone.depth": 10}), ON_CPU.override(given)
    every = asdict(_traced(deep, cluster))
    assert asdict(worker_memory(deep, cluster, blocks=10)) == pytest.approx(every, rel=0.01, abs=10_000)


def test_probe_speed__computes_a_micro_batch_as_the_workers_will_and_not_cut_up():
    """Eight workers with two images each, KoLeo's least; one process would cut its share into eight."""
    assert probe_speed(RECIPE.override({"global_batch": 16}), ClusterConfig(gpu=False, workers=8)) > 0


@pytest.mark.parametrize(("batch", "images"), [(4096, 210), (16, 16)])
def test_probe_speed__on_a_cpu_takes_no_more_images_than_take_seconds(monkeypatch, batch, images):
    """Student 2 x 17 and 2 x 5 tokens, teacher 2 x 17: 78 an image; a multiplication and an addition a weight, once forward and
    twice backward."""
    sizes, recipe = [], RECIPE.override({"global_batch": batch})
    weights = sum(p.numel() for p in recipe.method.build(recipe.backbone, steps=8).encoder().parameters())
    monkeypatch.setattr(checked, "PROBE_WORK", 210.5 * 78 * 2 * 3 * weights)
    monkeypatch.setattr(checked, "train_step", lambda _loop, batch: sizes.append(len(batch.ids)))
    assert probe_speed(recipe, ClusterConfig(gpu=False)) > 0
    assert set(sizes) == {images}
