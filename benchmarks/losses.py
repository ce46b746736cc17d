"""DINO's loss, forward and backward: raydino beside the structures of DINO, DINOv2 and DINOv3.

    python benchmarks/losses.py                 # two minutes of one core; a GPU where there is one
    python benchmarks/losses.py --images 8

All compute the same number from the same student scores (2 + 8 crops) and teacher probabilities with 65,536 prototypes, and its
gradient; the structures are written down again in eager torch from their definitions. DINO's: log-softmax of every pair of a
teacher and a student view. DINOv2's: log-softmax of every crop, the products with both teacher views, global and local crops
apart. DINOv3's: log-softmax of all crops at once, all products as one einsum. Voided unless losses agree to 1e-3 (float32 sums
of millions) and gradients to 1e-4 of their largest entry. Rounds take turns; CPU time on a CPU, wall time with the device
drained on a GPU, where raydino's is also computed by its Triton kernel (`cluster.losses`).
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from raydino.nn.losses import dino_loss

RESULT = Path(__file__).resolve().parent / "results" / "losses.json"
GOALS = {"DINOv2": 5.0, "DINOv3": 3.0}
VIEWS, LOCAL, TEMPERATURE = 2, 8, 0.1
Loss = Callable[[Tensor, Tensor], Tensor]


def pairwise(student: Tensor, teacher: Tensor) -> Tensor:
    """DINO's: every pair by itself."""
    total, pairs = student.new_zeros(()), 0
    for at, target in enumerate(teacher):
        for view, scores in enumerate(student / TEMPERATURE):
            if view != at:
                total = total + torch.sum(-target * log_softmax(scores, dim=-1), dim=-1).mean()
                pairs += 1
    return total / pairs


def by_crop(student: Tensor, teacher: Tensor) -> Tensor:
    """DINOv2's: global crops with the other view's target, local crops with both."""
    pairs = VIEWS * (VIEWS + LOCAL - 1)
    total = student.new_zeros(())
    for scores, targets in [
        *((student[view], [teacher[1 - view]]) for view in range(VIEWS)),
        *((s, teacher) for s in student[VIEWS:]),
    ]:
        logs = log_softmax(scores / TEMPERATURE, dim=-1)
        for target in targets:
            total = total - torch.sum(target * logs, dim=-1).mean()
    return total / pairs


def einsum(student: Tensor, teacher: Tensor) -> Tensor:
    """DINOv3's: two log-softmaxes, two einsums, the diagonal left out."""
    pairs, images = VIEWS * (VIEWS + LOCAL - 1), student.shape[1]
    logs = log_softmax(student[:VIEWS].float() / TEMPERATURE, dim=-1)
    both = -torch.einsum("s b k, t b k -> s t", logs, teacher)
    on_global = both.sum() - both.diagonal().sum()
    logs = log_softmax(student[VIEWS:].float() / TEMPERATURE, dim=-1)
    on_local = -torch.einsum("s b k, t b k -> ", logs, teacher)
    return (on_global + on_local) / (images * pairs)


def ours(student: Tensor, teacher: Tensor, *, fused: bool = False) -> Tensor:
    """raydino's."""
    shares = dino_loss(student_scores=student, teacher_probs=teacher, temperature=TEMPERATURE, fused=fused)
    return sum(shares, student.new_zeros(()))


SIDES: dict[str, Loss] = {"DINO": pairwise, "DINOv2": by_crop, "DINOv3": einsum, "raydino": ours}
if torch.cuda.is_available() and find_spec("triton") is not None:
    SIDES["raydino, Triton"] = partial(ours, fused=True)


def both(loss: Loss, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """The loss and the gradient of `student`, which is used up."""
    student = student.requires_grad_()
    value = loss(student, teacher)
    value.backward()
    assert student.grad is not None
    return value.detach(), student.grad


def clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--prototypes", type=int, default=65_536)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    student = torch.randn(VIEWS + LOCAL, arguments.images, arguments.prototypes, device=device)
    teacher = torch.softmax(5 * torch.randn(VIEWS, arguments.images, arguments.prototypes, device=device), dim=-1)
    expected, gradient = both(pairwise, student.clone(), teacher)
    for name, loss in SIDES.items():
        value, slope = both(loss, student.clone(), teacher)
        apart = float((slope - gradient).abs().max() / gradient.abs().max())
        assert abs(float(value / expected) - 1) < 1e-3 and apart < 1e-4, (name, value, expected, apart)
    spent: dict[str, list[float]] = {name: [] for name in SIDES}
    for _ in range(arguments.rounds):
        for name, loss in SIDES.items():
            own = student.clone()  # not timed: in a step, the head has just written them
            begun = clock(device)
            both(loss, own, teacher)
            spent[name].append(1000 * (clock(device) - begun))
    ratios = {
        name: sorted(slow / quick for slow, quick in zip(spent[name], spent["raydino"], strict=True))
        for name in SIDES
        if name != "raydino"
    }
    # The floor: the scores read once, a gradient written once, at the speed of a copy.
    begun = clock(device)
    for _ in range(5):
        student.clone()
    floor = 1000 * (clock(device) - begun) / 5
    report = {
        "name": "losses",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "one CPU core",
        "ratio": round(median(ratios["DINOv3"]), 2),
        "spread": [round(ratios["DINOv3"][0], 2), round(ratios["DINOv3"][-1], 2)],
        "goal": GOALS,
        "ratios": {
            name: [round(x, 2) for x in (median(values), values[0], values[-1])] for name, values in ratios.items()
        },
        "missed": [name for name, goal in GOALS.items() if median(ratios[name]) < goal],
        "limit_share": round(floor / median(spent["raydino"]), 3),
        "command": "python benchmarks/losses.py",
        "milliseconds": {name: round(median(values), 1) for name, values in spent.items()},
        "images": arguments.images,
        "prototypes": arguments.prototypes,
    }
    RESULT.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{'structure':16}{'ms':>9}   raydino is faster by (least, most)")
    for name, took in report["milliseconds"].items():
        print(f"{name:16}{took:9.1f}   " + ("{} ({}, {})".format(*report["ratios"][name]) if name in ratios else ""))
    print(
        f"raydino: {report['limit_share']:.0%} of a copy's speed; goals {GOALS}, missed: {report['missed'] or 'none'}"
    )


if __name__ == "__main__":
    main()
