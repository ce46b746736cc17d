"""The training step: raydino beside the published structure in float32, and what each of its parts brings.

    python benchmarks/step.py                          # the demo's network; three minutes of two cores
    python benchmarks/step.py --preset vits16-5k --images 8
    python benchmarks/step.py --preset vits16 --images 128     # on a GPU: vitb16 64, vitl16-short 64

Crops are random and already where the step is, so data plays no part. "published" is DINOv2's step written down again in eager
float32 torch with the same modules and weights: patches embedded by a convolution and picked by their mask, torch's fused
attention, a log-softmax for every crop, AdamW and teacher tensor by tensor, no guard. The ladder takes one part of raydino's
step back at a time; on a CPU its last rung is a process of its own, whose C library hands freed memory back to the system as it
does unasked. Voided unless the losses of the first step agree with the published structure's: to 1e-4 in float32, to 1 % in
bfloat16. Rounds take turns; wall time, with the device drained on a GPU.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "recipes"))

from presets import DINOV2  # noqa: E402

from raydino.launch.checks.facts import random_batch  # noqa: E402
from raydino.launch.cluster import ClusterConfig  # noqa: E402
from raydino.launch.workers.shapes import with_fixed_shapes  # noqa: E402
from raydino.launch.workers.worker import build_loop  # noqa: E402
from raydino.methods import dinov2, method  # noqa: E402
from raydino.nn.patches import PatchProjection  # noqa: E402
from raydino.recipe import Recipe  # noqa: E402
from raydino.tracking.run import LOSS_TOTAL  # noqa: E402
from raydino.train import steps  # noqa: E402
from raydino.train.steps import Loop, train_step  # noqa: E402
from raydino.views import Batch  # noqa: E402

Swapped = Callable[[], AbstractContextManager[Callable[[Batch], Batch] | None]]
"""What a step is taken within; it may give what changes batches."""

RESULTS = ROOT / "benchmarks" / "results"
GOAL = 2.5  # with AMX; 1.0 without
DIFFERENT_BATCHES = 4
APART = "freed memory handed back"


def losses_by_crop(
    *, student_scores: Tensor, teacher_probs: Tensor, temperature: float, global_views: int, fused: bool
) -> tuple[Tensor, Tensor]:
    """DINO's loss with a log-softmax for every crop, as DINOv2 structures it; the teacher sees the global crops alone."""
    assert global_views == len(teacher_probs) and not fused
    views, pairs = len(teacher_probs), len(teacher_probs) * (len(student_scores) - 1)
    sums = [student_scores.new_zeros((), dtype=torch.float32) for _ in range(2)]
    for at, scores in enumerate(student_scores):
        logs = log_softmax(scores.float() / temperature, dim=-1)
        for number, target in enumerate(teacher_probs):
            if number != at:
                sums[at >= views] = sums[at >= views] - torch.sum(target * logs, dim=-1).mean()
    return sums[0] / pairs, sums[1] / pairs


def patches_by_log_softmax(
    *, student_scores: Tensor, teacher_probs: Tensor, weights: Tensor, crops: int, temperature: float, fused: bool
) -> Tensor:
    """iBOT's loss through autograd's own softmax."""
    assert not fused
    each = torch.sum(teacher_probs * log_softmax(student_scores.float() / temperature, dim=-1), dim=-1)
    return -(each * weights).sum() / crops


@torch.no_grad()
def teacher_by_tensor(*, teacher: torch.nn.Module, student: torch.nn.Module, momentum: float) -> None:
    """The teacher's move, one parameter after the other."""
    for old, new in zip(teacher.parameters(), student.parameters(), strict=True):
        old.mul_(momentum).add_(new.detach(), alpha=1 - momentum)


@contextmanager
def structure_of_losses() -> Iterator[None]:
    """raydino's methods with the losses above."""
    with patch.object(dinov2, "dino_loss", losses_by_crop), patch.object(dinov2, "ibot_loss", patches_by_log_softmax):
        yield


@contextmanager
def unguarded() -> Iterator[None]:
    """Steps that nobody judges."""
    with patch.object(steps.Guard, "judge", lambda *_, **__: None):
        yield


