"""Distillation of a smaller network from a frozen teacher (Oquab et al. 2023, DINOv2, section 5).

    python recipes/dinov2.py                                        # a teacher, minutes on two CPU cores
    python recipes/distill.py --teacher runs/RUN                    # a student of half its width, minutes
    python recipes/distill.py --teacher runs/RUN --preset vits14 --cluster clusters/one_node.yaml
    python recipes/distill.py --teacher runs/RUN --backbone.depth 2 --method.head.hidden 64

RUN is the folder of a DINOv2 run, or RUN@STEP. Images, crops and the numbers of prototypes are that run's; the student, its heads
and all other fields are given here. Nothing is masked, and the moving average of the student is what is judged and exported.
Measured on two CPU cores, built-in images, three seeds: k-NN 0.757 on average, 0.742 for the same student trained from scratch at
equal images, 0.872 for the teacher. Nothing else is measured yet. docs/phases.md has the table;
presets are in phases.py; the way to the loss is main -> train_worker -> training_steps ->
DINOv2.forward, with methods/distillation.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))  # this checkout, also inside a Ray job

from phases import DISTILL

from raydino.launch.driver import main_after

NEEDS = "give the folder of a finished DINOv2 run, such as python recipes/dinov2.py leaves in runs/."

if __name__ == "__main__":
    kinds = {name: kind.recipe for name, kind in DISTILL.items()}
    main_after("method.teacher.weights", kinds, description=__doc__ or "", needs=NEEDS)
