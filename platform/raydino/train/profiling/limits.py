"""What the device can do at most, measured: multiply large matrices, and copy large tensors."""

import time
from collections.abc import Callable
from typing import Literal

import torch

SIDE = {"cpu": 2048, "cuda": 8192}
"""Side of the matrices: large enough for the device's best rate, a tenth of a second at most."""
COPIED = 2**28  # bytes, far beyond any cache
SECONDS = 0.5  # for each probe; the best run counts, because nothing but disturbance makes one slower


def matmul_rate(device: torch.device, precision: Literal["bf16", "fp32"]) -> float:
    """Floating-point operations per second of a large matrix product, in the arithmetic that the run has."""
    side, kind = SIDE[device.type], torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.ones(side, side, device=device, dtype=kind) for _ in range(2))
    out = torch.empty(side, side, device=device, dtype=kind)
    return 2 * side**3 / _best(lambda: torch.mm(a, b, out=out), device)


def copy_rate(device: torch.device) -> float:
    """Bytes per second, read and written ones added, of copying one tensor into another."""
    source, target = (torch.ones(COPIED, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * COPIED / _best(lambda: target.copy_(source), device)


def _best(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of many runs."""
    work()
    best, until = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < until:
        _drain(device)
        begun = time.perf_counter()
        work()
        _drain(device)
        best = min(best, time.perf_counter() - begun)
    return best


def _drain(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
