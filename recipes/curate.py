"""From a pile of images to a curated folder: validated, without copies and leaks, with a report; and questions to such a folder.

    python recipes/curate.py --source photos/ --out curated/ --against bench/     # ingest, screen, report
    python recipes/curate.py --out curated/ --against bench/ --radius 32          # other thresholds: nothing is read again
    python recipes/curate.py --source crawl-0000.tar --source s3://bucket/images --out curated/ --max-bad 0.1
    python recipes/curate.py --source new/ --out curated/ --add                   # one more batch
    python recipes/curate.py --out curated/ --embed torchscript:sscd.pt --rule sscd   # copies that hashes miss
    python recipes/curate.py --out curated/ --embed run:runs/dinov2-1a2b --balance 0.5
    python recipes/curate.py plan --source photos/                                # images, bytes, core-hours before you start
    python recipes/curate.py why 3fa9 --out curated/                              # also by path
    python recipes/curate.py diff curated/ other/
    python recipes/curate.py verify --out curated/

Sources are folders (sub-folders are classes where they look like classes), tar or WebDataset, zip and Parquet folders, and
`builtin` for generated images with faults planted. Every stage that is done is kept below --out and not done again.
Hardware: any; `plan` says how long it will take. docs/curation.md says how images are compared, and what was measured.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))  # this checkout, also inside a Ray job

from raydino.launch.curate import main

if __name__ == "__main__":
    sys.exit(main(__doc__ or ""))
