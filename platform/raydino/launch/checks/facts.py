"""Numbers about a run before it starts: sizes from the model, counts from the plan, and a speed measured on this machine."""

import time
from dataclasses import asdict, replace
from typing import Any

import torch

from raydino.data.draws import COLOURS, COUNT, colours, draw_view, room
from raydino.data.masks import lanes_masks
from raydino.data.plan import Plan
from raydino.data.stream import BLOCKS_AHEAD
from raydino.keyed import uniform
from raydino.launch.checks.machine import Machine
from raydino.launch.checks.memory import available_memory, fits
from raydino.launch.checks.numbers import Facts
from raydino.launch.cluster import ClusterConfig
from raydino.launch.inputs import Inputs
from raydino.launch.terminal.announce import tokens_per_image
from raydino.launch.workers.shapes import with_fixed_shapes
from raydino.launch.workers.worker import build_loop
from raydino.recipe import Recipe
from raydino.train.memory import Memory, estimate
from raydino.train.parallel import has_batch_norm, native_bf16
from raydino.train.steps import Loop, train_step
from raydino.views import Batch, Views

TRACED = (3, 6)  # blocks, in place of more than both together: a block takes a fifth of a second
PROBE_STEPS = 2  # timed, after one that is not
PROBE_WORK = (
    3e12  # floating-point operations of a step on a CPU: some ten seconds, where a whole batch may take minutes
)


def run_facts(
    recipe: Recipe, cluster: ClusterConfig, inputs: Inputs, *, machine: Machine, dry_run: bool = False
) -> Facts:
    """The facts that preflight checks and the plan prints; of a dry run memory too and, where that fits, speed: seconds each."""
    with torch.device("meta"):
        method = recipe.method.build(recipe.backbone, steps=recipe.steps)
    backbone, available = method.encoder(), available_memory(cluster, machine)
    memory = worker_memory(recipe, cluster, blocks=backbone.depth) if dry_run else None
    fitting = memory is None or fits(memory.total, available)
    # a machine without the GPUs that the run asks for tells nothing of its speed
    here = torch.cuda.is_available() or not cluster.use_gpu(0)
    return Facts(
        images=inputs.plan.rows_per_epoch,
        classes=len(inputs.labelled.classes) if inputs.labelled else 0,
        share=inputs.plan.rows_per_epoch / inputs.plan.kept,
        held_back=0 if inputs.labelled is None or inputs.labelled.keep is None else int((~inputs.labelled.keep).sum()),
        used=inputs.plan.rows_per_epoch / inputs.plan.rows,
        dropped=inputs.plan.dropped_per_epoch,
        read_amplification=inputs.plan.read_amplification(0),
        parameters=sum(p.numel() for p in method.student.parameters()),
        store_bytes=store_bytes(inputs.plan, recipe.views, world=cluster.workers),
        blocks=backbone.depth,
        batch_norm=has_batch_norm(method),
        curated=bool(inputs.collection.manifest.stages),
        memory={} if memory is None else asdict(memory),
        memory_with={} if fitting else _memory_with(recipe, cluster, blocks=backbone.depth),
        images_per_second=probe_speed(recipe, cluster) if dry_run and fitting and here else 0.0,
    )


def store_bytes(plan: Plan, views: Views, *, world: int) -> int:
    """Bytes of Ray's object store that decoding in the cluster holds at once, over all nodes and `world` workers.

    A window stays there until its last row is used: one per lane, and per worker those taken out ahead and one in the making.
    """
    image = sum(array.nbytes for array in room(views).values())
    rows = min(plan.window + int(plan.row_groups.max()) - 1, plan.steps_per_epoch * plan.per_lane)
    return image * rows * (plan.lanes + world * (BLOCKS_AHEAD + 1))


