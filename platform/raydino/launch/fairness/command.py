"""The command line of the fairness study: which models, which images, which groups; then judge, tell, record.

Heavy imports happen after the command line is parsed and checked, so that `--help` and typing errors answer at once.
"""

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from raydino.config import ConfigError
from raydino.evals.config import KNNConfig, LogisticConfig
from raydino.launch.fairness.groups import (
    Groups,
    check_known,
    evened,
    numbered,
    parse_associations,
    read_groups,
)
from raydino.launch.subjects import Asked, name_of, open_images, opened, run_folder
from raydino.launch.terminal.arguments import check_least, parser_of, share_cores
from raydino.launch.terminal.command import fail, say

if TYPE_CHECKING:
    import numpy as np

    from raydino.evals.evaluation import Labelled
    from raydino.export.model import Model
    from raydino.launch.fairness.report import Judged, Study

HEADS = {"knn": KNNConfig(bank=2_000_000, queries=1_000_000), "logistic": LogisticConfig()}
HALF = "half of the images, evenly by class and by the columns the images come with; the other half is judged"


def main(description: str, argv: Sequence[str] | None = None) -> int:
    """Carry out the command line; returns the exit status, or leaves with one line per fault."""
    share_cores()
    options = _parser(description).parse_args(argv)
    words = sys.argv[1:] if argv is None else argv
    try:
        _check(options)
        _carry_out(options, command=f"python recipes/fairness.py {shlex.join(words)}")
    except (ConfigError, OSError) as error:
        fail(str(error))
    return 0


def _parser(description: str) -> argparse.ArgumentParser:
    parser = parser_of(description)
    add = parser.add_argument
    add("--model", action="append", required=True, help="RUN, RUN@STEP, random:RUN, timm:NAME, pixels; repeatable")
    add("--data", required=True, help="folder of labelled images, local or a URI")
    add(
        "--by",
        action="append",
        required=True,
        help="column, or size, brightness, sharpness, bytes-per-pixel; repeatable",
    )
    add("--head", choices=HEADS, default="knn", help="what classifies the frozen features (knn)")
    add("--minimum", type=int, default=30, help="images below which a group is not ranked (30)")
    add("--association", action="append", default=[], metavar="NAME=CLASS,...", help="group of classes; repeatable")
    add("--source", default="not stated", help="where the images are from, for the datasheet")
    add("--licence", default="not stated", help="licence of the images, for the datasheet")
    add("--out", help="folder of the results (fairness/ in the run's folder, else runs/fairness/)")
    add("--size", type=int, help="side of the crops, pixels (that of the model)")
    add("--seed", type=int, default=0, help="seed of the halves, the head and the resamples (0)")
    add("--split", help="split to learn from (train)")
    add("--eval-split", help="split that is judged (test, validation or val)")
    add("--untracked", action="store_true", help="leave the run's record in MLflow alone")
    return parser


def _check(options: argparse.Namespace) -> None:
    """Raises ConfigError for what is wrong with the command line alone."""
    check_least(options, {"minimum": 1, "size": 1})
    parse_associations(options.association)


