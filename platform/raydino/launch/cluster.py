"""Where and how a run is carried out: `ClusterConfig`, and a Ray that is started or joined for it.

The opposite of recipe.py: nothing here changes the result of a run, so nothing here is in its fingerprint, and a run
moves to other machines without becoming another run. Ray is imported inside functions: `--help` does not wait for it.
"""

import contextlib
import logging
import math
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from raydino.config import Config, ConfigError
from raydino.views import Positive

PACKAGE = Path(__file__).resolve().parents[1]  # the folder `raydino`, wherever it was imported from
STORE_LEAST = 600 * 2**20
STORE_SHARE = 0.3  # of the machine's memory
STORE_OF_SHARED = 0.95  # of what is free in /dev/shm; above it and 10 GB Ray refuses to start
STORE_UNSHARED = 10 * 10**9  # the most that Ray will put on disk where /dev/shm is too small
CONNECT_SECONDS = 10.0  # an address that does not answer by then is wrong, not slow

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the coming default of Ray; unset, it warns at each start
    "NO_ALBUMENTATIONS_UPDATE": "1",  # albumentations asks the network for its newest version at import
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""Environment of driver and workers: nothing phones home, and the console belongs to the run."""

Precision = Literal["bf16", "fp32"]


class ClusterConfig(Config):
    """Machines and what they are asked to do. The defaults are a laptop's."""

    address: str = "local"
    """`local` starts Ray in this process (in a Ray job: joins it); `auto`, HOST:PORT, ray://HOST:PORT join one."""
    workers: Positive = 1
    """Training processes over all nodes; one per GPU where there are GPUs."""
    gpu: Literal["auto"] | bool = "auto"
    """Whether a worker takes a GPU; auto: if the cluster has any."""
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    """CPUs that Ray reserves for a worker."""
    threads: Annotated[int, Field(ge=0)] = 0
    """torch threads per worker; 0 shares the node's cores among the workers on it."""
    data_threads: Annotated[int, Field(ge=0)] = 0
    """Threads that decode and crop in a worker; 0: with a GPU all its cores but one, without half of them."""
    decode_in: Literal["auto", "worker", "cluster"] = "auto"
    """Where images are decoded and cropped: in threads of the training worker, or in Ray Data tasks on any node with free CPUs;
    auto: in the cluster if workers take GPUs, leave most CPUs free and the cut windows fit into the object store."""
    prefetch: Annotated[int, Field(ge=0)] = 2
    """Batches prepared ahead of the step."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of forward and backward; auto: bf16 where the device computes in it natively."""
    accumulate: Positive = 1
    """Micro-batches per step on each worker: less memory, same global batch."""
    storage: str = "runs"
    """Folder of all runs; with several nodes, a file system mounted on each of them."""
    tracking_uri: str | None = None
    """MLflow server or database; None: SQLite in `storage`."""
    experiment: Annotated[str, Field(min_length=1)] = "raydino"
    """MLflow experiment."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Times that a run restarts from its last checkpoint by itself after losing a worker."""
    object_store_mb: Annotated[int, Field(ge=100)] | None = None
    """Shared memory for Ray's object store, MB; only for `local`, a running cluster has its own. None: 600, and on a machine with
    GPUs 30 % of its memory, if /dev/shm has as much."""

    @model_validator(mode="after")
    def _no_empty_text(self) -> Self:
        for name in ("address", "storage"):
            if not getattr(self, name).strip():
                raise ValueError(f"{name} is empty; leave it out for {type(self).model_fields[name].default!r}")
        return self

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

    def use_gpu(self, available: int) -> bool:
        """Whether workers take a GPU each on a cluster with `available` GPUs."""
        return available > 0 if self.gpu == "auto" else self.gpu

    def decodes_in(self, *, gpus: int, cpus: float, store: int, store_needed: int) -> Literal["worker", "cluster"]:
        """`decode_in` on a cluster with `gpus`, `cpus` and an object store of `store` bytes, of which the run would fill
        `store_needed` if images were cut in the cluster.

        Threads that cut hold up the Python of the step beside them: measured on an H100 with 16 cores and 32-pixel images,
        251 images/s against 2,920 with tasks. On a CPU the step is long, and there are few cores for more processes.
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
        """The precision on a device. `native_bf16`: CUDA from Ampere on, CPUs with AMX; elsewhere bf16 crawls."""
        if self.precision == "auto":
            return "bf16" if native_bf16 else "fp32"
        return self.precision

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


@contextlib.contextmanager
def start_ray(cluster: ClusterConfig, *, store: int = STORE_LEAST) -> Iterator[None]:
    """Ray for the length of a `with` block: started in this process or joined, quiet, workers able to import raydino.

    `store` is the size of the object store in bytes, for a Ray started here.
    An already initialised Ray (a sweep, a test) is used as it is and left running. Raises ConfigError naming address
    and remedy if a cluster cannot be reached, has another version or refuses the token.
    """
    with _environment({**QUIET, **(_python_path() if cluster.is_local else {})}):
        import ray

        if ray.is_initialized():
            yield
            return
        # Emitted at each start although token authentication is what we want.
        logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
        if cluster.is_local:
            _init_local(cluster, store)
        else:
            _join(cluster)
        try:
            yield
        finally:
            ray.shutdown()


def _init_local(cluster: ClusterConfig, store: int) -> None:
    import ray

    # One CPU beyond the workers': when they take all of them, Ray Data's tasks wait for ever. Only Ray counts it.
    needed = math.ceil(cluster.workers * cluster.cpus_per_worker) + 1
    ray.init(
        address="local",
        num_cpus=max(os.cpu_count() or 1, needed),
        object_store_memory=store,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )
    # Whoever reads the token runs code as this user; Ray writes it readable for all.
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    with contextlib.suppress(OSError):
        token.chmod(0o600)


def _join(cluster: ClusterConfig) -> None:
    """Join a running cluster. Its nodes are sent the package: a path of this machine may not exist there."""
    import ray

    address = "auto" if cluster.address == "local" else cluster.address
    _probe(address)
    try:
        # Without it, one variable set both by `ray job submit` and here ends the run at its start.
        with _environment({"RAY_OVERRIDE_JOB_RUNTIME_ENV": "1"}):
            ray.init(
                address=address,
                runtime_env={"py_modules": [str(PACKAGE)], "env_vars": worker_environment(cluster.threads)},
                log_to_driver=False,
                logging_level=logging.WARNING,
            )
    except Exception as error:
        raise ConfigError(_cannot_join(address, error)) from error


def _cannot_join(address: str, error: Exception) -> str:
    """Why joining failed, without the token even if the error quotes it."""
    text = " ".join(str(error).split())
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    text = text.replace(token, "…") if token else text
    if "token" in text.lower() or "401" in text:
        remedy = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the cluster's token on this machine"
    elif "version" in text.lower():
        remedy = "install the head node's versions of Python and Ray here (or run with `ray job submit`)"
    else:
        remedy = "start one with `ray start --head`, or use cluster.address = local"
    return f"cluster.address = {address}: cannot join the Ray cluster ({text[:300]}); {remedy}."


def _probe(address: str) -> None:
    """Fail in seconds on HOST:PORT that nobody answers; Ray itself retries for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        if address != "auto":
            raise ConfigError(f"cluster.address = {address!r}: expected local, auto, HOST:PORT or ray://HOST:PORT.")
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"cluster.address = {address}: nobody answers there ({error}); check host, port and firewall, or use local."
        ) from None


def _python_path() -> dict[str, str]:
    """PYTHONPATH with raydino's source root in front, which local workers inherit when the package is not installed."""
    before = os.environ.get("PYTHONPATH", "")
    root = str(PACKAGE.parent)
    return {"PYTHONPATH": root if not before else f"{root}{os.pathsep}{before}"}


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for a while.

    Set here rather than in a runtime_env: Ray then takes one of its idle processes as the first worker, 1.4 s sooner.
    """
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
