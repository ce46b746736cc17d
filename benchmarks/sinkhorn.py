"""Sinkhorn-Knopp targets: raydino beside the textbook's iteration and the same in log space.

    python benchmarks/sinkhorn.py         # three minutes of one core; a GPU where there is one

Scores are cosines, as heads make them. The textbook's exponentiates once and divides the whole matrix for every sum, as DINO's
and DINOv2's code do; it overflows in float32 where a score exceeds 88 times the temperature. Log space subtracts logarithms of
sums instead, which is what raydino did before. Voided unless all agree to 1e-4. Rounds take turns; CPU time on a CPU, wall time
with the device drained on a GPU. One process, so collectives cost nothing: they are 4 for raydino, 6 in log space.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.nn.functional import normalize

from losses import clock
from raydino.nn.centering import sinkhorn_knopp

RESULT = Path(__file__).resolve().parent / "results" / "sinkhorn.json"
TEMPERATURE, ITERATIONS, WIDTH = 0.05, 3, 64
SAMPLES, PROTOTYPES = (64, 600), (256, 4096, 65_536)
ENOUGH = 3_000_000  # scores that a side normalises before the clock is read
GOAL = 1.0  # not slower than log space at any size


def textbook(scores: Tensor) -> Tensor:
    """exp, then divisions in place."""
    q = torch.exp(scores.float() / TEMPERATURE)
    q /= q.sum()
    for _ in range(ITERATIONS):
        q /= q.sum(dim=0, keepdim=True)
        q /= q.shape[1]
        q /= q.sum(dim=1, keepdim=True)
        q /= q.shape[0]
    return q * q.shape[0]


def log_space(scores: Tensor) -> Tensor:
    """Logarithms to the end."""
    logs = scores.float() / TEMPERATURE
    for _ in range(ITERATIONS):
        peak = logs.amax(dim=0, keepdim=True)
        logs = logs - (peak + (logs - peak).exp().sum(dim=0, keepdim=True).log())
        logs = logs - torch.logsumexp(logs, dim=1, keepdim=True)
    return logs.exp()


def ours(scores: Tensor) -> Tensor:
    """raydino's."""
    return sinkhorn_knopp(scores, temperature=TEMPERATURE, iterations=ITERATIONS)


SIDES: dict[str, Callable[[Tensor], Tensor]] = {"textbook": textbook, "log space": log_space, "raydino": ours}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = [
        compare(samples, prototypes, dtype, device, rounds=arguments.rounds)
        for dtype in (torch.float32, torch.bfloat16)
        for samples in SAMPLES
        for prototypes in PROTOTYPES
    ]
    worst = min(rows, key=lambda row: row["log space"][0])
    report = {
        "name": "sinkhorn",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "one CPU core",
        "ratio": worst["log space"][0],
        "spread": worst["log space"][1:],
        "goal": GOAL,
        "command": "python benchmarks/sinkhorn.py",
        "sizes": rows,
    }
    RESULT.write_text(json.dumps(report, indent=1) + "\n")


def compare(samples: int, prototypes: int, dtype: torch.dtype, device: torch.device, *, rounds: int) -> dict:
    """Milliseconds of each side, and by side how many times raydino's its time is: median, least, most."""
    scores = normalize(torch.randn(samples, WIDTH), dim=1) @ normalize(torch.randn(WIDTH, prototypes), dim=0)
    scores, times = scores.to(device, dtype), max(1, min(200, ENOUGH // scores.numel()))
    expected = log_space(scores)
    for side in SIDES.values():
        torch.testing.assert_close(side(scores), expected, rtol=1e-4, atol=1e-12)
    spent: dict[str, list[float]] = {name: [] for name in SIDES}
    for _ in range(rounds):
        for name, side in SIDES.items():
            begun = clock(device)
            for _ in range(times):
                side(scores)
            spent[name].append(1000 * (clock(device) - begun) / times)
    row: dict = {"samples": samples, "prototypes": prototypes, "scores": str(dtype).removeprefix("torch.")}
    row["milliseconds"] = {name: round(median(values), 3) for name, values in spent.items()}
    for name in ("textbook", "log space"):
        ratios = sorted(slow / own for slow, own in zip(spent[name], spent["raydino"], strict=True))
        row[name] = [round(x, 2) for x in (median(ratios), ratios[0], ratios[-1])]
    print(
        f"{samples:4} x {prototypes:6} {row['scores']:8}",
        row["milliseconds"],
        "log space:",
        row["log space"],
        flush=True,
    )
    return row


if __name__ == "__main__":
    main()
