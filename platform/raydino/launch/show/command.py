"""The command line of pictures: which images, which models; then draw, write the page, record.

Heavy imports happen after the command line is parsed and checked, so that `--help` and typing errors answer at once.
"""

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from raydino.config import ConfigError
from raydino.launch.subjects import Asked, opened, run_folder
from raydino.launch.terminal.arguments import check_least, parser_of, share_cores
from raydino.launch.terminal.command import fail, say

if TYPE_CHECKING:
    from raydino.export.model import Model
    from raydino.launch.show.drawing import Drawn
    from raydino.launch.show.subjects import Bank, Subject

PAGE = "show.html"
MAPS = ("tsne", "pca", "none")
_LEAST = {"size": 1, "crops": 2, "k": 1, "images": 1, "bank": 2}


def main(description: str, argv: Sequence[str] | None = None) -> int:
    """Carry out the command line; returns the exit status, or leaves with one line per fault."""
    share_cores()
    options = _parser(description).parse_args(argv)
    try:
        _check(options)
        words = sys.argv[1:] if argv is None else argv
        _carry_out(options, command=f"python recipes/show.py {shlex.join(words)}")
    except (ConfigError, OSError) as error:
        fail(str(error))
    return 0


def _parser(description: str) -> argparse.ArgumentParser:
    parser = parser_of(description)
    add = parser.add_argument
    add("image", nargs="*", help="image files; none: some of --data, chosen by key")
    add(
        "--model",
        action="append",
        required=True,
        help="RUN, RUN@STEP, random:RUN, timm:NAME, exported folder; repeatable",
    )
    add("--data", help="folder of images to look for neighbours in, local or a URI")
    add("--size", type=int, help="shorter side of images, and side of the set's crops, pixels (the model's)")
    add("--out", help="folder of the pictures (show/ in the run's folder, else runs/show/)")
    add("--foreground", action="store_true", help="also colour the foreground's patches alone")
    add("--crops", type=int, default=6, help="crops of an image that are compared (6)")
    add("--k", type=int, default=8, help="nearest neighbours of an image (8)")
    add("--images", type=int, default=6, help="images of the set that are drawn where none is named (6)")
    add("--bank", type=int, default=2000, help="images of the set that are encoded at most, chosen by key (2000)")
    add("--map", choices=MAPS, default="tsne", help="how the set is laid out on a plane (tsne)")
    add("--split", help="split of the set that is encoded (train)")
    add("--eval-split", help="split that images are chosen from (test, validation or val, else the same)")
    add("--seed", type=int, default=0, help="seed of what is chosen, of crops and of the map (0)")
    add("--untracked", action="store_true", help="leave the run's record in MLflow alone")
    return parser


def _check(options: argparse.Namespace) -> None:
    """Raises ConfigError for what is wrong with the command line alone."""
    if not options.image and options.data is None:
        raise ConfigError("image: none is named; name image files, or give --data PATH to draw some of a set.")
    check_least(options, _LEAST)


def _carry_out(options: argparse.Namespace, *, command: str) -> None:
    import torch

    from raydino.evals.embedding import FEWEST
    from raydino.launch.show.subjects import chosen, open_bank, read_files

    subjects = read_files(options.image)
    bank = None
    if options.data is not None:
        bank = open_bank(
            options.data, split=options.split, eval_split=options.eval_split, most=options.bank, seed=options.seed
        )
        if not subjects and options.map != "none" and len(bank.rows) < FEWEST:
            raise ConfigError(
                f"map = {options.map!r}: {len(bank.rows)} images of {bank.name}, and a map needs {FEWEST}; give --map none, "
                "or more images."
            )
    whole_set = not subjects
    if bank is not None and whole_set:
        subjects = chosen(bank, options.images, seed=options.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    asked = Asked(
        models=tuple(dict.fromkeys(options.model)),
        configs={},
        data=(),
        out=options.out,
        size=options.size,
        seed=options.seed,
        holdout=0.0,
        split=options.split,
        eval_split=options.eval_split,
        tracked=not options.untracked,
    )
    models = opened(asked, device)
    folder = Path(options.out or _folder_of(asked.models[0]))
    told: list[tuple[Drawn, Path | None]] = []
    for spec, model in zip(asked.models, models, strict=True):
        of_model = _of_model(options, spec, model, subjects, bank, folder, whole_set=whole_set)
        told += of_model
        if asked.tracked:
            _record(spec, model, of_model)
    created = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    _write_page(folder / PAGE, told, created=created, command=command)
    say(f"\n{folder / PAGE}")


def _of_model(
    options: argparse.Namespace,
    spec: str,
    model: "Model",
    subjects: "Sequence[Subject]",
    bank: "Bank | None",
    folder: Path,
    *,
    whole_set: bool,
) -> "list[tuple[Drawn, Path | None]]":
    """Draw and write all pictures of a model, each told in a line."""
    from raydino.launch.model import teacher_targets
    from raydino.launch.show.drawing import Wanted, draw_set, draw_subjects, seen_by

    wanted = Wanted(foreground=options.foreground, crops=options.crops, neighbours=options.k, seed=options.seed)
    seen = None if bank is None else seen_by(model, bank)
    drawn = draw_subjects(model, subjects, seen, wanted)
    if seen is not None and whole_set:
        targets = teacher_targets(spec, device=next(model.backbone.parameters()).device)
        how = None if options.map == "none" else options.map
        drawn = chain(drawn, draw_set(model, seen, targets, how, seed=options.seed))
    found: list[tuple[Drawn, Path | None]] = []
    for each in drawn:
        path = None
        if each.picture is not None:
            path = folder / _plain(model.name) / f"{each.subject or 'set'}-{each.kind}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            each.picture.save(path, optimize=True)
        say(f"{each.model}  {each.subject or 'set'}: {each.words}")
        found.append((each, path))
    return found


def _record(spec: str, model: "Model", drawn: "Sequence[tuple[Drawn, Path | None]]") -> None:
    """Add the pictures to the MLflow run of a model that is a run's."""
    from raydino.launch.results import add

    pictures = {f"show/{d.subject or 'set'}-{d.kind}": path for d, path in drawn if path is not None}
    add(run_folder(spec), model.step, metrics={}, files=[], pictures=pictures)


def _write_page(path: Path, told: "Sequence[tuple[Drawn, Path | None]]", *, created: str, command: str) -> None:
    from raydino.launch.show.page import page

    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(page(told, title="What the network sees", created=created, command=command))
    temporary.replace(path)


def _folder_of(spec: str) -> Path:
    run = run_folder(spec)
    return Path("runs", "show", _plain(spec)) if run is None else run / "show"


def _plain(name: str) -> str:
    """A name that is one of a folder."""
    return re.sub(r"[^A-Za-z0-9_.@-]+", "-", name).strip("-.") or "model"