def worker_memory(recipe: Recipe, cluster: ClusterConfig, *, blocks: int) -> Memory:
    """The memory that one worker of the run needs, also of a run that this machine could not hold. `blocks` are those of the
    network: of many a few are traced, since each adds the same to all that lasts, and no two are at their worst together."""
    few, more = TRACED
    if blocks <= sum(TRACED):
        return _traced(recipe, cluster)
    low, high = (asdict(_traced(recipe.override({"backbone.depth": depth}), cluster)) for depth in TRACED)
    return Memory(**{name: low[name] + (high[name] - low[name]) * (blocks - few) // (more - few) for name in low})


def _traced(recipe: Recipe, cluster: ClusterConfig) -> Memory:
    on_gpu = cluster.use_gpu(torch.cuda.device_count())
    precision = cluster.precision_on(native_bf16=on_gpu or native_bf16(torch.device("cpu")))
    attention = cluster.attention_on(on_cpu=not on_gpu, precision=precision, tokens=recipe.tokens)
    settings = {"precision": precision, "attention": attention, "parallel": "ddp", "compile": False, "losses": "torch"}
    with torch.device("meta"):
        loop = build_loop(recipe, cluster.override(settings), torch.device("meta"))
    return estimate(
        replace(loop, accumulate=cluster.accumulate),
        _like_the_run(recipe, cluster, _micro_batch(recipe, cluster), recipe.views),
        workers=cluster.workers,
        parallel=cluster.parallel,
        device="cuda" if on_gpu else "cpu",
        fused_losses=cluster.losses == "triton",
    )


def _micro_batch(recipe: Recipe, cluster: ClusterConfig) -> int:
    return max(1, recipe.global_batch // (cluster.workers * cluster.accumulate))


def _memory_with(recipe: Recipe, cluster: ClusterConfig, *, blocks: int) -> dict[str, int]:
    """What would need less memory without changing the result, and how many bytes."""
    ways: list[dict[str, Any]] = []
    images = recipe.global_batch // (cluster.workers * cluster.accumulate)
    if images % 2 == 0 and images // 2 >= recipe.method.minimum_images:
        ways.append({"accumulate": 2 * cluster.accumulate})
    if not cluster.checkpoint_activations and blocks:
        ways.append({"checkpoint_activations": True})
    if cluster.parallel == "ddp" and cluster.workers > 1:
        ways.append({"parallel": "fsdp"})
    together = {name: value for way in ways for name, value in way.items()}
    ways += [together] if len(ways) > 1 else []
    return {
        " ".join(f"cluster.{name} = {value}" for name, value in way.items()): worker_memory(
            recipe, cluster.override(way), blocks=blocks
        ).total
        for way in ways
    }


def probe_speed(recipe: Recipe, cluster: ClusterConfig) -> float:
    """Images per second of the training step on this machine, data apart: one worker's micro-batch of random pixels (on a CPU no
    more of it than takes seconds), over the run where a curriculum changes their size.

    Several workers on one CPU share its cores, so only GPUs multiply.
    """
    on_gpu = cluster.use_gpu(torch.cuda.device_count())
    loop = replace(build_loop(recipe, cluster, torch.device("cuda:0" if on_gpu else "cpu")), accumulate=1)
    images = _micro_batch(recipe, cluster)
    if not on_gpu:
        weights = sum(parameter.numel() for parameter in loop.method.encoder().parameters())
        work = (
            6 * weights * sum(tokens_per_image(recipe))
        )  # two a weight forward, four backward; the teacher has no backward
        images = min(images, max(recipe.method.minimum_images, int(PROBE_WORK / work)))
    seconds = sum(
        len(steps) * _step_seconds(loop, _like_the_run(recipe, cluster, images, views))
        for steps, views in recipe.phases()
    )
    one = images * recipe.steps / seconds
    return one * (cluster.workers if loop.device.type == "cuda" else 1)


def _like_the_run(recipe: Recipe, cluster: ClusterConfig, images: int, views: Views) -> Batch:
    """Random pixels of `views` as a worker of the run gets them in a micro-batch of `images` images."""
    batch = random_batch(recipe, images, views=views, workers=cluster.workers)
    if not cluster.fixed_shapes:
        return batch
    return with_fixed_shapes(recipe, batch, workers=cluster.workers, micro_batch=images)


def _step_seconds(loop: Loop, batch: Batch) -> float:
    """Seconds of a training step on `batch`."""
    train_step(loop, batch)
    started = time.perf_counter()
    for _ in range(PROBE_STEPS):
        train_step(loop, batch)
    if loop.device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / PROBE_STEPS


def random_batch(recipe: Recipe, images: int, *, step: int = 0, views: Views | None = None, workers: int = 1) -> Batch:
    """A batch of random pixels with the masks that the first of `workers` workers has for its first `images` images at `step`, on
    the CPU: what a step costs without any data. `views` None are those of the recipe's end."""
    views, generator = views or recipe.views, torch.Generator().manual_seed(step)
    crops = {
        name: torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        for name, shape in views.shapes(images).items()
    }
    masks = None
    if views.masks is not None:
        lanes, per_lane = range(0, recipe.lanes, workers), recipe.global_batch // recipe.lanes
        drawn = lanes_masks(
            views.masks,
            grid=views.grid,
            seed=recipe.seed,
            step=step,
            lanes=lanes,
            images=per_lane,
            views=views.crops["global"].count,
        )
        masks = torch.from_numpy(drawn[:, :images])
    labels = torch.zeros(images, dtype=torch.int64) if views.labels else None
    ids = tuple(number.to_bytes(4, "big") for number in range(images))
    left = _random_colours(views, ids, seed=recipe.seed, step=step) if views.fast_crops == "device" else None
    return Batch(crops, masks, ids, step=step, labels=labels, colours=left)


def _random_colours(views: Views, ids: tuple[bytes, ...], *, seed: int, step: int) -> dict[str, torch.Tensor]:
    """By group float32 [V, B, D], what is drawn about the colours of images without pixels."""
    return {
        name: torch.tensor(
            [
                [colours(draw_view(1, 1, group, view, uniform(COUNT, seed, step, one, name, view))) for one in ids]
                for view in range(group.count)
            ],
            dtype=torch.float32,
        ).reshape(group.count, len(ids), COLOURS)
        for name, group in views.crops.items()
    }
