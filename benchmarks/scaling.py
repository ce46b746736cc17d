"""Images a second against the number of workers, and beside bare DistributedDataParallel of the same networks.

    python benchmarks/scaling.py                     # two minutes of two cores: 1, 2, 4 workers joined by gloo
    python benchmarks/scaling.py --preset vitl16-short --images 32 --precision bf16     # on GPUs: one worker each, nccl
    python benchmarks/scaling.py --parallel fsdp     # ours sharded

Every worker has the same number of images whatever their number (weak scaling). Ours is raydino's whole training step: guard,
clock, norms, schedules, metrics. Bare is what any script would write: DistributedDataParallel around the method, loss, backward,
torch's clipping, fused or foreach AdamW, moving average. Both live in the same processes and take turns, block by block, all
ranks starting a block together; a block takes as long as its slowest rank. Voided unless both sides' losses agree over the first
steps to 1e-4. On a CPU each worker has one thread, so with more workers than cores they share them.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))

import torch
import torch.distributed as dist
from presets import DINOV2
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from raydino import collectives
from raydino.launch.checks.facts import random_batch
from raydino.launch.cluster import ClusterConfig
from raydino.launch.workers.worker import build_loop
from raydino.recipe import Recipe
from raydino.train.optim import build_optimizer, set_schedules
from raydino.train.parallel import autocast
from raydino.train.steps import Loop, train_step
from raydino.views import Batch

RESULT = Path(__file__).resolve().parent / "results" / "scaling.json"
GOAL = 0.97  # of bare DistributedDataParallel, with two workers
CHECKED = 3  # steps whose losses are compared, which also warm up


@dataclass(frozen=True)
class Setting:
    """What is measured; the same for every number of workers."""

    recipe: Recipe
    cluster: ClusterConfig
    images: int
    rounds: int
    steps: int
    """Steps in a block."""


def batch_of(setting: Setting, device: torch.device) -> Batch:
    """Random pixels of this rank, on the device: reading is measured elsewhere."""
    drawn = random_batch(setting.recipe, setting.images, step=collectives.rank())
    return replace(drawn, step=0).to(device)


def bare_step(loop: Loop, module: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """One step as a plain script has it."""
    method = loop.method
    torch.manual_seed(collectives.rank())
    part = Batch({name: loop.normalise(crop) for name, crop in batch.crops.items()}, batch.masks, batch.ids, batch.step)
    with autocast(loop.device, loop.precision):
        output = module(part, batch.step)
    loss = torch.stack(list(output.losses.values())).sum()
    loss.backward()
    for network in method.student.children():
        clip_grad_norm_(network.parameters(), loop.optim.clip)
    set_schedules(loop.optimizer, lr=loop.peak_lr, weight_decay=0.04)
    loop.optimizer.step()
    method.after_step(batch.step)
    loop.optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def sides(setting: Setting, device: torch.device) -> dict[str, Callable[[], torch.Tensor]]:
    """A step of each side, from the same weights, giving its loss."""
    recipe, batch = setting.recipe, batch_of(setting, device)
    ours = build_loop(recipe, setting.cluster, device)
    plain = build_loop(recipe, ClusterConfig(threads=setting.cluster.threads, precision=ours.precision), device)
    module: torch.nn.Module = plain.method
    if collectives.world_size() > 1:
        ids = [device.index] if device.type == "cuda" else None
        module = DistributedDataParallel(plain.method, device_ids=ids)
    object.__setattr__(plain, "optimizer", build_optimizer(plain.method.student, recipe.optim))

    def raydino() -> torch.Tensor:
        out = train_step(ours, batch)
        assert out.skipped is None
        return torch.as_tensor(out.metrics["loss/total"])

    return {"raydino": raydino, "bare": lambda: bare_step(plain, module, batch)}


def work(rank: int, world: int, folder: str, setting: Setting) -> None:
    """One worker; rank 0 leaves seconds of every block, by side, and the losses that were compared."""
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", rank) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    os.environ["LOCAL_WORLD_SIZE"] = str(world)
    dist.init_process_group("nccl" if gpu else "gloo", f"file://{folder}/join-{world}", rank=rank, world_size=world)
    steps = sides(setting, device)
    losses = {name: [float(collectives.all_mean(step())) for _ in range(CHECKED)] for name, step in steps.items()}
    for one, other in zip(*losses.values(), strict=True):
        assert abs(one / other - 1) < (1e-2 if gpu else 1e-4), losses
    spent: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(setting.rounds):
        for name in sorted(steps, reverse=bool(number % 2)):
            dist.barrier()
            begun = time.perf_counter()
            for _ in range(setting.steps):
                steps[name]()
            if gpu:
                torch.cuda.synchronize()
            taken = torch.tensor(time.perf_counter() - begun, device=device)
            spent[name].append(float(collectives.all_max(taken)))
    if rank == 0:
        Path(folder, f"{world}.json").write_text(json.dumps({"seconds": spent, "losses": losses}))
    dist.destroy_process_group()


def measure(world: int, setting: Setting) -> dict[str, object]:
    """Images a second of both sides with `world` workers, and ours over bare: median, least, most of the blocks."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(work, (world, folder, setting), nprocs=world)
        found = json.loads(Path(folder, f"{world}.json").read_text())
    images = world * setting.images * setting.steps
    seconds = found["seconds"]
    ratios = sorted(bare / own for own, bare in zip(seconds["raydino"], seconds["bare"], strict=True))
    return {
        "workers": world,
        "images_per_second": {name: round(images / median(values), 2) for name, values in seconds.items()},
        "ratio": [round(x, 3) for x in (median(ratios), ratios[0], ratios[-1])],
        "losses": {name: [round(x, 6) for x in values] for name, values in found["losses"].items()},
    }


