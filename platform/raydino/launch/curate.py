"""The command line of curation: ingest, screen, report; and questions to a curated folder.

Heavy imports happen after the command line is parsed, so that `--help` and typing errors answer at once.
"""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from raydino.config import ConfigError
from raydino.launch.terminal.arguments import parser_of

if TYPE_CHECKING:
    from raydino.curation.screen import Embedding, Screening
    from raydino.curation.spread import Spread

VERBS = ("run", "plan", "why", "diff", "verify")
LIMITS = {  # flag: what it is; each is a field of raydino.curation.judge.Limits, which has the defaults
    "radius": (int, "bits of 256 by which copies may differ (48)"),
    "leak-radius": (int, "the same against evaluation images (64)"),
    "cosine": (float, "least cosine of descriptors of images that count as the same"),
    "leak-cosine": (float, "the same against evaluation images"),
    "copies": (int, "files with the same pixels from which on none of them stays: a placeholder (100)"),
    "min-side": (int, "least shorter side, pixels"),
    "max-aspect": (float, "largest longer side over the shorter"),
    "min-sharpness": (float, "least variance of the Laplacian; blurred photographs are below about 50"),
    "min-entropy": (float, "least entropy of grey, bits; below about 3 there is little but one tone"),
    "min-mean": (float, "least mean grey, 0 to 255"),
    "max-mean": (float, "largest mean grey"),
}
RULES = {"sscd": "cosine 0.75 within, 0.45 against", "dinov2": "64 neighbours, cosine 0.6 within, 0.45 against"}


def main(description: str) -> int:
    """Carry out the command line; returns the exit status."""
    parser = _parser(description)
    options = parser.parse_args()
    try:
        return _carry_out(parser, options)
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser(description: str) -> argparse.ArgumentParser:
    parser = parser_of(description)
    parser.add_argument("verb", nargs="?", default="run", help=f"one of {', '.join(VERBS)}; run if left out")
    parser.add_argument("asked", nargs="*", help="why: an id, its first digits or a path; diff: two curated folders")
    add = parser.add_argument
    add("--source", action="append", default=[], help="folder, .tar, .zip or Parquet; repeatable")
    add("--out", help="folder of the curated images, local or a URI; new if there is a source, unless --add")
    add("--add", action="store_true", help="add the sources to the curated folder --out, which is not computed again")
    add("--max-bad", type=float, default=0.05, help="largest share of undecodable images (0.05)")
    add("--eval-fraction", type=float, help="share of images without a split held back as test (0)")
    add("--seed", type=int, help="seed of that choice, of built-in images and of balancing (0)")
    add("--no-screen", action="store_true", help="ingest only: leave near-duplicates and leaks in")
    add("--against", action="append", default=[], help="further evaluation images, a folder; repeatable")
    add(
        "--embed",
        help="descriptors: torchscript:FILE[@SIZE] (its code is run), timm:NAME[@FILE.safetensors], run:FOLDER",
    )
    add(
        "--rule",
        choices=RULES,
        help="published thresholds for descriptors: " + "; ".join(f"{k}: {v}" for k, v in RULES.items()),
    )
    add("--name", default="", help="of the keep-mask, beside the folder's own; train with --data.keep NAME")
    add("--towards", help="keep only what is near to an image of this folder (needs --embed)")
    add("--retrieved", type=int, default=4, help="images for each of those (4; published 32 for a small set)")
    add(
        "--cells",
        type=int,
        help="keep instead the cells of this many with more than 3 of those; published for small sets, 7,440 images a cell",
    )
    add("--balance", type=float, help="images of an epoch as a share of those that stay, balanced (needs --embed)")
    add(
        "--on",
        choices=("here", "ray"),
        help="threads here, or the Ray cluster of RAY_ADDRESS (the default where it is set)",
    )
    add("--tracker", default="sqlite:///runs/mlflow.db", help="MLflow address for the report; none for none")
    for name, (kind, text) in LIMITS.items():
        add(f"--{name}", type=kind, help=text)
    return parser


