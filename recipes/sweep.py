"""Search for better settings of a recipe: Ray Tune over teacher momentum, temperatures, crop counts, or any other field.

    python recipes/sweep.py                                          # 6 trials on built-in images, two CPU cores, minutes
    python recipes/sweep.py --preset cifar --data PATH --trials 30 --repeats 3 --cluster.gpus-per-worker 0.25
    python recipes/sweep.py --space space.yaml --searcher grid --dry-run
    python recipes/sweep.py --scheduler pbt --trials 8 --segments 5
    python recipes/sweep.py --objective health/rankme --data PATH    # images without labels
    python recipes/sweep.py --resume auto                            # go on with it after the driver was killed

A space is YAML: dotted fields of the recipe, each with {choice: [...]}, {uniform: [low, high]}, {loguniform: ...} or {int: ...}.
What is left in runs/sweep-NAME: best.yaml (python recipes/dinov2.py --config best.yaml), report.html, ranking.json, trials/.
docs/sweeps.md says how trials are compared, and what was measured.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))  # this checkout, also inside a Ray job

from presets import DINO, DINOV2

from raydino.launch.sweep.driver import main

if __name__ == "__main__":
    main({"dinov2": DINOV2, "dino": DINO}, description=__doc__ or "")
