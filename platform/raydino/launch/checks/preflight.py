"""What can be known to fail is refused before Ray starts.

Only numbers come in (`Machine`, `Facts`), so this file needs neither torch nor Ray nor the images, and every rule can
be tested without a machine that breaks it. An impossible run raises ConfigError; a doubtful one returns warnings.
"""

import os
import shutil
import tempfile
from pathlib import Path

from raydino.config import ConfigError
from raydino.launch.checks.doubts import doubts
from raydino.launch.checks.machine import Machine
from raydino.launch.checks.numbers import Facts
from raydino.launch.cluster import STORE_UNSHARED, ClusterConfig, divisors
from raydino.launch.terminal.shown import in_bytes
from raydino.recipe import Recipe

DISK_FULL = 0.95  # Ray's local_fs_capacity_threshold


def check(recipe: Recipe, cluster: ClusterConfig, *, facts: Facts, machine: Machine) -> list[str]:
    """Refuse what cannot work. Raises ConfigError with one line per fault (field, value, remedy); returns warnings."""
    faults = [
        *_share_faults(recipe, cluster, facts),
        *_network_faults(recipe, cluster, facts, machine),
        *(_machine_faults(cluster, machine, facts) if cluster.is_local else []),
        *machine.version_faults(),
        *_storage_faults(recipe, cluster, facts),
    ]
    if faults:
        raise ConfigError("\n".join(faults))
    return doubts(recipe, cluster, facts, machine)


def _share_faults(recipe: Recipe, cluster: ClusterConfig, facts: Facts) -> list[str]:
    faults = []
    if recipe.lanes % cluster.workers:
        faults.append(
            f"cluster.workers = {cluster.workers} does not divide lanes = {recipe.lanes}, which fixes the order of the "
            f"images; use one of {divisors(recipe.lanes)}, or other lanes (a new run)."
        )
    elif cluster.is_elastic and recipe.lanes % cluster.min_workers:
        faults.append(
            f"cluster.min_workers = {cluster.min_workers} does not divide lanes = {recipe.lanes}, and no other number of workers "
            f"sees the same order; use one of {[n for n in divisors(recipe.lanes) if n < cluster.workers]}."
        )
    try:
        cluster.micro_batch(recipe.global_batch)
        faults += _micro_batch_faults(recipe, cluster)
    except ConfigError as error:
        faults.append(str(error))
    if (classes := getattr(recipe.method, "classes", 0)) and classes != facts.classes:
        faults.append(
            f"method.classes = {classes}: the images of data.path = {recipe.data.path} have "
            + (
                f"{facts.classes} classes; set method.classes to that."
                if facts.classes
                else "no labels; give labelled ones."
            )
        )
    if facts.images < recipe.global_batch:
        faults.append(
            f"data.path = {recipe.data.path}: {facts.images:,} usable images do not fill one global_batch of "
            f"{recipe.global_batch:,}; lower global_batch or give more images."
        )
    return faults


def _micro_batch_faults(recipe: Recipe, cluster: ClusterConfig) -> list[str]:
    """Losses that compare images need some, on every number of workers that the run may have."""
    least, batch = recipe.method.minimum_images, recipe.global_batch
    for workers in reversed(cluster.sizes(lanes=recipe.lanes, global_batch=batch) or [cluster.workers]):
        parts = cluster.accumulate_on(workers, batch) if batch % workers == 0 else cluster.accumulate
        images = batch // (workers * parts)
        if images < least:
            return [
                f"global_batch = {batch} leaves {images} image per worker and micro-batch "
                f"(cluster.workers = {workers}, cluster.accumulate = {parts}), and the losses of "
                f"{type(recipe.method).__name__} need {least}; raise global_batch to "
                f"{least * workers * parts}, use fewer workers or micro-batches, or switch off "
                "the loss that compares images (DINOv2: method.koleo_weight = 0)."
            ]
    return []


