"""Whether a network serves all groups of images alike: accuracy by group, worst group, gaps with intervals, associations.

    python recipes/fairness.py --model runs/dinov2-1a2b --data PATH --by domain
    python recipes/fairness.py --model runs/dinov2-1a2b --model random:runs/dinov2-1a2b --model pixels --data PATH --by domain
    python recipes/fairness.py --model timm:vit_small_patch14_dinov2.lvd142m --data PATH --by income --head logistic
    python recipes/fairness.py --model runs/dinov2-1a2b --data PATH --by skin --association human=person,face --by brightness

--data takes labelled images, a curated folder or Parquet in Hugging Face layout; --by names a column of it, or what is measured
of the images, in thirds: size, brightness, sharpness, bytes-per-pixel. A head learns on the training split, or on half of the
images where there is but one split, and is judged on the others. Results: fairness.md with a datasheet of the groups,
fairness.json, fairness.png (--out), and figures in the MLflow run of a model that has one. Hardware: any; seconds for small
networks and a few thousand images. docs/fairness.md says how to read it, and what must not be concluded.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))  # this checkout

from raydino.launch.fairness.command import main

if __name__ == "__main__":
    sys.exit(main(__doc__ or ""))