@contextmanager
def tensor_by_tensor() -> Iterator[None]:
    """The teacher without torch's foreach kernels."""
    with patch.object(method, "update_teacher", teacher_by_tensor):
        yield


@contextmanager
def by_convolution() -> Iterator[None]:
    """The patch embedding as timm has it."""
    with patch.object(PatchProjection, "forward", nn.Conv2d.forward):
        yield


@contextmanager
def as_published() -> Iterator[None]:
    """All of it."""
    with structure_of_losses(), unguarded(), tensor_by_tensor(), by_convolution():
        yield


@contextmanager
def fixed_shapes(recipe: Recipe) -> Iterator[Callable[[Batch], Batch]]:
    """What gives batches their padding (`cluster.fixed_shapes`)."""
    yield partial(with_fixed_shapes, recipe, workers=1, micro_batch=recipe.global_batch)


def plain_optimizer(loop: Loop) -> Loop:
    """The same groups under AdamW as torch makes it where nothing is asked for."""
    for group in loop.optimizer.param_groups:
        group["fused"], group["foreach"] = None, None
    return loop


def seconds(work: Callable[[], object], device: torch.device) -> float:
    begun = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def sides(recipe: Recipe, device: torch.device) -> dict[str, tuple[Loop, Swapped]]:
    """Every way of doing the step by name: its loop, and what is swapped around it. All start from the same weights."""

    def loop(**fields: object) -> Loop:
        return build_loop(recipe, ClusterConfig().override(fields), device)

    other = "matmul" if is_fused(loop()) else "fused"
    ways = {
        "published, fp32": (plain_optimizer(loop(precision="fp32", attention="fused")), as_published),
        "raydino": (loop(), nullcontext),
        "in float32": (loop(precision="fp32"), nullcontext),
        f"with {other} attention": (loop(attention=other), nullcontext),
        "losses through autograd": (loop(), structure_of_losses),
        "teacher tensor by tensor": (loop(), tensor_by_tensor),
        "AdamW tensor by tensor": (plain_optimizer(loop()), nullcontext),
        "patch embedding as a convolution": (loop(), by_convolution),
        "no guard": (loop(), unguarded),
        "with compiled blocks": (loop(compile=True), nullcontext),
        "with fixed shapes": (loop(), partial(fixed_shapes, recipe)),
    }
    if device.type == "cuda" and find_spec("triton") is not None:
        ways["with Triton losses"] = (loop(losses="triton"), nullcontext)
    if loop().precision == "fp32":
        del ways["in float32"]
    return ways


def is_fused(loop: Loop) -> bool:
    """Whether the loop's blocks use torch's fused attention."""
    return any(getattr(part, "fused_attn", False) for part in loop.method.modules())


def work_of(recipe: Recipe, device: torch.device) -> float:
    """Floating-point operations of one step, counted while one runs (attention as matrix products, so that all is seen)."""
    counted = build_loop(recipe, ClusterConfig(precision="fp32", attention="matmul"), device)
    with FlopCounterMode(display=False) as counter:
        train_step(counted, random_batch(recipe, recipe.global_batch))
    return float(counter.get_total_flops())


def peak(device: torch.device, precision: str) -> float:
    """Operations a second of a large matrix product."""
    side = 8192 if device.type == "cuda" else 2048
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    seconds(lambda: a @ b, device)
    return 2 * side**3 / min(seconds(lambda: a @ b, device) for _ in range(5))


def step_apart(preset: str, images: int, orders: Connection) -> None:
    """Take raydino's step on one of the batches for every number that comes; tell its seconds and its loss."""
    recipe, device = DINOV2[preset].override({"global_batch": images}), torch.device("cpu")
    loop = build_loop(recipe, ClusterConfig(), device)
    made = [random_batch(recipe, images, step=step) for step in range(DIFFERENT_BATCHES)]
    while (turn := orders.recv()) is not None:
        begun = time.perf_counter()
        loss = one_step(loop, nullcontext, made[turn])
        orders.send((time.perf_counter() - begun, loss))


