"""Whole runs that are broken on purpose, small enough for two cores, and the undisturbed run that they are compared with."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from raydino.curation.synthetic import write_builtin
from raydino.faults import Fault
from raydino.launch.cluster import ClusterConfig
from raydino.launch.job import Job
from raydino.launch.workers import audit
from raydino.recipe import Recipe
from raydino.shards.reader import open_collection

ROOT = Path(__file__).resolve().parents[2]
EXACT: dict[str, Any] = {"precision": "fp32", "attention": "fused"}  # as `train_here`, on every machine
STEPS = 18  # 240 images in batches of 16: an epoch of 15 steps and the begin of the next


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A curated folder of 240 training and 60 test images."""
    folder = tmp_path_factory.mktemp("images") / "curated"
    write_builtin(str(folder), train=240, test=60)
    return folder


@pytest.fixture(scope="session")
def small(images: Path) -> Recipe:
    """A network of 30 thousand weights, saved every third step."""
    return Recipe().override(
        {
            "name": "small",
            "steps": STEPS,
            "global_batch": 16,
            "lanes": 4,
            "data": {"path": str(images), "window": 32},
            "backbone": {"patch_size": 8, "width": 32, "depth": 2, "heads": 2, "drop_path": 0.1},
            "method": {
                "global_crops": {"size": 32},
                "local_crops": {"size": 16, "count": 2},
                "head": {"prototypes": 64, "hidden": 32, "bottleneck": 16},
            },
            "evals": {"knn": {"k": 5, "bank": 100, "queries": 40}},
            "cadence": {"log": 1, "evaluate": 0, "checkpoint": 3, "pictures": False},
        }
    )


class Stage:
    """Where faults are laid and the audit logs lie, for one run after another."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.list, self.audit = folder / "faults.json", folder / "audit"
        self.environment = {"RAYDINO_FAULTS": str(self.list), "RAYDINO_AUDIT": str(self.audit)}
        self.clear()

    def clear(self, *faults: Fault) -> None:
        """Forget the run before and lay faults for the next."""
        shutil.rmtree(self.audit, ignore_errors=True)
        for spent in self.folder.glob("faults.json.*"):
            spent.unlink()
        self.list.write_text(json.dumps([asdict(fault) for fault in faults]))

    def lines(self, rank: int = 0) -> list[dict[str, Any]]:
        """The audit lines of a rank so far."""
        return audit.read(self.audit, rank) if (self.audit / f"rank-{rank}.jsonl").exists() else []

    def begins(self, rank: int = 0) -> list[dict[str, Any]]:
        """Where a rank began and began again."""
        return [line for line in self.lines(rank) if "begin" in line]

    def steps(self, rank: int = 0) -> dict[int, dict[str, Any]]:
        """The steps of a rank that count, without the process they were made by."""
        return {step: without_pid(line) for step, line in audit.effective(self.lines(rank)).items()}

    def order(self) -> list[list[tuple[int, str, str]]]:
        """What was seen in every step that counts, by slot, on however many workers it was."""
        return merged_order([self.lines(rank) for rank in range(2)])

    def wait_for(self, true: Callable[[], Any], *, seconds: float = 240) -> None:
        """Wait until something is so."""
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, f"not within {seconds} s; rank 0 has {self.lines()[-1:]}"
            time.sleep(0.02)


def without_pid(line: dict[str, Any]) -> dict[str, Any]:
    """A line by which two runs are compared."""
    return {name: value for name, value in line.items() if name != "pid"}


def attempts(lines: list[dict[str, Any]]) -> list[dict[int, dict[str, Any]]]:
    """A rank's lines by step, for every time that it began."""
    found: list[dict[int, dict[str, Any]]] = []
    for line in lines:
        if "begin" in line:
            found.append({})
        else:
            found[-1][line["step"]] = line
    return found


def merged_order(ranks: list[list[dict[str, Any]]]) -> list[list[tuple[int, str, str]]]:
    """The images of every step that counts, by slot. Rank 0 takes part in every attempt and says on how many ranks it was."""
    worlds = [line["world"] for line in ranks[0] if "begin" in line]
    taken: list[dict[int, list[dict[str, Any]]]] = [{} for _ in worlds]
    for rank, lines in enumerate(ranks):
        its = [number for number, world in enumerate(worlds) if world > rank]
        for number, steps in zip(its, attempts(lines), strict=False):
            for step, line in steps.items():
                taken[number].setdefault(step, []).append(line)
    order, counted = [], audit.effective(ranks[0])
    for step in sorted(counted):
        last = max(number for number, begun in enumerate(attempts(ranks[0])) if step in begun)
        assert step == len(order), f"step {step} follows step {len(order) - 1}"
        order.append(audit.merged(taken[last][step]))
    return order


