"""DINO on your images (Caron et al. 2021): self-distillation with no labels.

    python recipes/dino.py                                # built-in images, two CPU cores, minutes
    python recipes/dino.py --preset cifar --data PATH     # 32-pixel images
    python recipes/dino.py --preset vits16 --data PATH --cluster clusters/one_node.yaml

The presets, their sources and measured scores are in presets.py; the way to the loss is
main -> train_worker -> training_steps -> DINO.forward.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))  # this checkout, also inside a Ray job

from presets import DINO

from raydino.launch.driver import main

if __name__ == "__main__":
    main(DINO["laptop"], DINO, description=__doc__ or "")
