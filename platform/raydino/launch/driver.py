"""From a command line to a finished run: plan, check, record, start Ray, watch, sum up.

The way to the loss: `main` here, `train_worker` (launch/worker.py), `training_steps` (train/steps.py), `forward` of the method.
Heavy imports happen after the command line is parsed, so `--help` and typing errors answer at once.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydino.config import ConfigError
from raydino.launch.announce import plan_text
from raydino.launch.command import Command, fail, parse, say
from raydino.launch.machine import this_machine
from raydino.launch.preflight import check, store_fault
from raydino.recipe import NOT_IN_FINGERPRINT, Recipe
from raydino.tracking.redact import redact_text

if TYPE_CHECKING:
    from raydino.launch.inputs import Inputs
    from raydino.launch.job import Job

RUN_FILE = "run.json"
ROOT = Path(__file__).resolve().parents[3]


def main(recipe: Recipe, presets: Mapping[str, Recipe], *, description: str) -> None:
    """Run a recipe from the command line and leave with its exit status."""
    command = parse(recipe, presets, description=description)
    try:
        status = run(command)
    except ConfigError as error:
        fail(str(error))
    raise SystemExit(status)


def run(command: Command) -> int:
    """Carry out a command; returns the exit status. Raises ConfigError for what cannot be run."""
    from raydino.launch.facts import probe_speed, run_facts
    from raydino.launch.inputs import open_against, open_inputs, resolve
    from raydino.launch.summary import finished

    recipe, cluster = command.recipe, command.cluster
    run_dir = cluster.folder / recipe.id
    if not command.dry_run and (done := finished(run_dir)):
        say(f"{recipe.id} is finished: {_headline(done)}\n{run_dir}")
        return 0
    if not command.dry_run and run_dir.exists() and command.resume == "no" and (run_dir / RUN_FILE).exists():
        raise ConfigError(
            f"{run_dir} exists and is not finished; add --resume auto to go on with it, or give another --name."
        )
    data_path = resolve(recipe, cluster.folder)
    inputs = open_inputs(recipe, data_path)
    open_against(recipe)  # whether they are there is better known before Ray starts
    speed = probe_speed(recipe, cluster) if command.dry_run else 0.0
    facts = run_facts(recipe, cluster, inputs, images_per_second=speed)
    machine = this_machine()
    warnings = check(recipe, cluster, facts=facts, machine=machine)
    say(plan_text(recipe, cluster, facts, warnings=warnings))
    if command.dry_run:
        return 0
    job = _prepare(command, run_dir, data_path, inputs)
    store = cluster.store_bytes(gpus=machine.gpus, memory=machine.memory, shared=machine.shared_memory)
    return _carry_out(replace(job, store_bytes=facts.store_bytes), store=store)


def _prepare(command: Command, run_dir: Path, data_path: str, inputs: "Inputs") -> "Job":
    """Make the run's folder and its MLflow run."""
    from raydino.launch.failure import ERRORS, FAILURE
    from raydino.launch.job import Job
    from raydino.launch.worker import STOP
    from raydino.tracking.mlflow_run import DatasetRecord, TrackerUnavailable, create_run
    from raydino.tracking.outbox import recorded_run

    recipe, cluster = command.recipe, command.cluster
    run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    for leftover in (STOP, FAILURE, ERRORS.format("*")):  # of an attempt before: its cause may be mended
        for path in run_dir.glob(leftover):
            path.unlink()
    (run_dir / "recipe.yaml").write_text(recipe.to_yaml())
    (run_dir / "cluster.yaml").write_text(redact_text(cluster.to_yaml()))  # for people: nothing reads it back
    known = json.loads((run_dir / RUN_FILE).read_text()) if (run_dir / RUN_FILE).exists() else {}
    manifest = inputs.collection.manifest
    try:
        mlflow_run_id = create_run(
            tracking_uri=cluster.tracker(),
            experiment=cluster.experiment,
            run_name=recipe.name,
            params=_flat(recipe.dump()),
            tags=_tags(recipe, manifest.digest),
            dataset=DatasetRecord(recipe.data.path, manifest.digest, data_path, inputs.plan.kept),
            recipe_yaml=recipe.to_yaml(),
            cluster_yaml=cluster.to_yaml(),
            run_id=recorded_run(run_dir) or known.get("mlflow_run_id"),
            run_dir=run_dir,
        )
    except TrackerUnavailable as error:
        say(f"warning  {error}")
        mlflow_run_id = known.get("mlflow_run_id")
    (run_dir / RUN_FILE).write_text(json.dumps({"run_id": recipe.id, "mlflow_run_id": mlflow_run_id}))
    return Job(recipe, cluster, run_dir, data_path, manifest.digest, cluster.tracker(), mlflow_run_id)


