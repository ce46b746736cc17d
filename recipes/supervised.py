"""The supervised twin: a DINOv2 preset's backbone, views, data and budget, trained with labels. The baseline for studies.

    python recipes/supervised.py                                                    # built-in images, two CPU cores, minutes
    python recipes/supervised.py --preset cifar --data PATH --method.classes 10     # labelled images

The presets are in presets.py; the way to the loss is main -> train_worker -> training_steps -> Supervised.forward.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))  # this checkout, also inside a Ray job

from presets import SUPERVISED

from raydino.launch.driver import main

if __name__ == "__main__":
    main(SUPERVISED["laptop"], SUPERVISED, description=__doc__ or "")
