"""Each component of a recipe off in turn, against the full recipe at the same budget and seeds; ends with a table and a picture.

    python recipes/ablate.py                                    # DINOv2 on built-in images, two CPU cores: hours; --dry-run tells
    python recipes/ablate.py --steps 100 --seeds 3 --only no-koleo,no-ibot,curriculum
    python recipes/ablate.py --recipe dino --preset cifar --data PATH --seeds 5
    python recipes/ablate.py --resume auto                      # goes on; more seeds or variants join those that are there
    python recipes/ablate.py --dry-run                          # the variants, what is left out and why, runs and images

What each variant changes, and what the papers expect of it, is in raydino/launch/ablation/variants.py; docs/ablations.md has a
measured table.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))  # this checkout, also inside a Ray job

from presets import DINO, DINOV2

from raydino.launch.ablation.driver import main

if __name__ == "__main__":
    main({"dinov2": DINOV2, "dino": DINO}, description=__doc__ or "")