def _carry_out(job: "Job", *, store: int) -> int:
    """Train on Ray (with an object store of `store` bytes if it is started here), watching; returns the exit status."""
    from raydino.launch.cluster import start_ray
    from raydino.launch.progress import Watch
    from raydino.launch.summary import summarise
    from raydino.tracking.mlflow_run import finish, run_page
    from raydino.tracking.outbox import recorded_run

    with start_ray(job.cluster, store=store):
        stop, training = _Stop(job.run_dir), _Training(job)
        with stop, Watch(job.run_dir, steps=job.recipe.steps) as watch:
            while not training.ended(timeout=0.5):
                watch.update()
        error = training.error()
        job = replace(
            job, mlflow_run_id=recorded_run(job.run_dir) or job.mlflow_run_id
        )  # the tracker may have come back
        # Said before Ray goes: after a failure its own thread may still use it, and Ray then ends the process on the spot.
        summary = summarise(job.run_dir, job.recipe, mlflow_run_id=job.mlflow_run_id)
        if error is not None:
            if job.mlflow_run_id:
                finish(job.tracking_uri, job.mlflow_run_id, "FAILED")
            say(f"error: {error}\nThe run's folder: {job.run_dir}. Mend the cause and go on with --resume auto.")
            sys.stdout.flush()
            sys.stderr.flush()
    if error is not None:
        return 1
    page = run_page(job.tracking_uri, job.mlflow_run_id) if job.mlflow_run_id else None
    first = "make ui, then " if job.tracking_uri.startswith("sqlite:") else ""
    say(f"{_headline(summary)}\n{job.run_dir}" + (f"\n{first}{page}" if page else ""))
    return stop.status if summary["status"] != "finished" else 0


class _Training:
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


class _Stop:
    """SIGTERM or Ctrl-C: save a checkpoint after the step in hand and leave; the second time leave at once."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir, self._before = run_dir, {}
        self.status = 0

    def __enter__(self) -> "_Stop":
        for kind in (signal.SIGTERM, signal.SIGINT):
            self._before[kind] = signal.signal(kind, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for kind, handler in self._before.items():
            signal.signal(kind, handler)

    def _receive(self, number: int, _frame: object) -> None:
        from raydino.launch.worker import STOP

        if self.status:
            os._exit(self.status)
        self.status = 128 + number
        (self._run_dir / STOP).touch()
        say("stopping: a checkpoint is saved after this step; once more to leave without it")


def _headline(summary: Mapping[str, Any]) -> str:
    """The result in a line."""
    parts = [f"{summary['steps']:,} steps, {summary['images_seen']:,} images in {summary['seconds']:.0f} s"]
    parts.append(f"{summary['images_per_second']:.0f} img/s, {summary['data_wait']:.0%} waiting for data")
    for name, value in summary["metrics"].items():
        if value["last"] is not None:
            start = (
                ""
                if value["untrained"] is None or value["untrained"] == value["last"]
                else f" (untrained {value['untrained']:.3f})"
            )
            parts.append(f"{name} {value['last']:.3f}{start}")
    return "; ".join(parts)


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _tags(recipe: Recipe, digest: str) -> dict[str, str]:
    """Where a result comes from: code, recipe, data. MLflow's own two make the line "Source" of its page."""
    commit = _git("rev-parse", "HEAD") or "unknown"
    return {
        "mlflow.source.name": Path(sys.argv[0]).name,
        "mlflow.source.git.commit": commit,
        "git_commit": commit,
        "git_dirty": str(bool(_git("status", "--porcelain"))).lower(),
        "fingerprint": recipe.fingerprint(exclude=NOT_IN_FINGERPRINT),
        "run_id": recipe.id,
        "data_digest": digest,
    }


def _git(*words: str) -> str:
    try:
        return subprocess.run(
            ["git", *words], cwd=ROOT, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""  # not a checkout, or no git
