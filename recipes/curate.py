"""Make a curated folder of images: validate, remove exact duplicates, write shards and a record of every decision.

    python recipes/curate.py --source photos/ --out curated/
    python recipes/curate.py --source photos/ --out curated/ --screen --against cifar10/   # near-duplicates and leaks, too
    python recipes/curate.py --out curated/ --screen --radius 32 --against cifar10/        # another threshold
    python recipes/curate.py --source crawl-0000.tar --source s3://bucket/images --out curated/ --max-bad 0.1
    python recipes/curate.py --source builtin --out curated/          # generated images, with faults planted

Sources are folders (sub-folders are classes where they look like classes), tar or WebDataset, zip and Parquet folders.
Screening writes a keep-mask beside the shards, which training follows.
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
    parser.add_argument("--source", action="append", default=[], help="folder, .tar, .zip or Parquet; repeatable")
    parser.add_argument(
        "--out", required=True, help="folder for the curated images, local or a URI; new if there is a source"
    )
    parser.add_argument("--max-bad", type=float, default=0.05, help="largest share of undecodable images")
    parser.add_argument(
        "--eval-fraction", type=float, default=0.0, help="share of images without a split held back as test"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of that choice, and of built-in images")
    parser.add_argument(
        "--screen", action="store_true", help="leave out near-duplicates, and what leaked from evaluation splits"
    )
    parser.add_argument(
        "--against", action="append", default=[], help="further evaluation images, a folder; repeatable"
    )
    parser.add_argument("--radius", type=int, default=48, help="bits of 256 by which copies may differ")
    parser.add_argument("--leak-radius", type=int, default=64, help="the same against evaluation images")
    options = parser.parse_args()
    if not options.source and not options.screen:
        parser.error("nothing to do: give --source to ingest images, or --screen for a folder curated before")
    if options.against and not options.screen:
        parser.error("--against is for screening; add --screen")
    try:
        if options.screen:
            check_screening(options)  # before an hour of ingest
        if options.source:
            curate(options)
        if options.screen:
            screen_folder(options)
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


def check_screening(options: argparse.Namespace) -> None:
    from raydino.curation.screen import check_radii
    from raydino.shards.reader import open_collection

    check_radii(options.radius, options.leak_radius)
    for path in options.against:
        open_collection(path)


def screen_folder(options: argparse.Namespace) -> None:
    from raydino.curation.screen import screen

    def progress(stage: str, done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{stage}: {done:,} of {total:,}", end="\n" if done == total else "", file=sys.stderr)

    found = screen(
        options.out,
        against=options.against,
        radius=options.radius,
        leak_radius=options.leak_radius,
        progress=progress,
    )
    print(f"{'training images':<28}{len(found.mask.keep):>12,}")
    for reason, count in found.mask.counts().items():
        print(f"  {'screen: ' + reason:<26}{-count:>12,}")
    print(f"{'images trained on':<28}{int(found.mask.keep.sum()):>12,}")
    for name, pairs in found.leaks.items():
        print(f"{'pairs with ' + name:<28}{len(pairs):>12,}")
        print(f"{'pairs inside ' + name:<28}{found.inside[name]:>12,}")
    print(f"\nkeep-mask   {options.out}/keep/train.parquet (reason, id of the copy, distance)")


if __name__ == "__main__":
    sys.exit(main())
