"""The command line of robustness studies: groups of runs, clean and shifted images; then measure, tell, write.

Heavy imports happen after the command line is parsed and checked, so that `--help` and typing errors answer at once.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from raydino.config import ConfigError
from raydino.evals.config import KNNConfig, LogisticConfig
from raydino.launch.robustness.groups import Member, read_groups
from raydino.launch.subjects import PIXELS, Asked, name_of, open_images, opened
from raydino.launch.terminal.arguments import check_least, parser_of, share_cores
from raydino.launch.terminal.command import fail, say

if TYPE_CHECKING:
    from raydino.launch.robustness.domains import Domains
    from raydino.launch.robustness.scores import Scores
    from raydino.launch.robustness.study import Subject

_LEAST = {"images": 1, "bank": 20, "strengths": 1}


def main(description: str, argv: Sequence[str] | None = None) -> int:
    """Carry out the command line; returns the exit status, or leaves with one line per fault."""
    share_cores()
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
    add(
        "--domains",
        metavar="COLUMN",
        help="column of --data: heads learn from one of its domains and are judged on each",
    )
    add("--seed", type=int, default=0, help="seed of what is chosen and of the corruptions (0)")
    add("--split", help="split to learn from (train)")
    add("--eval-split", help="split that is judged (test, validation or val)")
    add("--untracked", action="store_true", help="leave the runs' records in MLflow alone")
    return parser


def _carry_out(options: argparse.Namespace, groups: Mapping[str, tuple[Member, ...]]) -> None:
    import torch

    from raydino.launch.robustness.domains import across
    from raydino.launch.robustness.record import protocol, record, save
    from raydino.launch.robustness.scores import lines
    from raydino.launch.robustness.study import Subject, ladder_of, measure, shifted, subjects_of
    from raydino.launch.robustness.table import head_tables

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # The middle of the published grid and a looser end of its fits, since every network of the study gets them.
    logistic = LogisticConfig(strengths=options.strengths, exponents=(-4.0, 1.0), iterations=100, tolerance=1e-4)
    knn = KNNConfig(bank=options.bank, queries=options.images)
    baseline = next(iter(groups))
    members = groups[baseline]
    subjects = [subject for members in groups.values() for subject in subjects_of(members, device)]
    asked = _asked(options, members[0], knn)
    labelled = open_images(asked, options.data, subjects[0].model)
    if not labelled.classes:
        raise ConfigError(f"data = {options.data!r}: no labels; give labelled images.")
    domains = _domains(options, asked, subjects[0])
    shifts = {name_of(path): shifted(path, labelled.queries, labelled.classes) for path in options.shift}
    pixels = [Subject(PIXELS, members[0].seed, opened(asked, device)[1])] if options.pixels else []
    weaker = ladder_of(members, device) if options.ladder else []
    every = [*subjects, *pixels, *weaker]
    try:
        found = measure(every, labelled, shifts, knn=knn, logistic=logistic, say=say)
        if domains is not None:
            crossed = {_key(s): across(s, domains, knn=knn, logistic=logistic, seed=options.seed) for s in every}
            found = [replace(s, domains=crossed[s.group, s.seed, s.model][s.head]) for s in found]
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"data = {options.data!r}: {error}") from error
    ladder_names = {subject.model.name for subject in weaker}
    scores = _for_every_seed([s for s in found if s.model not in ladder_names], [m.seed for m in members])
    expected = {
        head: lines([s for s in found if s.head == head and s.group == baseline and weaker], shifts)
        for head in dict.fromkeys(s.head for s in found)
    }
    tables = head_tables(scores, expected)
    told = protocol(groups, labelled, shifts, domains, data=options.data, knn=knn, logistic=logistic)
    save(Path(options.out), groups, tables, found, scores, told)
    if asked.tracked:
        record(groups, tables, Path(options.out), data=name_of(options.data))


def _asked(options: argparse.Namespace, member: Member, knn: KNNConfig) -> Asked:
    return Asked(
        models=(str(member.folder), *([PIXELS] if options.pixels else [])),
        configs={"knn": knn},
        data=(options.data,),
        out=options.out,
        size=None,
        seed=options.seed,
        holdout=0.2,
        split=options.split,
        eval_split=options.eval_split,
        tracked=not options.untracked,
    )


def _domains(options: argparse.Namespace, asked: Asked, first: "Subject") -> "Domains | None":
    """The images by domain, of a single split half of each domain to learn from; None where they were not asked for."""
    from raydino.launch.fairness.groups import evened
    from raydino.launch.robustness.domains import read_domains

    if options.domains is None:
        return None
    labelled = open_images(replace(asked, holdout=0.5), options.data, first.model)
    return read_domains(options.domains, evened(labelled, [options.domains], field="domains"), path=options.data)


def _key(subject: "Subject") -> tuple[str, int, str]:
    """What tells networks apart: names of runs may be equal in two groups."""
    return subject.group, subject.seed, subject.model.name


def _for_every_seed(scores: "Sequence[Scores]", seeds: Sequence[int]) -> "list[Scores]":
    """Scores in which those of pixels stand for each seed, to be set beside the baseline's."""
    trained = [s for s in scores if s.group != PIXELS]
    return trained + [replace(s, seed=seed) for s in scores if s.group == PIXELS for seed in seeds]