def main() -> None:
    gpus = torch.cuda.device_count()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="laptop")
    parser.add_argument("--images", type=int, default=8, help="of each worker")
    parser.add_argument("--workers", type=int, nargs="+", default=[n for n in (1, 2, 4, 8) if n <= (gpus or 4)])
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--steps", type=int, default=1 if not gpus else 10)
    parser.add_argument("--parallel", choices=["ddp", "fsdp"], default="ddp")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    given = parser.parse_args()
    recipe = DINOV2[given.preset].override({"optim.warmup": 0})
    cluster = ClusterConfig(threads=0 if gpus else 1, parallel=given.parallel, precision=given.precision)
    setting = Setting(recipe, cluster, given.images, given.rounds, given.steps)
    table = [measure(world, setting) for world in given.workers]
    for row in table:
        print(json.dumps(row))
    speed = {row["workers"]: row["images_per_second"]["raydino"] for row in table}
    judged = next((row for row in table if row["workers"] == 2), table[-1])
    least = min(speed)
    report = {
        "name": "scaling",
        "device": torch.cuda.get_device_name() if gpus else f"CPU, {os.cpu_count()} cores, one thread a worker",
        "ratio": judged["ratio"][0],
        "spread": judged["ratio"][1:],
        "goal": f">= {GOAL} of bare DistributedDataParallel with 2 workers",
        "limit_share": round(speed[judged["workers"]] / (speed[least] / least * judged["workers"]), 3),
        "limit_is": f"{judged['workers']} times the images a second of one worker",
        "command": "python benchmarks/scaling.py " + " ".join(sys.argv[1:]),
        "preset": given.preset,
        "parallel": given.parallel,
        "images_per_worker": given.images,
        "by_workers": table,
    }
    name = RESULT if given.parallel == "ddp" else RESULT.with_name(f"scaling_{given.parallel}.json")
    name.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{judged['workers']} workers: {judged['ratio'][0]} of bare DistributedDataParallel")


if __name__ == "__main__":
    main()
