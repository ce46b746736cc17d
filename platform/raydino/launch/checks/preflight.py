"""What can be known to fail is refused before Ray starts.

Only numbers come in (`Machine`, `Facts`), so this file needs neither torch nor Ray nor the images, and every rule can
be tested without a machine that breaks it. An impossible run raises ConfigError; a doubtful one returns warnings.
"""

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from raydino.config import ConfigError, in_steps
from raydino.launch.checks.machine import Machine
from raydino.launch.checks.memory import memory_warnings
from raydino.launch.cluster import STORE_UNSHARED, ClusterConfig, divisors
from raydino.launch.terminal.shown import in_bytes, public_uri
from raydino.methods import rules
from raydino.methods.config import SelfDistillationConfig
from raydino.recipe import Recipe

RAY_TESTED = "2.60."
CHECKPOINT_BYTES_PER_PARAMETER = 16  # float32: student, teacher and AdamW's two moments
PROTOTYPES_MOST = 0.5  # of the images
MEMORY_MOST = 0.25  # of the run that the teacher remembers
READ_MOST = 1.1  # rows read for each row used or left out; folders written by curation stay below it
DISK_FULL = 0.95  # Ray's local_fs_capacity_threshold
SHARED_MEMORY_LEAST = 0.3  # below this share of the object store, Ray falls back to /tmp and reads at disk speed


@dataclass(frozen=True)
class Facts:
    """Numbers about a run that were computed elsewhere: the plan from the manifest, sizes from the model."""

    images: int
    """Images of an epoch: all that the keep-mask and evaluation leave; with weights, their sum."""
    classes: int
    """Classes among their labels; 0 without labels."""
    dropped: int
    """Images of an epoch that fill no whole global batch."""
    read_amplification: float
    """Rows read in an epoch for each row used; 1 is ideal."""
    parameters: int
    """Parameters of one network, backbone and heads (the teacher has as many); 0 if unknown."""
    share: float = 1.0
    """Of the images that take part, those that an epoch has; below 1 with weights."""
    held_back: int = 0
    """Images of the split that evaluations judge by and no epoch has."""
    used: float = 1.0
    """Of the rows of the split, those that an epoch has: neither masked, nor held back, nor left out by weights."""
    blocks: int = 1
    """Transformer blocks of the network; 0 for a convolutional one."""
    batch_norm: bool = False
    """Whether the network has batch norm."""
    curated: bool = True
    """Whether the images lie in a folder written by curation."""
    store_bytes: int = 0
    """Bytes of Ray's object store that the run fills if images are decoded in the cluster."""
    memory: Mapping[str, int] = field(default_factory=dict)
    """Estimated bytes of one worker at the worst moment of a step, by what they are for; empty if unknown."""
    memory_with: Mapping[str, int] = field(default_factory=dict)
    """The sum with other settings, by setting, where it does not fit."""
    images_per_second: float = 0.0
    """Measured in a probe over all workers; 0 if there was none."""

    @property
    def checkpoint_bytes(self) -> int:
        """Estimated size of a checkpoint."""
        return self.parameters * CHECKPOINT_BYTES_PER_PARAMETER


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
    return _warnings(recipe, cluster, facts, machine)


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


