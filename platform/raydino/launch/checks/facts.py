"""Numbers about a run before it starts: sizes from the model, counts from the plan, and a speed measured on this machine."""

import math
import time

import torch

from raydino.data.masks import block_masks
from raydino.data.plan import Plan
from raydino.data.stream import BLOCKS_AHEAD
from raydino.launch.checks.preflight import Facts
from raydino.launch.cluster import ClusterConfig
from raydino.launch.inputs import Inputs
from raydino.launch.terminal.announce import tokens_per_image
from raydino.launch.workers.worker import build_loop
from raydino.recipe import Recipe
from raydino.train.parallel import has_batch_norm
from raydino.train.steps import Loop, train_step
from raydino.views import Batch, Views

# Bytes of activations that one token leaves in one block per dimension, attention scores not stored: 34 at 16 bits
# (Korthikanti et al. 2022, section 4.1, which counts dropout masks that a ViT does not have), twice that at 32 bits.
ACTIVATION_BYTES = {"bf16": 34, "fp32": 68}
PROBE_STEPS = 2  # timed, after one that is not


def run_facts(recipe: Recipe, cluster: ClusterConfig, inputs: Inputs, *, images_per_second: float = 0.0) -> Facts:
    """The facts that preflight checks and the plan prints."""
    with torch.device("meta"):
        method = recipe.method.build(recipe.backbone, steps=recipe.steps)
    precision = cluster.precision_on(native_bf16=cluster.use_gpu(torch.cuda.device_count()))
    backbone = method.encoder()
    micro = max(1, recipe.global_batch // (cluster.workers * cluster.accumulate))
    student, _ = tokens_per_image(recipe)
    return Facts(
        images=inputs.plan.rows_per_epoch,
        classes=len(inputs.labelled.classes) if inputs.labelled else 0,
        share=inputs.plan.rows_per_epoch / inputs.plan.kept,
        dropped=inputs.plan.dropped_per_epoch,
        read_amplification=inputs.plan.read_amplification(0),
        parameters=sum(p.numel() for p in method.student.parameters()),
        store_bytes=store_bytes(inputs.plan, recipe.views, world=cluster.workers),
        blocks=backbone.depth,
        batch_norm=has_batch_norm(method),
        curated=bool(inputs.collection.manifest.stages),
        activation_bytes=micro * student * backbone.depth * backbone.width * ACTIVATION_BYTES[precision],
        images_per_second=images_per_second,
    )


def store_bytes(plan: Plan, views: Views, *, world: int) -> int:
    """Bytes of Ray's object store that decoding in the cluster holds at once, over all nodes and `world` workers.

    A window stays there until its last row is used: one per lane, and per worker those taken out ahead and one in the making.
    """
    image = sum(math.prod(shape) for shape in views.shapes().values())
    rows = min(plan.window + int(plan.row_groups.max()) - 1, plan.steps_per_epoch * plan.per_lane)
    return image * rows * (plan.lanes + world * (BLOCKS_AHEAD + 1))


def probe_speed(recipe: Recipe, cluster: ClusterConfig) -> float:
    """Images per second of the training step on this machine, data apart: one worker's micro-batch of random pixels, over the run
    where a curriculum changes their size.

    Several workers on one CPU share its cores, so only GPUs multiply.
    """
    on_gpu = cluster.use_gpu(torch.cuda.device_count())
    loop = build_loop(recipe, cluster, torch.device("cuda:0" if on_gpu else "cpu"))
    images = max(1, recipe.global_batch // (cluster.workers * cluster.accumulate))
    seconds = sum(len(steps) * _step_seconds(loop, views, images=images) for steps, views in recipe.phases())
    one = images * recipe.steps / seconds
    return one * (cluster.workers if loop.device.type == "cuda" else 1)


def _step_seconds(loop: Loop, views: Views, *, images: int) -> float:
    """Seconds of a training step on `images` random images."""
    crops = {name: torch.randint(0, 256, shape, dtype=torch.uint8) for name, shape in views.shapes(images).items()}
    masks = None
    if views.masks is not None:
        count = views.crops["global"].count
        masks = torch.from_numpy(
            block_masks(views.masks, grid=views.grid, seed=loop.seed, step=0, lane=0, images=images, views=count)
        )
    labels = torch.zeros(images, dtype=torch.int64) if views.labels else None
    batch = Batch(crops, masks, (b"",) * images, step=0, labels=labels)
    train_step(loop, batch)
    started = time.perf_counter()
    for _ in range(PROBE_STEPS):
        train_step(loop, batch)
    if loop.device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / PROBE_STEPS
