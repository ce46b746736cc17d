"""Ray Train for one run: what the cluster must have, the trainer, and a thread to run it in. Ray is imported inside functions."""

import json
import secrets
import threading
from collections.abc import Mapping
from functools import partial
from math import ceil
from typing import TYPE_CHECKING, Any

from raydino.config import ConfigError
from raydino.launch.checks.doubts import RAY_TESTED
from raydino.launch.checks.preflight import store_fault
from raydino.launch.cluster import ClusterConfig
from raydino.launch.engine.connect import environment

if TYPE_CHECKING:
    from raydino.launch.job import Job

START_FAILURES = 3  # groups of workers that may fail to start; Ray's own default is to try for ever
ELASTIC_SECONDS = 15.0  # room that is there is given in one or two
RESIZE_EVERY = 60.0  # seconds between looks for machines that came back: a resize costs a restart of some 15 s


class Training:
    """TorchTrainer.fit in a thread: the main thread keeps the signals, which Ray would otherwise take for an abort."""

    def __init__(self, job: "Job") -> None:
        self._job, self._error = job, None
        self._thread = threading.Thread(target=self._fit, name="ray-train", daemon=True)
        self._thread.start()

    def _fit(self) -> None:
        try:
            fit(self._job)
        except Exception as error:  # whatever Ray raises is shown by the main thread
            self._error = error

    def ended(self, *, timeout: float) -> bool:
        """Wait up to `timeout` seconds; True when training has ended or met what no restart can mend."""
        self._thread.join(timeout)
        return not self._thread.is_alive() or self._failure() is not None

    def error(self) -> str | None:
        """Why training failed, in a line or two; None if it did not."""
        failure = self._failure()
        if failure:
            return str(failure["message"])
        if self._error is None:
            return None
        causes = [line for line in str(self._error).splitlines() if line.strip()]
        return f"{type(self._error).__name__}: {causes[-1] if causes else ''}"

    def _failure(self) -> dict[str, Any] | None:
        from raydino.launch.workers.failure import FAILURE

        path = self._job.run_dir / FAILURE
        try:
            return json.loads(path.read_text()) if path.exists() else None
        except ValueError:  # being written
            return None


