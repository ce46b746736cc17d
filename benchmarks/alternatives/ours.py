"""raydino's training on the same setting: Ray Data, the threads that cut, the loop; all of a run but Ray Train's frame."""

import os
from collections.abc import Generator
from contextlib import closing

import torch

from alternatives.setting import CLIP, DECAY, RATE, Setting
from raydino.data import cutters
from raydino.data.batches import batches
from raydino.launch.cluster import ClusterConfig
from raydino.launch.engine.connect import start_ray
from raydino.launch.inputs import open_inputs
from raydino.launch.workers.worker import build_loop
from raydino.methods.config import DINOConfig
from raydino.nn.config import BackboneConfig, HeadConfig
from raydino.recipe import Recipe
from raydino.schedule import constant
from raydino.train.config import OptimConfig
from raydino.train.steps import Loop, training_steps

CPU = torch.device("cpu")
CLUSTER = ClusterConfig(precision="fp32")  # as the other sides
OWN_CHOICE = ClusterConfig()
"""What a user gets who says nothing: bf16 where the processor computes it faster."""


def recipe_of(setting: Setting, data: str, *, fast: bool = False) -> Recipe:
    """The setting as a recipe."""
    method = DINOConfig(
        head=HeadConfig(prototypes=setting.prototypes, hidden=setting.hidden, bottleneck=setting.bottleneck),
        freeze_last_layer=0,
        teacher_momentum=constant(0.996),
    ).override({"global_crops.size": setting.large, "local_crops": {"size": setting.small, "count": setting.local}})
    recipe = Recipe(
        steps=100_000,
        global_batch=setting.images,
        backbone=BackboneConfig(
            name="vit_tiny_patch16_224",
            patch_size=setting.patch,
            width=setting.width,
            depth=setting.depth,
            heads=setting.heads,
        ),
        method=method,
        optim=OptimConfig(lr=RATE, warmup=0, weight_decay=constant(DECAY), clip=CLIP),
    )
    return recipe.override({"data.path": data, "data.fast_crops": fast})


def loop_of(recipe: Recipe, cluster: ClusterConfig = CLUSTER) -> Loop:
    """The loop as a worker builds it."""
    return build_loop(recipe, cluster, CPU)


def train(setting: Setting, data: str, *, fast: bool, cluster: ClusterConfig) -> Generator[float, None, None]:
    """The loss of one step after the other."""
    recipe = recipe_of(setting, data, fast=fast)
    cutters.PATIENCE = 0.0  # blocks are of a long run, whose processes have started
    with start_ray(cluster):
        inputs = open_inputs(recipe, data)
        loop = loop_of(recipe, cluster)
        stream = batches(
            inputs.collection,
            inputs.plan,
            recipe.views,
            seed=0,
            rank=0,
            world=1,
            start_step=0,
            steps=recipe.steps,
            max_bad=recipe.data.max_bad,
            on_bad=print,
            threads=cluster.decode_threads(cores=len(os.sched_getaffinity(0)), workers_here=1, use_gpu=False),
            prefetch=cluster.prefetch,
        )
        with closing(stream):  # before Ray goes
            for report in training_steps(loop, stream):
                yield float(report.metrics["loss/total"])