@pytest.fixture(scope="session")
def undisturbed(small: Recipe, images: Path, train_here: Any, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """The run that nothing happens to, on one worker and without Ray."""
    from raydino.launch.inputs import open_inputs

    stage = Stage(tmp_path_factory.mktemp("undisturbed"))
    plan = open_inputs(small, str(images)).plan
    witness = audit.Audit(stage.audit, plan, rank=0, world=1, start=0)
    for report in train_here(small, images, watched=witness.batches):
        witness.step(report)
    return stage


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """The stage of all runs on `nodes`."""
    return Stage(tmp_path_factory.mktemp("stage"))


class Nodes:
    """A Ray of a head node, where rank 0 has its place, and a second machine for rank 1, which can be lost and come back."""

    def __init__(self, environment: dict[str, str]) -> None:
        import ray
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 3, "object_store_memory": 300 * 2**20, "include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.second = self.add()
        variables = {**environment, "PYTHONPATH": str(ROOT / "platform"), "OMP_NUM_THREADS": "1"}
        ray.init(
            address=self.cluster.address,
            runtime_env={"env_vars": variables},
            log_to_driver=False,
            logging_level="error",
        )

    def add(self) -> Any:
        """Another machine, with room for one worker."""
        return self.cluster.add_node(num_cpus=2, object_store_memory=100 * 2**20)

    def lose(self) -> None:
        """The second machine is gone from one moment to the next."""
        self.cluster.remove_node(self.second, allow_graceful=False)

    def end(self) -> None:
        """Stop what was started here."""
        import ray

        ray.shutdown()
        self.cluster.shutdown()


@pytest.fixture(scope="module")
def nodes(stage: Stage) -> Iterator[Nodes]:
    """One Ray for all tests that need no driver of their own: it takes longer to start than a run. Other modules start theirs."""
    nodes = Nodes(stage.environment)
    yield nodes
    nodes.end()


@pytest.fixture
def job(small: Recipe, images: Path, tmp_path: Path) -> Callable[..., Job]:
    """A job of two workers, 2 CPUs each so that every machine has room for one; arguments change the cluster file."""

    def make(**cluster: Any) -> Job:
        digest = open_collection(str(images), split="train").manifest.digest
        config = ClusterConfig(workers=2, cpus_per_worker=2, threads=1, storage=str(tmp_path), **EXACT, **cluster)
        return Job(small, config, tmp_path, str(images), digest, "", None)

    return make


@pytest.fixture(scope="module")
def pair(
    nodes: Nodes, stage: Stage, small: Recipe, images: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[Any]:
    """The steps of rank 0 and rank 1 of the run on two workers that nothing happens to."""
    from raydino.launch.engine.trainer import fit

    folder = tmp_path_factory.mktemp("pair")
    digest = open_collection(str(images), split="train").manifest.digest
    cluster = ClusterConfig(workers=2, cpus_per_worker=2, threads=1, storage=str(folder), **EXACT)
    stage.clear()
    fit(Job(small, cluster, folder, str(images), digest, "", None))
    return [stage.steps(0), stage.steps(1)]


class Shell:
    """recipes/dinov2.py as a user starts it, on a Ray of its own."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.stage, self.storage = Stage(folder), folder / "runs"
        self.config, self.started = folder / "small.yaml", list[subprocess.Popen[str]]()
        self.config.write_text(recipe.to_yaml())

    @property
    def run_dir(self) -> Path:
        """The folder of the only run."""
        (folder,) = self.storage.glob("small-*")
        return folder

    def start(self, *flags: str) -> subprocess.Popen[str]:
        """Begin the run, or go on with it, in a session of its own."""
        kept = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "PYTHONPATH")}
        words = ["--config", str(self.config), "--cluster.storage", str(self.storage), "--cluster.threads", "1"]
        words += [word for name, value in EXACT.items() for word in (f"--cluster.{name}", value)]
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "recipes" / "dinov2.py"), *words, *flags],
            env={**kept, **self.stage.environment},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.started.append(process)
        return process


@pytest.fixture
def kill_all() -> Callable[[subprocess.Popen[str]], None]:
    """SIGKILL for a driver and all that it started: Ray's workers are in groups of their own."""
    import psutil

    def kill(process: subprocess.Popen[str]) -> None:
        everything = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGKILL)
        for child in everything:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        process.communicate(timeout=30)
        psutil.wait_procs(everything, timeout=30)

    return kill


@pytest.fixture
def shell(small: Recipe, tmp_path: Path) -> Iterator[Shell]:
    """A command line with a folder of its own."""
    shell = Shell(tmp_path, small)
    yield shell
    for process in shell.started:  # a test that failed leaves no run behind
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
