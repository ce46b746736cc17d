"""Lives of one run, each a process of its own that is forked from this one, until one reaches the last step; a script.

    python lives.py FOLDER IMAGES    # faults in RAYDINO_FAULTS; FOLDER/damage.json: {"life": what is done to the newest save}

What a worker does, but for Ray: restore, train, save, die. A life that an exception ends begins again in the same process, so
that what it leaves open would add up.
"""

import gc
import json
import os
import signal
import sys
import threading
from contextlib import closing
from pathlib import Path

import torch

from raydino.data.batches import batches
from raydino.data.fetch import local_windows
from raydino.faults import InjectedError
from raydino.launch.cluster import ClusterConfig
from raydino.launch.inputs import open_inputs
from raydino.launch.job import Job
from raydino.launch.workers.keep import FOLDER, Keeper, choose
from raydino.launch.workers.worker import build_loop
from raydino.recipe import Recipe
from raydino.train.checkpoint import committed
from raydino.train.steps import training_steps

EVERY = 5  # steps between two saves


def main(folder: Path, images: str) -> None:
    recipe = Recipe().from_yaml((folder / "recipe.yaml").read_text())
    job = Job(recipe, ClusterConfig(threads=1, storage=str(folder)), folder / "run", images, "", "", None)
    damages = json.loads((folder / "damage.json").read_text())
    endings: list[str] = []
    pids: list[int] = []
    while not endings or endings[-1] != "finished":
        endings.append(one(job, pids))
        if how := damages.get(str(len(endings))):
            damage(job.run_dir / FOLDER, how)
        if len(endings) > 100:
            raise RuntimeError(f"it does not end: {endings}")
    names = [path.name for path in Path("/dev/shm").iterdir()]  # of all processes on this machine
    left = [name for name in names if any(str(pid) in name for pid in pids)]
    print(json.dumps({"endings": endings, "shared": left, **json.loads((folder / "run" / "left.json").read_text())}))


def one(job: Job, pids: list[int]) -> str:
    """How a life ended; its process joins `pids`."""
    child = os.fork()
    pids.append(child)
    if child == 0:
        status = 1
        try:
            live(job)
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)
    _, status = os.waitpid(child, os.WUNTRACED)
    if os.WIFSTOPPED(status):  # what a watchdog would do
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return "frozen"
    if os.WIFSIGNALED(status):
        return "killed"
    if os.WEXITSTATUS(status):
        raise RuntimeError("a life ended by itself; its traceback is above")
    return "finished"


def live(job: Job) -> None:
    """Train to the end through all exceptions, and write down what is left open then."""
    torch.set_num_threads(1)
    job.run_dir.mkdir(exist_ok=True)
    files, threads = _files(), threading.active_count()
    while True:
        try:
            train(job)
            break
        except InjectedError:
            continue
    gc.collect()
    left = {"files": _files() - files, "threads": threading.active_count() - threads}
    (job.run_dir / "left.json").write_text(json.dumps(left))


def _files() -> int:
    """Open files of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


def train(job: Job) -> None:
    """From the newest checkpoint to the last step."""
    recipe = job.recipe
    inputs = open_inputs(recipe, job.data_path)
    loop = build_loop(recipe, job.cluster, torch.device("cpu"))
    keeper = Keeper(job, loop, None)
    start = keeper.restore(choose(job, loop.device))
    stream = batches(
        inputs.collection,
        inputs.plan,
        recipe.views,
        seed=recipe.seed,
        rank=0,
        world=1,
        start_step=start,
        steps=recipe.steps - start,
        max_bad=1.0,
        on_bad=lambda bad: None,
        read=local_windows,
    )
    with closing(stream):
        for report in training_steps(loop, stream):
            keeper.poll()
            if (report.step + 1) % EVERY == 0:
                keeper.save(report.step + 1)
    keeper.finish()


def damage(folder: Path, how: str) -> None:
    """Spoil the newest of at least two checkpoints, as a disk does."""
    newest, *others = committed(folder)
    if not others:
        return
    path = newest / "model.safetensors"
    data = bytearray(path.read_bytes())
    if how == "truncate":
        data = data[: len(data) // 2]
    else:
        data[len(data) // 3] ^= 1
    path.write_bytes(data)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
