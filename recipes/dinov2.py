"""DINOv2 on your images (Oquab et al. 2023): masked self-distillation with iBOT and KoLeo.

    python recipes/dinov2.py                                        # built-in images, two CPU cores, minutes
    python recipes/dinov2.py --preset cifar --data PATH             # 32-pixel images
    python recipes/dinov2.py --preset vits16 --data PATH            # one GPU
    python recipes/dinov2.py --preset vitl16-short --data PATH --cluster clusters/one_node.yaml
    python recipes/dinov2.py --preset vits16 --data PATH --dry-run  # what it would do, and how long it would take
    ray job submit --working-dir . -- python recipes/dinov2.py

The presets, their sources and measured scores are in presets.py; the way to the loss is
main -> train_worker -> training_steps -> DINOv2.forward.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))  # this checkout, also inside a Ray job

from presets import DINOV2

from raydino.launch.driver import main

if __name__ == "__main__":
    main(DINOV2["laptop"], DINOV2, description=__doc__ or "")
