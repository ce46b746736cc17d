"""The short high-resolution phase at the end of DINOv2 (Oquab et al. 2023, section 4): a finished run goes on with larger crops.

    python recipes/dinov2.py                                        # a run to go on from, minutes on two CPU cores
    python recipes/highres.py --from runs/RUN                       # 60 steps at 1.5 times the side, minutes
    python recipes/highres.py --from runs/RUN --preset 518 --cluster clusters/one_node.yaml     # 10,000 steps, as published
    python recipes/highres.py --from runs/RUN --method.global-crops.size 448 --steps 5000
    python recipes/highres.py --preset 518 --data PATH --from vitl14/ --init.frozen-steps 0.1   # published weights, fresh heads

RUN is a run's folder, or RUN@STEP. Images, method, heads and all other fields are that run's; student, teacher and centres go on
from its last state, the optimiser begins anew, position embeddings are resampled once, schedules are compressed. Other weights
(timm:NAME, a folder of export.py) are a backbone under fresh heads, trained as a DINOv2 preset; fields of the network must then
be given as for dinov2.py.
Measured on two CPU cores, built-in images, seed 0: k-NN at 36 pixels 0.897 before the 60 steps, 0.911 after, 0.909 after as many
at the old size. Nothing else is measured yet. docs/phases.md has the table; presets are in phases.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))  # this checkout, also inside a Ray job

from phases import HIGHRES

from raydino.launch.driver import main_after

NEEDS = "give the folder of a finished run, such as python recipes/dinov2.py leaves in runs/, or other weights to go on from."

if __name__ == "__main__":
    kinds = {name: phase.recipe for name, phase in HIGHRES.items()}
    main_after("init.weights", kinds, description=__doc__ or "", needs=NEEDS)
