"""Whether features learned from fast crops are as good as those from exact ones: k-NN of the same runs with either, over seeds.

    python benchmarks/fast_crops.py        # some 15 minutes of one core

DINOv2 without iBOT trains a small ResNet on the photographs of caltech101 (two crops of 64 pixels, two of 32, jitter, blur and
solarisation as published), from the same weights with the same draws; k-NN classifies the test photographs. Parity means that
the difference of the pairs, over seeds, is within twice its standard error or above. Real images are looked for in RAYDINO_DATA,
else in ../shared/data.
"""

import argparse
import json
import os
import statistics
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the same sums, in the same order, on every machine
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))

from presets import DINOV2

from curation_matters import train
from raydino.evals.config import KNNConfig
from raydino.evals.evaluation import labelled_sets
from raydino.evals.knn import KNN, pixels_knn
from raydino.recipe import Recipe
from raydino.schedule import cosine
from raydino.shards.reader import open_collection

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "fast_crops.json"
SIDE = 64


def recipe_of(steps: int) -> Recipe:
    """A run that learns from photographs in two minutes of one core."""
    return DINOV2["cifar-cpu"].override(
        {
            "steps": steps,
            "global_batch": 64,
            "backbone": {"name": "test_resnet", "patch_size": 32, "width": None, "depth": None, "heads": None},
            "method.ibot_weight": 0.0,
            "method.global_crops": {"size": SIDE, "blur": (1.0, 0.1)},
            "method.local_crops": {"size": SIDE // 2, "count": 2, "blur": (0.5,)},
            "method.teacher_momentum": cosine(0.9, 0.99),
            "optim.lr": 4e-3,
        }
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--steps", type=int, default=200)
    given = options.parse_args()
    data = Path(os.environ.get("RAYDINO_DATA") or ROOT.parent / "shared" / "data") / "caltech101"
    opened = open_collection(str(data))
    judged = labelled_sets(
        opened, train_split="train", eval_split="test", holdout=0.0, seed=0, bank=10_000, queries=10_000, size=SIDE
    )
    assert judged is not None
    photographs, recipe = opened.part("train"), recipe_of(given.steps)
    scores: dict[bool, list[float]] = {False: [], True: []}
    untrained: list[float] = []
    for seed in range(given.seeds):
        for fast in scores:
            loop = train(
                recipe.override({"seed": seed, "data.fast_crops": fast}),
                photographs,
                None,
                lambda step, loop, fast=fast: (
                    untrained.append(KNN(KNNConfig()).run(loop.method.encoder(), judged)["top1"])
                    if step == 0 and not fast
                    else None
                ),
            )
            scores[fast].append(KNN(KNNConfig()).run(loop.method.encoder(), judged)["top1"])
            print(f"seed {seed}, {'fast' if fast else 'exact'}: k-NN {scores[fast][-1]:.4f}", flush=True)
    report(scores, untrained, pixels_knn(judged)["top1"], given)


def report(scores: dict[bool, list[float]], untrained: list[float], pixels: float, given: argparse.Namespace) -> None:
    """Print and save the scores and the differences of the pairs."""
    apart = [fast - exact for exact, fast in zip(scores[False], scores[True], strict=True)]
    error = statistics.stdev(apart) / len(apart) ** 0.5 if len(apart) > 1 else float("nan")
    result = {
        "name": "fast_crops",
        "device": "CPU, one thread",
        "ratio": round(statistics.mean(scores[True]) / statistics.mean(scores[False]), 4),
        "spread": [round(f(b / a for a, b in zip(*scores.values(), strict=True)), 4) for f in (min, max)],
        "ratio_is": "k-NN top-1 with fast crops over exact ones; least and most of the seeds",
        "goal": "fast minus exact above -2 standard errors, over at least 3 seeds",
        "met": len(apart) >= 3 and statistics.mean(apart) >= -2 * error,
        "command": f"python benchmarks/fast_crops.py --seeds {given.seeds} --steps {given.steps}",
        "exact": [round(x, 4) for x in scores[False]],
        "fast": [round(x, 4) for x in scores[True]],
        "difference": [round(x, 4) for x in (statistics.mean(apart), error)],
        "difference_is": "mean of the pairs and its standard error",
        "untrained": [round(x, 4) for x in untrained],
        "raw_pixels": round(pixels, 4),
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
