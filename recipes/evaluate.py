"""How good frozen features are: the evaluations of the DINO and DINOv2 papers, on any network and any labelled images.

    python recipes/evaluate.py --model runs/dinov2-1a2b --data PATH                        # k-NN and the grid of linear heads
    python recipes/evaluate.py --model runs/dinov2-1a2b --model random:runs/dinov2-1a2b --model pixels --data PATH
    python recipes/evaluate.py --model timm:vit_small_patch14_dinov2.lvd142m --evals knn,linear,logistic,retrieval --data PATH
    python recipes/evaluate.py --model runs/dinov2-1a2b --evals segmentation --data camvid/ --set segmentation.ignore=[11]
    python recipes/evaluate.py --model runs/dinov2-1a2b --data PATH --workers 8          # on eight GPUs of Ray, the same figures

--data takes a curated folder or Parquet in Hugging Face layout, several if need be: an evaluation is carried out on every folder
that has what it needs (labels, or a column `mask`, `depth`, `group`, `pose`). Each names its protocol in the table, which is
written as Markdown and JSON (--out) and into the MLflow run of a model that has one.
Hardware: any; a minute on two cores for a small network and a few thousand images. docs/evaluations.md says what each
evaluation does, how it differs from the papers, and what was measured.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))  # this checkout, also inside a Ray job

from raydino.launch.evaluate import main

if __name__ == "__main__":
    sys.exit(main(__doc__ or ""))
