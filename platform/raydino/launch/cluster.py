"""Where and how a run is carried out: `ClusterConfig`.

The opposite of recipe.py: nothing here changes the result of a run, so nothing here is in its fingerprint, and a run
moves to other machines without becoming another run. connect.py starts or joins its Ray.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from raydino.config import Config, ConfigError
from raydino.views import Positive

STORE_LEAST = 600 * 2**20
STORE_SHARE = 0.3  # of the machine's memory
STORE_OF_SHARED = 0.95  # of what is free in /dev/shm; above it and 10 GB Ray refuses to start
STORE_UNSHARED = 10 * 10**9  # the most that Ray will put on disk where /dev/shm is too small

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the coming default of Ray; unset, it warns at each start
    "NO_ALBUMENTATIONS_UPDATE": "1",  # albumentations asks the network for its newest version at import
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Threads that cut crops share the cores with torch's; those that spin at a barrier keep them from it.
    "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
}
"""Environment of driver and workers: nothing phones home, the console belongs to the run, waiting threads leave their core."""

Precision = Literal["bf16", "fp32"]
Attention = Literal["fused", "matmul"]
FEW_TOKENS = 128


class ClusterConfig(Config):
    """Machines and what they are asked to do. The defaults are a laptop's."""

    address: str = "local"
    """`local` starts Ray in this process (in a Ray job: joins it); `auto`, HOST:PORT, ray://HOST:PORT join one."""
    workers: Positive = 1
    """Training processes over all nodes; one per GPU where there are GPUs."""
    min_workers: Annotated[int, Field(ge=0)] = 0
    """Fewest workers that a run goes on with when machines are lost; it grows again up to `workers`. 0: never fewer than
    `workers`. The order of the images stays; sums over workers are rounded otherwise. For a cluster that one run has alone."""
    gpu: Literal["auto"] | bool = "auto"
    """Whether a worker takes a GPU; auto: if the cluster has any."""
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    """CPUs that Ray reserves for a worker."""
    gpus_per_worker: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of a GPU that a worker takes where it takes any; below 1, trials of a sweep share one. Memory is not divided."""
    threads: Annotated[int, Field(ge=0)] = 0
    """torch threads per worker; 0 shares the node's cores among the workers on it."""
    data_threads: Annotated[int, Field(ge=0)] = 0
    """Threads that decode and crop in a worker, each in a process of its own (330 MB) from the tenth second on; 0: with a GPU
    all the worker's cores but one, without half of them."""
    decode_in: Literal["auto", "worker", "cluster"] = "auto"
    """Where images are decoded and cropped: beside the training worker (`data_threads`), or in Ray Data tasks on any node with
    free CPUs; auto: in the cluster if workers take GPUs, leave most CPUs free and the cut windows fit into the object store."""
    prefetch: Annotated[int, Field(ge=0)] = 2
    """Batches prepared ahead of the step."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of forward and backward; auto: bf16 where the device computes in it natively."""
    attention: Literal["auto"] | Attention = "auto"
    """torch's fused attention, or matrix products; auto: fused on a GPU, on a CPU whichever is faster for the crops' size."""
    compile: bool = False
    """Have torch compile the transformer blocks: up to minutes before the first step, faster steps after it."""
    losses: Literal["torch", "triton"] = "torch"
    """What computes the losses over prototypes: torch, or on GPUs one Triton kernel. Off: tested for its values, in Triton's
    interpreter, but timed on no GPU."""
    accumulate: Positive = 1
    """Micro-batches per step on each worker: less memory, same global batch."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """What several workers share: with ddp the images, each has the whole networks; with fsdp parameters, gradients and moments
    too: memory for communication. Up to ViT-L on 80 GB nothing needs it."""
    checkpoint_activations: bool = False
    """Keep only the input of each transformer block of the student and compute it again in the backward pass: a third more work
    of the student, for most of the memory."""
    fixed_shapes: bool = False
    """Pad the masked patches of every micro-batch to the most that there can be, with weight 0: the tensors of all steps have the
    same shapes. In the presets 1 to 10 % of the patch head's rows are then padding, with `accumulate` more than half."""
    gradient_reduction: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic in which gradients are averaged over workers; bf16 halves what they send, for networks of machines that are
    slower than the step, and rounds every gradient to 8 bits."""
    storage: str = "runs"
    """Folder of all runs; with several nodes, a file system mounted on each of them."""
    tracking_uri: str | None = None
    """MLflow server or database; None: SQLite in `storage`."""
    experiment: Annotated[str, Field(min_length=1)] = "raydino"
    """MLflow experiment."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Times that a run restarts from its last checkpoint by itself after losing a worker."""
    start_timeout: Annotated[float, Field(gt=0)] = 600.0
    """Seconds that a run waits for its workers, at its start and after a loss, before it gives up; autoscalers take minutes."""
    allow_unauthenticated: bool = False
    """Join a cluster that other machines reach and that asks nobody for a token."""
    hang_timeout: Annotated[float, Field(ge=0)] = 900.0
    """Seconds without a finished step after which a worker leaves its stacks and is started again; 0: never. First steps and
    evaluations have four times as long."""
    object_store_mb: Annotated[int, Field(ge=100)] | None = None
    """Shared memory for Ray's object store, MB; only for `local`, a running cluster has its own. None: 600, and on a machine with
    GPUs 30 % of its memory, if /dev/shm has as much."""

    @model_validator(mode="after")
    def _no_empty_text(self) -> Self:
        for name in ("address", "storage"):
            if not getattr(self, name).strip():
                raise ValueError(f"{name} is empty; leave it out for {type(self).model_fields[name].default!r}")
        if self.min_workers > self.workers:
            raise ValueError(f"min_workers = {self.min_workers} is more than workers = {self.workers}; lower it")
        if self.gpus_per_worker < 1 and self.workers > 1:
            raise ValueError(
                f"gpus_per_worker = {self.gpus_per_worker} with workers = {self.workers}: NCCL joins no two workers on one GPU; "
                "use 1 worker, or whole GPUs"
            )
        if self.is_elastic and self.max_failures == 0:
            raise ValueError(
                f"min_workers = {self.min_workers} with max_failures = 0: a lost worker would end the run; allow a failure"
            )
        return self

    @property
    def is_elastic(self) -> bool:
        """Whether the number of workers may change during a run."""
        return 0 < self.min_workers < self.workers

    @property
    def is_local(self) -> bool:
        """Whether this process starts Ray itself; never inside a Ray job, which already has a cluster."""
        return self.address == "local" and not in_ray_job()

    def micro_batch(self, global_batch: int) -> int:
        """Images per worker and micro-batch. Raises ConfigError if they do not come out even."""
        parts = self.workers * self.accumulate
        if global_batch % parts:
            near = max(parts, round(global_batch / parts) * parts)
            raise ConfigError(
                f"global_batch = {global_batch} cannot be shared by cluster.workers = {self.workers} with "
                f"cluster.accumulate = {self.accumulate}; use global_batch = {near}, or let their product be one of "
                f"{divisors(global_batch)}."
            )
        return global_batch // parts

    def accumulate_on(self, workers: int, global_batch: int) -> int:
        """Micro-batches per step on `workers` workers. With fewer of them each takes more, of at most the size that they have
        on all: so memory is no larger, and losses compare as many images. Raises ConfigError if none comes out even."""
        images = self.micro_batch(global_batch)
        if global_batch % workers:
            raise ConfigError(f"global_batch = {global_batch} cannot be shared by {workers} workers.")
        share = global_batch // workers
        return next(parts for parts in divisors(share) if share // parts <= images)

    def sizes(self, *, lanes: int, global_batch: int) -> list[int]:
        """The numbers of workers that a run may have, ascending: from `min_workers` on, those that share the lanes evenly."""
        least = self.min_workers or self.workers
        return [n for n in range(least, self.workers + 1) if lanes % n == 0 and global_batch % n == 0]

    def use_gpu(self, available: int) -> bool:
        """Whether workers take a GPU each on a cluster with `available` GPUs."""
        return available > 0 if self.gpu == "auto" else self.gpu

    def decodes_in(self, *, gpus: int, cpus: float, store: int, store_needed: int) -> Literal["worker", "cluster"]:
        """`decode_in` on a cluster with `gpus`, `cpus` and an object store of `store` bytes, of which the run would fill
        `store_needed` if images were cut in the cluster.

        Measured on an H100 with 16 cores and 32-pixel images, before threads had processes beside them: 251 images/s, and 2,920
        with tasks. On a CPU there are few cores for tasks, and on two of them Ray Data runs one at a time.
        """
        if self.decode_in != "auto":
            return self.decode_in
        reserved = self.workers * self.cpus_per_worker
        return "cluster" if self.use_gpu(gpus) and cpus - reserved >= reserved and store_needed <= store else "worker"

    def store_bytes(self, *, gpus: int, memory: int, shared: int) -> int:
        """Size of the object store of a Ray started here; `memory` of the machine and what is free in /dev/shm in bytes too."""
        if self.object_store_mb is not None:
            return self.object_store_mb * 2**20
        if not self.use_gpu(gpus):
            return STORE_LEAST
        return max(STORE_LEAST, int(min(STORE_SHARE * memory, STORE_OF_SHARED * shared)))

    def torch_threads(self, *, cores: int, workers_here: int) -> int:
        """torch threads of a worker on a node of `cores` cores with `workers_here` workers, itself included."""
        return self.threads or max(1, cores // workers_here)

    def decode_threads(self, *, cores: int, workers_here: int, use_gpu: bool) -> int:
        """Decoding threads of a worker; without a GPU the other half of its cores is left to torch."""
        share = max(1, cores // workers_here)
        return self.data_threads or max(1, share - 1 if use_gpu else share // 2)

    def precision_on(self, *, native_bf16: bool) -> Precision:
        """The precision on a device. `native_bf16`: CUDA from Ampere on, CPUs with AMX or AVX512-BF16; elsewhere bf16
        crawls."""
        if self.precision == "auto":
            return "bf16" if native_bf16 else "fp32"
        return self.precision

    def attention_on(self, *, on_cpu: bool, precision: Precision, tokens: int) -> Attention:
        """How attention is computed for global crops of `tokens` tokens.

        Measured on two AVX-512 cores, forward and backward: in bf16 torch's fused kernel takes twice as long as matrix products
        and more; in float32 1.7 times at 37 tokens, 1.1 at 101, 0.95 at 145.
        """
        if self.attention != "auto":
            return self.attention
        return "matmul" if on_cpu and (precision == "bf16" or tokens <= FEW_TOKENS) else "fused"

    @property
    def folder(self) -> Path:
        """`storage` as an absolute path. Inside a Ray job a relative one starts at the home folder, because a job's working
        directory is a copy that Ray deletes."""
        return (Path.home() if in_ray_job() else Path.cwd()) / Path(self.storage).expanduser()

    def tracker(self) -> str:
        """The MLflow tracking URI, with None resolved to SQLite inside `storage`."""
        return self.tracking_uri or f"sqlite:///{(self.folder / 'mlflow.db').as_posix()}"


def divisors(number: int) -> list[int]:
    """All divisors of a positive number, ascending."""
    return [d for d in range(1, number + 1) if number % d == 0]


def in_ray_job(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is the entry point of a submitted Ray job, or its shell names a cluster in RAY_ADDRESS."""
    return bool(environment.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or environment.get("RAY_ADDRESS"))


def worker_environment(threads: int) -> dict[str, str]:
    """Environment variables of the training workers; `threads` 0 leaves OpenMP to Ray and the worker."""
    passed_on = {name: os.environ[name] for name in ("HF_HUB_OFFLINE", "HF_HOME", "RAYDINO_DATA") if name in os.environ}
    return {**QUIET, **passed_on, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
