"""What all tests share: quiet libraries, one torch thread, the folder of real images, a small local Ray."""

import os

os.environ.update(
    HF_HUB_OFFLINE="1",
    RAY_USAGE_STATS_ENABLED="0",
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    RAY_DATA_DISABLE_PROGRESS_BARS="1",
    NO_ALBUMENTATIONS_UPDATE="1",
    MLFLOW_DISABLE_TELEMETRY="true",
)
os.environ.setdefault("OMP_NUM_THREADS", "1")

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parents[1]

# The same examples every time and no deadline: a slow machine is no reason to fail.
hypothesis.settings.register_profile("raydino", deadline=None, derandomize=True, max_examples=50, database=None)
hypothesis.settings.load_profile("raydino")


@pytest.fixture(autouse=True)
def _one_torch_thread() -> None:
    """Results do not depend on the machine's cores, and parallel runs do not fight for them. For each test anew: a loop that is
    built in this process sets as many as a worker has."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _no_other_machine() -> Iterator[None]:
    """Connections of this process to other machines fail at once, so that no test depends on a network or tells it anything."""
    import psutil

    mine = {address.address.partition("%")[0] for found in psutil.net_if_addrs().values() for address in found}
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        # UDP "connects" without sending a byte; Ray asks for this machine's address in that way.
        if self.family in (socket.AF_INET, socket.AF_INET6) and self.type == socket.SOCK_STREAM:
            host = socket.gethostbyname(address[0]) if self.family == socket.AF_INET else address[0]
            if not host.startswith(("127.", "::1")) and host not in mine:
                raise AssertionError(f"no test may reach another machine: {address}")
        connect(self, address)

    socket.socket.connect = guarded  # type: ignore[method-assign]
    yield
    socket.socket.connect = connect  # type: ignore[method-assign]


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real images (cifar10/, caltech101/, decode-edge-cases/, ...)."""
    folder = Path(os.environ.get("RAYDINO_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real images: {folder} is not there (set RAYDINO_DATA)")
    return folder


@pytest.fixture(scope="session")
def train_here() -> Callable[..., Iterator[Any]]:
    """Step reports of a recipe on a curated folder in this process: the whole chain but Ray, on one thread. `watched` is what
    the batches pass through."""
    import torch

    from raydino.data.batches import batches
    from raydino.data.fetch import local_windows
    from raydino.launch.cluster import ClusterConfig
    from raydino.launch.inputs import open_inputs
    from raydino.launch.workers.worker import build_loop
    from raydino.train.steps import training_steps

    def train(recipe: Any, folder: Path, *, watched: Callable[[Any], Any] = lambda stream: stream) -> Iterator[Any]:
        inputs = open_inputs(recipe.override({"data.path": str(folder)}), str(folder))
        exact = ClusterConfig(precision="fp32", attention="fused")  # the same arithmetic on every machine
        loop = build_loop(recipe, exact, torch.device("cpu"))
        torch.set_num_threads(1)
        stream = chain.from_iterable(
            batches(
                inputs.collection,
                inputs.plan,
                views,
                seed=recipe.seed,
                rank=0,
                world=1,
                start_step=steps.start,
                steps=len(steps),
                max_bad=1.0,
                on_bad=lambda bad: None,
                read=local_windows,
            )
            for steps, views in recipe.phases()
        )
        yield from training_steps(loop, watched(stream))

    return train


SHARED_RAY: list[str] = []
"""Addresses of the Rays that `ray_cluster` has started."""


def _shared_ray_runs() -> bool:
    """Whether this process is on a Ray of `ray_cluster`, and not on one that a test has started for itself."""
    import ray

    return ray.is_initialized() and ray.get_runtime_context().gcs_address in SHARED_RAY


@pytest.fixture
def ray_cluster() -> None:
    """A local Ray with 2 CPUs, whose workers find raydino and import by path. It stays until a test does not ask for it."""
    import ray

    def start() -> None:
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=300 * 2**20,
            log_to_driver=False,
            logging_level="warning",
            runtime_env={"env_vars": {"PYTHONPATH": str(ROOT / "platform"), "OMP_NUM_THREADS": "1"}},
        )

    if _shared_ray_runs():
        return
    try:
        start()
    except Exception as error:  # Ray gives a node 30 s to start, which may not do beside another that starts
        if "timed out during startup" not in str(error):
            raise
        ray.shutdown()
        start()
    SHARED_RAY.append(ray.get_runtime_context().gcs_address)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """The shared Ray ends before a test that does not ask for it, since others test how one is started."""
    if SHARED_RAY and "ray_cluster" not in getattr(item, "fixturenames", ()) and _shared_ray_runs():
        import ray

        ray.shutdown()


RANK = """
import sys
import cloudpickle, torch
import torch.distributed as dist
rank = int(sys.argv[1])
torch.set_num_threads(1)
for line in sys.stdin:
    world, folder = line.rstrip().split(" ", 1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=int(world))
    with open(f"{folder}/function", "rb") as function:
        result = cloudpickle.load(function)(rank)
    torch.save(result, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    open(f"{folder}/{rank}.done", "w").close()
"""


class _Ranks:
    """Processes that stay between calls, since importing torch takes each of them longer than most of what they are asked."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._calls = folder, 0
        self._processes: list[subprocess.Popen[str]] = []

    def __call__(self, function: Callable[[int], Any], world: int) -> list[Any]:
        import cloudpickle
        import torch

        cloudpickle.register_pickle_by_value(sys.modules[function.__module__])
        self._calls += 1
        call = self._folder / f"{self._calls}"
        call.mkdir()
        (call / "function").write_bytes(cloudpickle.dumps(function))
        while len(self._processes) < world:
            self._start(len(self._processes))
        ranks = self._processes[:world]
        for process in ranks:
            assert process.stdin is not None
            process.stdin.write(f"{world} {call}\n")
            process.stdin.flush()
        deadline = time.monotonic() + 120
        while not all((call / f"{rank}.done").exists() for rank in range(world)):
            if any(process.poll() is not None for process in ranks) or time.monotonic() > deadline:
                self.end()
                raise AssertionError("\n".join(self._log(rank).read_text() for rank in range(world)))
            time.sleep(0.01)
        return [torch.load(call / f"{rank}.pt", weights_only=False) for rank in range(world)]

    def _log(self, rank: int) -> Path:
        return self._folder / f"{rank}.log"

    def _start(self, rank: int) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "platform")}
        command = [sys.executable, "-W", "ignore", "-c", RANK, str(rank)]
        with self._log(rank).open("w") as log:
            self._processes.append(
                subprocess.Popen(command, env=environment, text=True, stdin=subprocess.PIPE, stderr=log)
            )

    def end(self) -> None:
        """Kill them; the next call starts others."""
        for process in self._processes:
            process.kill()
            process.communicate()
        self._processes.clear()


@pytest.fixture(scope="session")
def gloo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Callable[[int], Any], int], list[Any]]]:
    """Call a function of the rank in `world` real processes joined by gloo; returns what each returned, in rank order.

    Fresh interpreters rather than forks, because this process may hold Ray's threads. They join anew for every call; where one
    fails, all are ended, so that nothing of it reaches the next call.
    """
    ranks = _Ranks(tmp_path_factory.mktemp("gloo"))
    yield ranks
    ranks.end()
