"""Ray Train for one run: what the cluster must have, the trainer, and a thread to run it in. Ray is imported inside functions."""

import json
import secrets
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from raydino.config import ConfigError
from raydino.launch.preflight import store_fault

if TYPE_CHECKING:
    from raydino.launch.job import Job


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
        from raydino.launch.failure import FAILURE

        path = self._job.run_dir / FAILURE
        try:
            return json.loads(path.read_text()) if path.exists() else None
        except ValueError:  # being written
            return None


def fit(job: "Job") -> None:
    """Train on the Ray that is running; blocks until all workers are done. Raises what Ray Train raises."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from raydino.launch.owners import start_owners

    cluster, resources = job.cluster, ray.cluster_resources()
    use_gpu = cluster.use_gpu(int(resources.get("GPU", 0)))
    _require(job, resources, use_gpu=use_gpu)
    claim = start_owners(job) if job.recipe.data.stream_dedup else None  # they live as long as this handle
    TorchTrainer(
        _train_worker,
        train_loop_config={"job": job, "claim": claim},
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=cluster.workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": cluster.cpus_per_worker, **({"GPU": 1} if use_gpu else {})},
        ),
        run_config=RunConfig(
            # A name of its own for every attempt: Ray silently resumes a name it knows, from a snapshot it may have lost.
            name=f"attempt-{secrets.token_hex(4)}",
            storage_path=str(job.run_dir / "ray"),
            failure_config=FailureConfig(max_failures=cluster.max_failures, controller_failure_limit=3),
        ),
    ).fit()


def _train_worker(config: dict[str, Any]) -> None:
    from raydino.launch.worker import train_worker

    train_worker(config["job"], config["claim"])


def _require(job: "Job", resources: Mapping[str, float], *, use_gpu: bool) -> None:
    """Refuse what the cluster can never schedule: Ray would wait for it without a word."""
    from raydino.data.stream import CROP_CPUS, FETCH_CPUS

    cut_there = job.cluster.decode_in == "cluster"
    needed = {
        "CPU": job.cluster.workers * job.cluster.cpus_per_worker + FETCH_CPUS + CROP_CPUS * cut_there,
        "GPU": float(job.cluster.workers if use_gpu else 0),
    }
    for kind, amount in needed.items():
        if resources.get(kind, 0.0) < amount:
            raise ConfigError(
                f"cluster.workers = {job.cluster.workers}: the cluster has {resources.get(kind, 0.0):g} {kind}s, the run needs "
                f"{amount:g} (reading included); lower cluster.workers or cluster.cpus_per_worker, or add nodes."
            )
    if cut_there and (fault := store_fault(job.store_bytes, int(resources.get("object_store_memory", 0)))):
        raise ConfigError(fault)