def _carry_out(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    if options.verb not in VERBS:
        parser.error(f"{options.verb!r} is none of {', '.join(VERBS)}")
    if options.verb == "diff":
        return _diff(parser, options.asked)
    if options.verb == "plan":
        return _plan(parser, options)
    if options.out is None:
        parser.error("--out is missing: the folder of the curated images")
    if options.verb == "why":
        return _why(parser, options)
    if options.verb == "verify":
        return _verify(options.out)
    if not options.source and options.no_screen:
        parser.error("nothing to do: give --source to ingest images, or leave out --no-screen")
    if options.no_screen and options.against:
        parser.error("--against is for screening; leave out --no-screen")
    if (options.towards or options.balance is not None) and not options.embed:
        parser.error("--towards and --balance compare descriptors; add --embed")
    if options.cells is not None and not options.towards:
        parser.error("--cells says how --towards retrieves; add --towards")
    return _run(options)


def _run(options: argparse.Namespace) -> int:
    from raydino.curation.judge import Limits
    from raydino.curation.screen import screen
    from raydino.launch.curation_report import BUILTIN_LIMITS, write_report
    from raydino.launch.terminal.bars import Bars

    usual = BUILTIN_LIMITS if options.source == ["builtin"] else {}
    limits = Limits(**(usual | _given(options)))
    embedding = None if options.no_screen else _embedding(options)
    _check_against(options)
    with _spread(options) as spread:
        if options.source:
            _ingest(options, spread)
        if options.no_screen:
            return 0
        with Bars() as bars:
            found = screen(
                options.out,
                against=options.against,
                limits=limits,
                embedding=embedding,
                name=options.name,
                spread=spread,
                progress=bars,
            )
    _told(found)
    write_report(found, out=options.out, tracker=options.tracker)
    return 0


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """The thresholds that were given, or follow from a published rule."""
    from raydino.curation.cosine import DINOV2, SSCD

    names = [name.replace("-", "_") for name in LIMITS]
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    rule = {"sscd": SSCD, "dinov2": DINOV2, None: None}[options.rule]
    if options.embed is None:
        if rule or {"cosine", "leak_cosine"} & set(given):
            raise ConfigError("cosine: there are no descriptors to compare; add --embed.")
        return given
    if rule is None and not {"cosine", "leak_cosine"} & set(given) and not options.towards and options.balance is None:
        raise ConfigError("embed: nothing is done with descriptors; add --rule, --cosine, --towards or --balance.")
    return ({"cosine": rule.within, "leak_cosine": rule.against} if rule else {}) | given


def _embedding(options: argparse.Namespace) -> "Embedding | None":
    if options.embed is None:
        return None
    import torch

    from raydino.curation.cosine import DINOV2
    from raydino.curation.embed import open_descriptor
    from raydino.curation.screen import Embedding
    from raydino.launch.teacher import open_teacher

    device = "cuda" if torch.cuda.is_available() else "cpu"
    descriptor = open_descriptor(options.embed, device=device, open_run=open_teacher)
    if descriptor.kind == "semantic":
        print(
            f"note: {descriptor.name} describes the topic of an image; what is near need not be a copy", file=sys.stderr
        )
    return Embedding(
        descriptor,
        neighbours=DINOV2.neighbours if options.rule == "dinov2" else None,
        towards=options.towards,
        retrieved=options.retrieved,
        cells=options.cells,
        balance=options.balance,
        seed=options.seed or 0,
    )


def _check_against(options: argparse.Namespace) -> None:
    """Refuse what screening would refuse after an hour of ingest."""
    from raydino.shards.reader import open_collection

    for path in [*options.against, *([options.towards] if options.towards else [])]:
        open_collection(path)


@contextlib.contextmanager
def _spread(options: argparse.Namespace) -> "Iterator[Spread | None]":
    """Where the work is done; None for this process."""
    if (options.on or ("ray" if os.environ.get("RAY_ADDRESS") else "here")) == "here":
        yield None
        return
    from raydino.curation.spread import on_ray
    from raydino.launch.cluster import ClusterConfig
    from raydino.launch.engine.connect import start_ray

    address = os.environ.get("RAY_ADDRESS")
    with start_ray(ClusterConfig().override({"address": address} if address else {})):
        yield on_ray()


def _ingest(options: argparse.Namespace, spread: "Spread | None") -> None:
    from raydino.curation.ingest import ingest
    from raydino.curation.ledger import SUMMARY
    from raydino.curation.synthetic import write_builtin
    from raydino.launch.terminal.bars import Bars
    from raydino.shards.schema import Folder

    if options.source == ["builtin"]:
        manifest = write_builtin(options.out, seed=options.seed or 0, copies=True)
    else:
        with Bars() as bars:
            manifest = ingest(
                options.source,
                options.out,
                max_bad=options.max_bad,
                eval_fraction=options.eval_fraction,
                seed=options.seed,
                spread=spread,
                done=lambda done, total: bars("reading", done, total),
                add=options.add,
            )
    summary = json.loads(Folder(options.out).read_bytes(SUMMARY))
    _line("images in", summary["rows_in"])
    for stage in manifest.stages:
        for reason, count in stage.by_reason.items():
            _line(f"  {stage.name}: {reason}", -count)
    _line("images kept", summary["rows_out"])
    for split, count in summary["splits"].items():
        _line(f"  {split}", count)
    _line("classes", summary["classes"])
    for note, count in summary["notes"].items():
        _line(note, count)
    for kind, count in summary["skipped"].items():
        _line(f"passed over: {kind}", count)


def _told(found: "Screening") -> None:
    mask = found.mask
    _line("training images", len(mask.keep))
    for reason, count in mask.counts().items():
        _line(f"  screen: {reason}", -count)
    _line("images trained on", int(mask.keep.sum()))
    for name, pairs in found.verdict.leaks.items():
        _line(f"pairs with {name}", pairs)
        _line(f"pairs inside {name}", found.verdict.inside[name])
    if found.verdict.large_groups:
        _line("groups to be looked at", found.verdict.large_groups)
    if mask.weight is not None:
        _line("images of an epoch", round(float(mask.weight[mask.keep].sum(dtype=float))))


def _why(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    from raydino.curation.lookup import why

    if len(options.asked) != 1:
        parser.error("why takes one id, its first digits, or a path")
    print(why(options.out, options.asked[0]))
    return 0


def _diff(parser: argparse.ArgumentParser, folders: list[str]) -> int:
    from raydino.curation.difference import diff

    if len(folders) != 2:
        parser.error("diff takes two curated folders")
    print(diff(*folders))
    return 0


def _verify(out: str) -> int:
    from raydino.curation.verify import verify
    from raydino.launch.terminal.bars import Bars

    with Bars() as bars:
        faults = verify(out, done=lambda done, total: bars("verifying", done, total))
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"{out}: {'sound' if not faults else f'{len(faults):,} faults'}")
    return 1 if faults else 0


def _plan(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    from raydino.curation.estimate import estimate

    if not options.source:
        parser.error("plan needs --source")
    print(estimate(options.source))
    return 0


def _line(name: str, value: int) -> None:
    print(f"{name:<28}{value:>12,}")
