"""One page of a run, or of several beside each other: figures, health, curves, evaluations, pictures, images, cost, recipe.

    python dashboards/report.py runs/dinov2-1a2b                              # runs/dinov2-1a2b/report.html
    python dashboards/report.py runs/dinov2-1a2b runs/dinov2-3c4d             # what differs, and curves over each other
    python dashboards/report.py runs/demo-*                                   # seeds of one recipe become a line with its range
    python dashboards/report.py runs/sweep-dinov2-laptop                      # a sweep's page, or an ablation's
    python dashboards/report.py dinov2-1a2b --tracker https://mlflow.example.org
    python dashboards/report.py clone runs/dinov2-1a2b --set method.koleo_weight=0.2   # the command that repeats it so

A page is one HTML file without scripts that loads nothing from elsewhere, so it opens without a server and can be mailed. Every
run leaves its own, in its folder and in MLflow. docs/report.md has more. Hardware: any; seconds.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "recipes")]  # this checkout, and its presets

from phases import DISTILL
from presets import DINO, DINOV2, SUPERVISED

from raydino.launch.report.command import main

# A high-resolution phase is a DINOv2 recipe with `init`, which dinov2.py repeats; a distillation is of a method of its own.
GROUPS = {
    "dinov2": DINOV2,
    "dino": DINO,
    "supervised": SUPERVISED,
    "distill": {name: kind.recipe(None) for name, kind in DISTILL.items()},
}

if __name__ == "__main__":
    sys.exit(main(__doc__ or "", GROUPS))