@contextmanager
def process_apart(arguments: tuple[str, int]) -> Iterator[Callable[[int], tuple[float, float]]]:
    """`step_apart` in a process with the allocator's thresholds as they come (allocator.py)."""
    own, other = multiprocessing.Pipe()
    with patch.dict(os.environ, GLIBC_TUNABLES=""):  # set, so that no threshold is chosen
        process = multiprocessing.get_context("spawn").Process(target=step_apart, args=(*arguments, other), daemon=True)
        process.start()

    def asked(turn: int) -> tuple[float, float]:
        own.send(turn)
        return own.recv()

    yield asked
    own.send(None)
    process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="laptop", choices=sorted(DINOV2))
    parser.add_argument("--images", type=int, default=0, help="images a step; 0: the preset's")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    recipe = DINOV2[arguments.preset]
    recipe = recipe.override({"global_batch": arguments.images or recipe.global_batch})
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ways = sides(recipe, device)
    made = [random_batch(recipe, recipe.global_batch, step=step).to(device) for step in range(DIFFERENT_BATCHES)]
    first = {name: one_step(*way, made[0]) for name, way in ways.items()}
    for name, (loop, _) in ways.items():
        apart = abs(first[name] / first["published, fp32"] - 1)
        assert apart < (0.01 if loop.precision == "bf16" else 1e-4), (name, first)
    spent: dict[str, list[float]] = {name: [] for name in ways}
    with ExitStack() as stack:
        elsewhere = None
        if device.type == "cpu":
            elsewhere = stack.enter_context(process_apart((arguments.preset, recipe.global_batch)))
            assert abs(elsewhere(0)[1] / first["raydino"] - 1) < 1e-6
            spent[APART] = []
        for turn in range(-1, arguments.rounds):  # the first turn warms up
            for name, way in ways.items():
                took = seconds(partial(one_step, *way, made[turn % DIFFERENT_BATCHES]), device)
                if turn >= 0:
                    spent[name].append(took)
            if elsewhere is not None:
                took, _ = elsewhere(turn % DIFFERENT_BATCHES)
                if turn >= 0:
                    spent[APART].append(took)
    report(arguments, recipe, device, ways["raydino"][0], spent)


def one_step(loop: Loop, swapped: Swapped, batch: Batch) -> float:
    """The loss of one step on `batch`."""
    with swapped() as changed:
        return float(train_step(loop, changed(batch) if changed else batch).metrics[LOSS_TOTAL])


def report(
    arguments: argparse.Namespace, recipe: Recipe, device: torch.device, loop: Loop, spent: dict[str, list[float]]
) -> None:
    """Print and write what was measured."""
    ratios = {
        name: sorted(other / own for other, own in zip(times, spent["raydino"], strict=True))
        for name, times in spent.items()
    }
    rate = {name: recipe.global_batch / median(times) for name, times in spent.items()}
    work = work_of(recipe, device) / recipe.global_batch
    against = ratios["published, fp32"]
    told = {
        "name": "step",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads",
        "ratio": round(median(against), 2),
        "spread": [round(against[0], 2), round(against[-1], 2)],
        "goal": GOAL,
        "limit_share": round(work * rate["raydino"] / peak(device, loop.precision), 3),
        "command": "python benchmarks/step.py" + "".join(f" {word}" for word in sys.argv[1:]),
        "precision": loop.precision,
        "gigaflop_per_image": round(work / 1e9, 2),
        "images_per_second": {name: round(value, 1) for name, value in rate.items()},
        "slower_than_raydino": {
            name: [round(x, 3) for x in (median(values), values[0], values[-1])] for name, values in ratios.items()
        },
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if device.type == "cuda" else None,
    }
    path = RESULTS / f"step-{arguments.preset}.json"
    path.write_text(json.dumps(told, indent=1) + "\n")
    print(f"{'step':34}{'images/s':>9}   slower than raydino by (least, most)")
    for name, ways in told["slower_than_raydino"].items():
        print(f"{name:34}{told['images_per_second'][name]:9.1f}   " + "{} ({}, {})".format(*ways))
    print(
        f"raydino has {told['ratio']} times the published step's speed (goal {GOAL}); "
        f"{told['limit_share']:.0%} of a large product's"
    )


if __name__ == "__main__":
    main()
