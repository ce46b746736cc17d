"""The command line of robustness studies: groups of runs, clean and shifted images; then measure, tell, write.

Heavy imports happen after the command line is parsed and checked, so that `--help` and typing errors answer at once.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from raydino.config import ConfigError
from raydino.evals.config import KNNConfig, LogisticConfig
from raydino.launch.resume import write
from raydino.launch.robustness.groups import Member, read_groups
from raydino.launch.subjects import PIXELS, Asked, name_of, open_images, opened
from raydino.launch.terminal.arguments import check_least, parser_of, share_cores
from raydino.launch.terminal.command import fail, say, version

if TYPE_CHECKING:
    import torch

    from raydino.evals.evaluation import Labelled
    from raydino.launch.robustness.scores import Scores
    from raydino.launch.robustness.study import Judges, Subject

TABLE_FILE, JSON_FILE, PICTURE_FILE = "robustness.md", "robustness.json", "robustness.png"
_LEAST = {"images": 1, "bank": 20, "strengths": 1}


def main(description: str, argv: Sequence[str] | None = None) -> int:
    """Carry out the command line; returns the exit status, or leaves with one line per fault."""
    share_cores()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # SciPy's threads know no such policy
    options = _parser(description).parse_args(argv)
    try:
        check_least(options, _LEAST)
        names = [name_of(path) for path in options.shift]
        if len(set(names)) < len(names):
            raise ConfigError(f"shift = {', '.join(options.shift)}: two folders have one name; rename one.")
        _carry_out(options, read_groups(options.group))
    except (ConfigError, OSError) as error:
        fail(str(error))
    return 0


def _parser(description: str) -> argparse.ArgumentParser:
    parser = parser_of(description)
    add = parser.add_argument
    add("--group", action="append", required=True, help="NAME=RUN,RUN,… one run a seed; the first is the baseline")
    add("--data", required=True, help="folder of labelled images: clean ones to learn from and to be judged on")
    add("--shift", action="append", default=[], help="folder of images of the same classes, shifted; repeatable")
    add("--out", required=True, help="folder of the results")
    add("--images", type=int, default=2000, help="clean test images, chosen by key; each is corrupted 75 times (2000)")
    add("--bank", type=int, default=5000, help="clean training images that heads learn from, chosen by key (5000)")
    add("--strengths", type=int, default=6, help="values of C that logistic regression chooses from (6)")
    add("--pixels", action="store_true", help="also the images themselves as features of k-NN")
    add("--ladder", action="store_true", help="also the baseline untrained and at earlier steps: effective robustness")
    add("--seed", type=int, default=0, help="seed of what is chosen and of the corruptions (0)")
    add("--split", help="split to learn from (train)")
    add("--eval-split", help="split that is judged (test, validation or val)")
    return parser


def _carry_out(options: argparse.Namespace, groups: Mapping[str, tuple[Member, ...]]) -> None:
    import torch

    from raydino.launch.robustness.picture import draw
    from raydino.launch.robustness.scores import lines
    from raydino.launch.robustness.study import ladder_of, measure, shifted, subjects_of
    from raydino.launch.robustness.table import as_json, head_tables, markdown

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # The middle of the published grid and a looser end of its fits, since every network of the study gets them.
    logistic = LogisticConfig(strengths=options.strengths, exponents=(-4.0, 1.0), iterations=100, tolerance=1e-4)
    knn = KNNConfig(bank=options.bank, queries=options.images)
    baseline = next(iter(groups))
    subjects = [subject for members in groups.values() for subject in subjects_of(members, device)]
    labelled, pixels = _images(options, subjects[0], groups[baseline][0], knn, device)
    shifts = {name_of(path): shifted(path, labelled.queries, labelled.classes) for path in options.shift}
    weaker = ladder_of(groups[baseline], device) if options.ladder else []
    every = [*subjects, *([pixels] if pixels else []), *weaker]
    try:
        found = measure(every, labelled, shifts, knn=knn, logistic=logistic, say=say)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"data = {options.data!r}: {error}") from error
    ladder_names = {subject.model.name for subject in weaker}
    scores = _for_every_seed([s for s in found if s.model not in ladder_names], [m.seed for m in groups[baseline]])
    expected = {
        head: lines([s for s in found if s.head == head and s.group == baseline and weaker], shifts)
        for head in dict.fromkeys(s.head for s in found)
    }
    protocol = _protocol(groups, labelled, shifts, knn, logistic)
    tables = head_tables(scores, expected)
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    page = markdown(tables, protocol)
    write(folder / TABLE_FILE, page)
    runs = {name: [member.folder.resolve().name for member in members] for name, members in groups.items()}
    about = {"version": version(), "baseline": baseline, "runs": runs, "protocol": protocol}
    write(folder / JSON_FILE, as_json(tables, found, about))
    draw(scores, folder / PICTURE_FILE)
    say(f"\n{page}\n{folder}")


def _images(
    options: argparse.Namespace, first: "Subject", member: Member, knn: KNNConfig, device: "torch.device"
) -> "tuple[Labelled, Subject | None]":
    """The clean images as the networks see them, and raw pixels as a network if they are asked for."""
    from raydino.launch.robustness.study import Subject

    asked = Asked(
        models=(str(member.folder), *([PIXELS] if options.pixels else [])),
        configs={"knn": knn},
        data=(options.data,),
        out=options.out,
        size=None,
        seed=options.seed,
        holdout=0.2,
        split=options.split,
        eval_split=options.eval_split,
        tracked=False,
    )
    labelled = open_images(asked, options.data, first.model)
    if not labelled.classes:
        raise ConfigError(f"data = {options.data!r}: no labels; give labelled images.")
    pixels = Subject(PIXELS, member.seed, opened(asked, device)[1]) if options.pixels else None
    return labelled, pixels


def _for_every_seed(scores: "Sequence[Scores]", seeds: Sequence[int]) -> "list[Scores]":
    """Scores in which those of pixels stand for each seed, to be set beside the baseline's."""
    trained = [s for s in scores if s.group != PIXELS]
    return trained + [replace(s, seed=seed) for s in scores if s.group == PIXELS for seed in seeds]