def _warnings(recipe: Recipe, cluster: ClusterConfig, facts: Facts, machine: Machine) -> list[str]:
    out = []
    if machine.ray and not machine.ray.startswith(RAY_TESTED):
        out.append(f"Ray {machine.ray} is installed; raydino is tested with {RAY_TESTED}x.")
    if not cluster.is_local and cluster.tracker().startswith("sqlite:"):
        out.append(
            f"cluster.tracking_uri = {public_uri(cluster.tracker())} is a file, but the run may be recorded from "
            f"another node (cluster.address = {cluster.address}); give an MLflow server, or shared storage."
        )
    store = cluster.store_bytes(gpus=machine.gpus, memory=machine.memory, shared=machine.shared_memory)
    if cluster.is_local and machine.shared_memory < SHARED_MEMORY_LEAST * store:
        out.append(
            f"/dev/shm has {in_bytes(machine.shared_memory)} free for an object store of {in_bytes(store)} "
            "(cluster.object_store_mb); Ray will use the disk instead. In a container, give it more with --shm-size."
        )
    if cluster.is_local and not cluster.use_gpu(machine.gpus):
        if machine.gpus:
            out.append(f"cluster.gpu = false, but this machine has {machine.gpus} GPU(s).")
        if recipe.data.fast_crops == "device":
            out.append(
                "data.fast_crops = device: without a GPU colours take the CPU longer than True; use that (a new run)."
            )
    if facts.dropped * 20 > facts.images:
        out.append(
            f"{facts.dropped:,} of {facts.images:,} images ({facts.dropped / facts.images:.0%}) are left out of each "
            "epoch, another part every time; a smaller global_batch leaves out fewer."
        )
    # Whole row groups are read, so rows that an epoch leaves out cost a factor of their own, and no setting saves it.
    if facts.read_amplification * facts.used > READ_MOST:
        remedy = (
            f"a smaller number of lanes reads less (lanes = {recipe.lanes}; a new run)"
            if facts.curated
            else "its row groups are large for so few images: `python recipes/curate.py --source PATH --out NEW` rewrites them"
        )
        out.append(
            f"data.path = {recipe.data.path}: {facts.read_amplification:.2f} rows are read for each row used, more than "
            f"{READ_MOST}; {remedy}."
        )
    out += [*_size_warnings(recipe, facts), *_claim_warnings(recipe, facts)]
    out += memory_warnings(cluster, machine, facts.memory, facts.memory_with)
    if in_steps(recipe.optim.warmup, recipe.steps) == 0 and recipe.steps * recipe.global_batch >= facts.images:
        out.append(
            "optim.warmup = 0: vision transformers usually diverge without a warm-up; 0.1 is the published share."
        )
    return out


def _size_warnings(recipe: Recipe, facts: Facts) -> list[str]:
    """Where prototypes and teacher do not suit the number of images and the length of the run (methods/rules.py)."""
    out, method = [], recipe.method
    if isinstance(method, SelfDistillationConfig) and method.head.prototypes > max(
        PROTOTYPES_MOST * facts.images, 2 * rules.prototypes(facts.images)
    ):
        out.append(
            f"method.head.prototypes = {method.head.prototypes:,} for {facts.images:,} images: most of them will be met by no "
            f"image in an epoch; {rules.prototypes(facts.images):,} suit so many."
        )
    start = method.teacher_momentum.start
    fitting = rules.teacher_momentum(steps=recipe.steps, global_batch=recipe.global_batch)
    if (
        recipe.init.parts != "all"
        and start < 1
        and 1 / (1 - start) > max(MEMORY_MOST * recipe.steps, 1.5 / (1 - fitting))
    ):
        out.append(
            f"method.teacher_momentum.start = {start}: the teacher remembers {1 / (1 - start):,.0f} steps of a run of "
            f"{recipe.steps:,}, so it stays near its random start; {fitting} suits this length."
        )
    return out


def _claim_warnings(recipe: Recipe, facts: Facts) -> list[str]:
    """What curation while training streams cannot promise."""
    if not recipe.data.stream_dedup:
        return []
    if facts.curated and not recipe.data.stream_against:
        return [
            f"data.stream_dedup = true: data.path = {recipe.data.path} was written by curation, which left no byte-identical "
            "copies; leave it out, and the run can be repeated bit for bit."
        ]
    return [
        "data.stream_dedup = true refuses byte-identical copies only; resized, recompressed and cropped ones stay, of evaluation "
        "images too. The copy that comes first is trained on: with several workers the images are not the same from run to "
        "run, they differ with cluster.workers, and a resumed run does not repeat the interrupted one bit for bit. The exact "
        "way: `python recipes/curate.py --source PATH --out NEW`."
    ]
