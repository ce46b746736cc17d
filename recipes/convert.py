"""A training file of DINOv2's official code as a recipe of raydino.

    python recipes/convert.py dinov2/configs/train/vitl14.yaml --gpus 96 --out vitl14-raydino.yaml
    python recipes/dinov2.py --config vitl14-raydino.yaml --data PATH --dry-run

A key that the official code does not know is refused by name (that code would take it and train on). What belongs to machines or
images and not to a recipe is printed, and stands as comments in the file. Hardware: any; a second.
docs/coming_from.md has the keys one by one, and those of LightlyTrain.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))  # this checkout

from raydino.launch.convert import main

if __name__ == "__main__":
    sys.exit(main(__doc__ or ""))