def _protocol(
    groups: Mapping[str, tuple[Member, ...]],
    labelled: "Labelled",
    shifts: "Mapping[str, Judges]",
    knn: KNNConfig,
    logistic: LogisticConfig,
) -> dict[str, str]:
    members = next(iter(groups.values()))
    fields, seeds = members[0].fields, ", ".join(str(member.seed) for member in members)
    images = int(fields["steps"]) * int(fields["global_batch"])
    low, high = logistic.exponents
    told = {
        "training": f"{', '.join(groups)}: {fields['steps']} steps of {fields['global_batch']} images ({images:,} seen), the "
        f"same images and network, seeds {seeds}; {next(iter(groups))} is the baseline",
        "images": labelled.description,
        "knn": f"{knn.build().protocol}",
        "logistic": f"L2 logistic regression on cls features of the clean bank, C of {logistic.strengths} from 10^{low:g} to "
        f"10^{high:g} and one temperature chosen on {logistic.holdout:.0%} of the bank, which it does not learn from; at most "
        f"{logistic.iterations} iterations of L-BFGS",
        "corruptions": "15 kinds × 5 levels of the centre crops, keyed by image, kind and level; ours after Hendrycks & "
        "Dietterich (2019), not comparable with published figures; mCE is relative to the baseline of the same seed, 1 is equal",
        "calibration": "NLL and ECE (15 bins) after temperature scaling, and ECE before it; corrupted is the mean of 75 sets",
        "intervals": "95 %, Student's t over the seeds of training, on the same test images: not what other images would give",
    }
    for name, images in shifts.items():
        told[name] = (
            f"{len(images.labels)} images, {len(set(images.labels.tolist()))} classes occur; mean of the accuracies of those "
            "classes, on clean images and on these"
        )
    return told