def fit(job: "Job") -> None:
    """Train on the Ray that is running; blocks until all workers are done. Raises what Ray Train raises."""
    import ray
    from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig

    from raydino.launch.checks.nodes import asks_for_token, check_door, check_nodes
    from raydino.launch.engine.owners import start_owners

    cluster, resources = job.cluster, ray.cluster_resources()
    use_gpu = cluster.use_gpu(int(resources.get("GPU", 0)))
    _require(job, resources, use_gpu=use_gpu)
    check_door(job, address=ray.get_runtime_context().gcs_address, token=asks_for_token())
    check_nodes(job, use_gpu=use_gpu)
    claim = start_owners(job) if job.recipe.data.stream_dedup else None  # they live as long as this handle
    workers = (cluster.min_workers, cluster.workers) if cluster.is_elastic else cluster.workers
    trainer = _trainer(job)(
        _train_worker,
        train_loop_config={"job": job, "claim": claim},
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=use_gpu,
            resources_per_worker={
                "CPU": cluster.cpus_per_worker,
                **({"GPU": cluster.gpus_per_worker} if use_gpu else {}),
            },
            elastic_resize_monitor_interval_s=RESIZE_EVERY,
        ),
        run_config=RunConfig(
            # A name of its own for every attempt: Ray silently resumes a name it knows, from a snapshot it may have lost.
            name=f"attempt-{secrets.token_hex(4)}",
            storage_path=str(job.run_dir / "ray"),
            failure_config=FailureConfig(
                max_failures=cluster.max_failures, controller_failure_limit=_start_failures(cluster)
            ),
        ),
    )
    settings = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(_start_timeout(cluster))}
    if cluster.is_local:  # nobody gives notice of the end of this machine; a process less
        settings["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
    with environment(settings):
        try:
            trainer.fit()
        except ControllerError as error:
            if "StartupTimeout" in str(error) + type(error.controller_failure).__name__:
                raise ConfigError(_not_started(job, ray.cluster_resources(), ray.available_resources())) from error
            raise


def _trainer(job: "Job") -> Any:
    """Ray's trainer, or the one whose number of workers follows the cluster."""
    from raydino.launch.engine.lean import LeanTorchTrainer

    if not job.cluster.is_elastic:
        return partial(LeanTorchTrainer, local=job.cluster.is_local)
    try:
        from raydino.launch.engine.elastic import ElasticTorchTrainer, EvenSizes
    except ImportError as error:  # it leans on the inside of one version of Ray
        raise ConfigError(
            f"cluster.min_workers = {job.cluster.min_workers}: this version of Ray has no policy to narrow ({error}); "
            f"install Ray {RAY_TESTED}x, or set it to 0."
        ) from error
    recipe, cluster = job.recipe, job.cluster
    policy = partial(
        EvenSizes,
        sizes=cluster.sizes(lanes=recipe.lanes, global_batch=recipe.global_batch),
        spare=reading_cpus(cluster),
        patience=cluster.start_timeout,
        run_dir=job.run_dir,
    )
    return partial(ElasticTorchTrainer, policy=policy, local=job.cluster.is_local)


def _start_timeout(cluster: ClusterConfig) -> float:
    """Seconds that Ray waits for room for a group of workers, each time that it tries. A number of workers that follows the
    cluster is then chosen anew, for what is there now."""
    return (
        min(ELASTIC_SECONDS, cluster.start_timeout)
        if cluster.is_elastic
        else cluster.start_timeout / (START_FAILURES + 1)
    )


def _start_failures(cluster: ClusterConfig) -> int:
    """Groups of workers that may fail to start in the whole run; one that follows the cluster has a patience of its own."""
    return START_FAILURES + (ceil(cluster.start_timeout / ELASTIC_SECONDS) if cluster.is_elastic else 0)


def _not_started(job: "Job", resources: Mapping[str, float], free: Mapping[str, float]) -> str:
    has = ", ".join(f"{free.get(kind, 0):g} of {resources.get(kind, 0):g} {kind}s" for kind in ("CPU", "GPU"))
    return (
        f"cluster.workers = {job.cluster.workers}: they could not be started in {job.cluster.start_timeout:g} s "
        f"(cluster.start_timeout); the cluster has {has} free. Wait for other work to end, add machines, lower cluster.workers "
        "or cluster.cpus_per_worker, or raise cluster.start_timeout if machines are still on their way."
    )


def _train_worker(config: dict[str, Any]) -> None:
    from raydino.data.stream import prepare_readers

    prepare_readers()  # beside the imports of the next line, which take as long
    from raydino.launch.workers.worker import train_worker

    train_worker(config["job"], config["claim"])


def reading_cpus(cluster: ClusterConfig) -> float:
    """CPUs that reading needs beside the workers."""
    from raydino.data.stream import CROP_CPUS, FETCH_CPUS

    return FETCH_CPUS + CROP_CPUS * (cluster.decode_in == "cluster")


def _require(job: "Job", resources: Mapping[str, float], *, use_gpu: bool) -> None:
    """Refuse what the cluster can never schedule: Ray would wait for it without a word."""
    cluster = job.cluster
    field, least = ("min_workers", cluster.min_workers) if cluster.is_elastic else ("workers", cluster.workers)
    gpus = least * cluster.gpus_per_worker if use_gpu else 0.0
    needed = {"CPU": least * cluster.cpus_per_worker + reading_cpus(cluster), "GPU": gpus}
    for kind, amount in needed.items():
        if resources.get(kind, 0.0) < amount:
            raise ConfigError(
                f"cluster.{field} = {least}: the cluster has {resources.get(kind, 0.0):g} {kind}s, the run needs "
                f"{amount:g} (reading included); lower cluster.{field} or cluster.cpus_per_worker, or add nodes."
            )
    store = int(resources.get("object_store_memory", 0))
    if cluster.decode_in == "cluster" and (fault := store_fault(job.store_bytes, store)):
        raise ConfigError(fault)