def _network_faults(recipe: Recipe, cluster: ClusterConfig, facts: Facts, machine: Machine) -> list[str]:
    of_blocks = {
        "optim.layer_decay": (recipe.optim.layer_decay, 1, ""),
        "optim.patch_embed_lr": (recipe.optim.patch_embed_lr, 1, ""),
        "cluster.checkpoint_activations": (
            cluster.checkpoint_activations,
            False,
            ", or raise cluster.accumulate to save memory",
        ),
        "cluster.compile": (cluster.compile, False, ""),
    }
    faults = [
        f"{name} = {value}: {recipe.backbone.name} is a convolutional network without such blocks; set it to {plain}{more}."
        for name, (value, plain, more) in of_blocks.items()
        if value != plain and facts.blocks == 0
    ]
    on_gpu = cluster.use_gpu(machine.gpus) if cluster.is_local else cluster.gpu is not False
    if facts.batch_norm and cluster.workers > 1 and not on_gpu:
        faults.append(
            f"cluster.workers = {cluster.workers}: {recipe.backbone.name} has batch norm, which torch synchronises on GPUs only; "
            "use 1 worker, or a network without it (a ViT or ConvNeXt)."
        )
    if cluster.losses == "triton" and not on_gpu:
        faults.append("cluster.losses = triton: Triton computes on GPUs only, and the workers take none; use torch.")
    elif cluster.losses == "triton" and cluster.is_local and not machine.triton:
        faults.append("cluster.losses = triton: Triton is not installed in this environment; install it, or use torch.")
    return faults


def _machine_faults(cluster: ClusterConfig, machine: Machine, facts: Facts) -> list[str]:
    faults = []
    store = cluster.store_bytes(gpus=machine.gpus, memory=machine.memory, shared=machine.shared_memory)
    if cluster.is_local and store > max(STORE_UNSHARED, machine.shared_memory):
        faults.append(
            f"cluster.object_store_mb = {cluster.object_store_mb}: /dev/shm has {in_bytes(machine.shared_memory)} free, and Ray "
            f"starts with more than {in_bytes(STORE_UNSHARED)} only if it fits there; lower it, or give the container more with "
            "--shm-size."
        )
    if machine.temporary_used > DISK_FULL:
        faults.append(
            f"{tempfile.gettempdir()}: its disk is {machine.temporary_used:.0%} full, and Ray neither stores nor spills above "
            f"{DISK_FULL:.0%}, it waits; free some space, or name another disk with RAY_TMPDIR."
        )
    if cluster.decode_in == "cluster" and (
        fault := store_fault(facts.store_bytes, store, field="cluster.object_store_mb")
    ):
        faults.append(fault)
    if cluster.workers * cluster.cpus_per_worker > machine.cpus:
        faults.append(
            f"cluster.workers = {cluster.workers} with cluster.cpus_per_worker = {cluster.cpus_per_worker:g} need "
            f"{cluster.workers * cluster.cpus_per_worker:g} CPUs, this machine has {machine.cpus}; lower either."
        )
    if cluster.use_gpu(machine.gpus) and cluster.workers > machine.gpus:
        faults.append(
            f"cluster.workers = {cluster.workers} need a GPU each, this machine has {machine.gpus}; "
            + (
                f"use cluster.workers = {machine.gpus}, or cluster.gpu = false."
                if machine.gpus
                else "use cluster.gpu = false."
            )
        )
    return faults


def store_fault(needed: int, store: int, *, field: str = "the cluster's object store") -> str | None:
    """What is wrong where blocks of crops would not fit into Ray's object store: it would spill them to disk, or stall.

    `needed` and `store` in bytes.
    """
    if needed <= store:
        return None
    least = -(-needed // 2**20)
    return (
        f"{field} = {store // 2**20}: cluster.decode_in = cluster keeps {least:,} MB of cut windows in it (lanes and workers × "
        f"data.window × the bytes of all crops); give it {least}, or use cluster.decode_in = worker, or a smaller data.window "
        "(a new run)."
    )


def _storage_faults(recipe: Recipe, cluster: ClusterConfig, facts: Facts) -> list[str]:
    """Checkpoints are renamed into place, which only a file system does at once; two of them exist meanwhile."""
    name, folder = f"cluster.storage = {cluster.storage}", Path(cluster.storage)
    if "://" in cluster.storage:
        return [f"{name}: runs are written to a mounted file system, not to a URL; mount the bucket or name a folder."]
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not existing.is_dir():
        return [f"{name}: {existing} is a file; name a folder."]
    if not os.access(existing, os.W_OK | os.X_OK):
        return [f"{name}: {existing} is not writable for this user; name another folder or change its permissions."]
    free, needed = shutil.disk_usage(existing).free, 2 * facts.checkpoint_bytes
    if free < needed:
        return [
            f"{name}: {in_bytes(free)} free, two checkpoints need {in_bytes(needed)} (cadence.keep = {recipe.cadence.keep} "
            f"need {in_bytes(recipe.cadence.keep * facts.checkpoint_bytes)}); free some space or name another folder."
        ]
    return []
