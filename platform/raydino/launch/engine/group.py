"""One function in several processes of a Ray, joined into one torch process group: for work that is short and holds no state.

Training has Ray Train, which starts lost workers again; whoever calls this begins anew. Ray is imported inside functions.
"""

import contextlib
import os
import socket
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from raydino.config import ConfigError
from raydino.launch.cluster import ClusterConfig
from raydino.launch.engine.connect import start_ray

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
_SAID = "workers = {workers}: one of them was lost ({why}); run the command again."
LOOK_SECONDS = 10.0  # until Ray knows of a process that is gone
PATIENCE = timedelta(days=1)  # a worker may work alone for long; one that is lost is seen by Ray, not by those who wait


def in_group(work: "Callable[[int, torch.device], T]", cluster: ClusterConfig) -> T:
    """What `work(rank, device)` returns at rank 0 of `cluster.workers` processes, a GPU each where there are GPUs, in this
    process's directory where they have it; `work` and its result are pickled.

    Raises ConfigError where the cluster has no room for all at once or loses one, and the first exception of a worker; the others
    are ended then, since they would wait for it for ever.
    """
    with start_ray(cluster):
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        resources, workers = ray.cluster_resources(), cluster.workers
        use_gpu = cluster.use_gpu(int(resources.get("GPU", 0)))
        each = {"CPU": cluster.cpus_per_worker, **({"GPU": cluster.gpus_per_worker} if use_gpu else {})}
        for kind, amount in each.items():
            if resources.get(kind, 0.0) < workers * amount:
                raise ConfigError(
                    f"workers = {workers}: the cluster has {resources.get(kind, 0.0):g} {kind}s, and {workers * amount:g} are "
                    "needed; give fewer workers, or add nodes."
                )
        member: Any = ray.remote(num_cpus=each["CPU"], num_gpus=each.get("GPU", 0))(_Member)
        members = [member.remote() for _ in range(workers)]
        left: list[Any] = []
        try:
            door = ray.get(members[0].door.remote())
            shared = {"world": workers, "door": door, "threads": cluster.threads, "directory": str(Path.cwd())}
            waiting = [one.carry_out.remote(work, rank=rank, **shared) for rank, one in enumerate(members)]
            results, left = {}, waiting
            while left:
                (done,), left = ray.wait(left)
                results[done] = ray.get(done)
            return results[waiting[0]]
        except RayTaskError as error:
            if isinstance(error.cause, (ConfigError, OSError)):
                raise error.cause from None
            if (lost := _lost(left)) is not None:  # the error may be that of one who was in touch with it
                raise ConfigError(_SAID.format(workers=workers, why=lost)) from error
            raise
        except RayActorError as error:
            raise ConfigError(_SAID.format(workers=workers, why=_first_line(error))) from error
        finally:
            for one in members:
                ray.kill(one)


def _lost(left: list[Any]) -> str | None:
    """Why one of those that have not answered is lost, if one is by now or soon."""
    import ray
    from ray.exceptions import RayActorError, RayError

    for done in ray.wait(left, num_returns=len(left), timeout=LOOK_SECONDS)[0] if left else []:
        try:
            ray.get(done)
        except RayActorError as error:
            return _first_line(error)
        except RayError:  # as the first one
            continue
    return None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


class _Member:
    """A process of the group."""

    def door(self) -> str:
        """Where the others meet rank 0."""
        import ray

        with socket.socket() as probe:
            probe.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"

    def carry_out(self, work: Any, *, rank: int, world: int, door: str, threads: int, directory: str) -> Any:
        """The work as one of `world`."""
        import torch
        import torch.distributed as dist

        # Ray started this process wherever it was itself; a node without the folder has that of the job.
        with contextlib.suppress(OSError):
            os.chdir(directory)
        device = torch.device("cuda:0") if torch.cuda.is_available() else torch.device("cpu")  # Ray shows each its own
        torch.set_num_threads(threads or max(1, (os.cpu_count() or 1) // world))
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=door, rank=rank, world_size=world, timeout=PATIENCE)
        found = work(rank, device)
        dist.destroy_process_group()  # not after an error, which those who wait for this one would answer with their own
        return found