def _carry_out(options: argparse.Namespace, *, command: str) -> None:
    import torch

    from raydino.launch.fairness.report import Study, save

    by = list(dict.fromkeys(options.by))
    asked = _asked(options)
    models = opened(asked, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    sets = [_labelled(asked, options.data, model, by) for model in models]
    check_known(by, sets[0].queries.collection.columns, path=options.data)
    associations = numbered(parse_associations(options.association), sets[0].classes)
    groups = read_groups(by, sets[0].queries, sets[0].classes)
    found, seen = _seen(options.head, models, sets, data=name_of(options.data))
    groups, labels = [one.part(seen) for one in groups], sets[0].queries.labels[seen]
    settings = {"minimum": options.minimum, "seed": options.seed}
    judged = [
        _judged(model, rows, labels, groups, associations, **settings)
        for model, rows in zip(models, found, strict=True)
    ]
    study = Study(
        command=command,
        data=name_of(options.data),
        data_digest=sets[0].queries.collection.manifest.files_digest,
        source=options.source,
        licence=options.licence,
        images=sets[0].description,
        head=HEADS[options.head].build().protocol,
        learned_from="the training split" if sets[0].keep is None else HALF,
        minimum=options.minimum,
        seed=options.seed,
        classes=sets[0].classes,
        labels=labels,
        groups=groups,
        associations={name: [sets[0].classes[place] for place in places] for name, places in associations.items()},
        judged=judged,
    )
    folder = Path(options.out or _folder_of(asked.models[0]))
    say(f"{save(folder, study)}\n{folder}")
    if asked.tracked:
        _record(asked, study, folder)


def _asked(options: argparse.Namespace) -> Asked:
    return Asked(
        models=tuple(dict.fromkeys(options.model)),
        configs={options.head: HEADS[options.head]},
        data=(options.data,),
        out=options.out,
        size=options.size,
        seed=options.seed,
        holdout=0.5,
        split=options.split,
        eval_split=options.eval_split,
        tracked=not options.untracked,
    )


def _labelled(asked: Asked, path: str, model: "Model", by: Sequence[str]) -> "Labelled":
    """The images to learn from and to judge; of a single split, halves that are even in classes and in stored columns."""
    labelled = open_images(asked, path, model)
    if not labelled.classes:
        raise ConfigError(f"data = {path!r}: no labels (column `label`), or too few to judge by; give labelled images.")
    return evened(labelled, by)


def _seen(
    head: str, models: "Sequence[Model]", sets: "Sequence[Labelled]", *, data: str
) -> "tuple[list[np.ndarray], np.ndarray]":
    """What the head says for each model, float64 [images, classes], and which of the judged images all could decode."""
    from functools import reduce

    import numpy as np

    from raydino.evals.fairness import probabilities

    try:
        every = [probabilities(m.backbone, labelled, HEADS[head]) for m, labelled in zip(models, sets, strict=True)]
    except ValueError as error:
        raise ConfigError(f"{head} on {data}: {error}") from error
    seen = reduce(np.intersect1d, [places for _, places in every])
    return [found[np.searchsorted(places, seen)] for found, places in every], seen


def _judged(
    model: "Model",
    found: "np.ndarray",
    labels: "np.ndarray",
    groups: Sequence[Groups],
    associations: dict[str, list[int]],
    *,
    minimum: int,
    seed: int,
) -> "Judged":
    """A model judged by probabilities [images, classes] of images with `labels` and `groups`."""
    from raydino.evals.fairness import associated, by_group
    from raydino.launch.fairness.report import Judged

    right, taken = found.argmax(axis=1) == labels, associated(found, associations)
    columns, tables = {}, {}
    for one in groups:
        columns[one.column] = by_group(right, one.of, one.names, minimum=minimum, seed=seed, key=one.column)
        tables[one.column] = {
            name: by_group(hits, one.of, one.names, minimum=minimum, seed=seed, key=f"{one.column} {name}")[0]
            for name, hits in taken.items()
        }
    return Judged(model.name, model.digest, model.step, float(right.mean()), columns, tables)


def _record(asked: Asked, study: "Study", folder: Path) -> None:
    """Worst group and gap of each column into the MLflow run of each model that is of one."""
    from raydino.launch.fairness.report import JSON_FILE, PAGE_FILE, PICTURE_FILE
    from raydino.launch.results import add
    from raydino.tracking.run import evaluation_metric

    for spec, judged in zip(asked.models, study.judged, strict=True):
        metrics = {}
        for column, (shares, gap) in judged.columns.items():
            if gap is not None:
                name = re.sub(r"[^\w.-]", "_", column)
                worst = next(share.share for share in shares if share.group == gap.worst)
                assert worst is not None, "a group that is ranked has a share"
                metrics[evaluation_metric(f"fairness-{study.data}", f"{name}_worst")] = worst.value
                metrics[evaluation_metric(f"fairness-{study.data}", f"{name}_gap")] = gap.between.value
        files = [folder / PAGE_FILE, folder / JSON_FILE]
        pictures = {f"fairness-{study.data}": folder / PICTURE_FILE}
        add(run_folder(spec), judged.step, metrics=metrics, files=files, pictures=pictures)


def _folder_of(spec: str) -> Path:
    run = run_folder(spec)
    return Path("runs", "fairness") if run is None else run / "fairness"
