"""Pictures of what a network sees: patch features, attention, agreement across crops, nearest neighbours, a map of a set.

    python recipes/show.py cat.jpg dog.jpg --model runs/dinov2-1a2b                          # PNGs and one page, show.html
    python recipes/show.py cat.jpg --model runs/dinov2-1a2b --model random:runs/dinov2-1a2b --size 448 --foreground
    python recipes/show.py cat.jpg --model timm:vit_small_patch14_dinov2.lvd142m --data PATH   # and its neighbours in a set
    python recipes/show.py --model runs/dinov2-1a2b --data PATH                                # some of a set, map, prototypes

Colours mean the same in all images of one call. Models are drawn side by side. Pictures go to show/ in the run's folder (--out),
and into the MLflow run of a model that has one. Hardware: any; seconds for small images and networks. docs/pictures.md says how
to read each picture.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))  # this checkout

from raydino.launch.show.command import main

if __name__ == "__main__":
    sys.exit(main(__doc__ or ""))
