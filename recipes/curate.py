"""Make a curated folder of images: validate, remove exact duplicates, write shards and a record of every decision.

    python recipes/curate.py --source photos/ --out curated/
    python recipes/curate.py --source crawl-0000.tar --source s3://bucket/images --out curated/ --max-bad 0.1
    python recipes/curate.py --source builtin --out curated/          # generated images, with faults planted

Sources are folders (sub-folders are classes where they look like classes), tar or WebDataset, zip and Parquet folders.
Hardware: any; limited by decoding, about 300 to 600 photos of 500 × 375 a second on each core.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))  # this checkout, also inside a Ray job

from raydino.config import ConfigError


def main() -> int:
    parser = argparse.ArgumentParser(
        description=str(__doc__).partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--source", action="append", required=True, help="folder, .tar, .zip or Parquet; repeatable")
    parser.add_argument("--out", required=True, help="new folder for the curated images, local or a URI")
    parser.add_argument("--max-bad", type=float, default=0.05, help="largest share of undecodable images")
    parser.add_argument(
        "--eval-fraction", type=float, default=0.0, help="share of images without a split held back as test"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of that choice, and of built-in images")
    options = parser.parse_args()
    try:
        curate(options)
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def curate(options: argparse.Namespace) -> None:
    # After the options are read, so that --help need not wait for pyarrow.
    from raydino.curation.ingest import ingest
    from raydino.curation.ledger import DECISIONS, QUARANTINE, SUMMARY
    from raydino.curation.synthetic import write_builtin
    from raydino.shards.schema import Folder

    if options.source == ["builtin"]:
        manifest = write_builtin(options.out, seed=options.seed)
    else:
        manifest = ingest(
            options.source,
            options.out,
            max_bad=options.max_bad,
            eval_fraction=options.eval_fraction,
            seed=options.seed,
        )
    summary = json.loads(Folder(options.out).read_bytes(SUMMARY))
    print(f"{'images in':<28}{summary['rows_in']:>12,}")
    for stage in manifest.stages:
        for reason, count in stage.by_reason.items():
            print(f"  {stage.name + ': ' + reason:<26}{-count:>12,}")
    print(f"{'images kept':<28}{summary['rows_out']:>12,}")
    for split, count in summary["splits"].items():
        print(f"  {split:<26}{count:>12,}")
    print(f"{'classes':<28}{summary['classes']:>12,}")
    for kind, count in summary["skipped"].items():
        print(f"{'passed over: ' + kind:<28}{count:>12,}")
    print(
        f"\nshards      {options.out}/data\ndecisions   {options.out}/{DECISIONS}\nbad images  "
        f"{options.out}/{QUARANTINE}"
    )
    print(f"digest      {manifest.digest}\n\nTrain on them: python recipes/dinov2.py --data {options.out}")


if __name__ == "__main__":
    sys.exit(main())
