"""Is self-distillation more robust than supervision? Groups of runs on the same images and budget, under corruptions and shift.

    python recipes/robustness.py --group supervised=runs/A,runs/B --group dinov2=runs/C,runs/D --data PATH --out FOLDER
    python recipes/robustness.py --group supervised=runs/A --group dino=runs/B --data PATH --shift PATH --ladder --out FOLDER
    python recipes/robustness.py --group supervised=runs/A --group dino=runs/B --data PACS --domains domain --out FOLDER

A group is one way of training over seeds; the first is the baseline, and groups that differ in images, steps, seeds or network
are refused. The same heads (k-NN, logistic regression) learn from clean features of every network and judge 15 kinds of
corruption at 5 levels, shifted images (--shift) and how far probabilities can be trusted; with --domains they also learn from
each domain of a column alone and are judged on every one. Tables with 95 % intervals over seeds, a file for programs and a
picture go to --out, and each run's figures to its record in MLflow (--untracked leaves that alone). Hardware: any; minutes on
two cores for small networks and 500 images.
docs/robustness.md says what is measured and what was found.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))  # this checkout

from raydino.launch.robustness.command import main

if __name__ == "__main__":
    sys.exit(main(__doc__ or ""))
