"""What a robustness study leaves: its protocol in words, tables, a file for programs, a picture, and figures in MLflow."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from raydino.evals.config import KNNConfig, LogisticConfig
from raydino.evals.evaluation import Labelled
from raydino.launch.results import add
from raydino.launch.resume import write
from raydino.launch.robustness.domains import Domains, saw
from raydino.launch.robustness.groups import Member
from raydino.launch.robustness.picture import draw
from raydino.launch.robustness.scores import Scores
from raydino.launch.robustness.study import Judges
from raydino.launch.robustness.table import HeadTable, as_json, markdown
from raydino.launch.subjects import name_of
from raydino.launch.terminal.command import say, version
from raydino.tracking.run import evaluation_metric

TABLE_FILE, JSON_FILE, PICTURE_FILE = "robustness.md", "robustness.json", "robustness.png"


def save(
    folder: Path,
    groups: Mapping[str, tuple[Member, ...]],
    tables: Sequence[HeadTable],
    found: Sequence[Scores],
    shown: Sequence[Scores],
    told: Mapping[str, str],
) -> None:
    """Write the tables and print them, all scores that were `found` for programs, and a picture of those `shown`."""
    folder.mkdir(parents=True, exist_ok=True)
    page = markdown(tables, told)
    write(folder / TABLE_FILE, page)
    runs = {name: [member.folder.resolve().name for member in members] for name, members in groups.items()}
    about = {"version": version(), "baseline": next(iter(groups)), "runs": runs, "protocol": told}
    write(folder / JSON_FILE, as_json(tables, found, about))
    draw(shown, folder / PICTURE_FILE)
    say(f"\n{page}\n{folder}")


def record(groups: Mapping[str, tuple[Member, ...]], tables: Sequence[HeadTable], folder: Path, *, data: str) -> None:
    """Add its own figures, and what `save` wrote of all, to the MLflow run of each compared run."""
    name, files = f"robustness-{data}", [folder / TABLE_FILE, folder / JSON_FILE]
    for group, members in groups.items():
        for member in members:
            metrics = {
                evaluation_metric(name, re.sub(r"[^\w.-]+", "_", f"{table.head}_{figure}")): found.values[member.seed]
                for table in tables
                for figure, row in table.figures.items()
                if (found := row[group]) is not None
            }
            step = int(member.fields["steps"])
            add(member.folder, step, metrics=metrics, files=files, pictures={name: folder / PICTURE_FILE})


def protocol(
    groups: Mapping[str, tuple[Member, ...]],
    labelled: Labelled,
    shifts: Mapping[str, Judges],
    domains: Domains | None,
    *,
    data: str,
    knn: KNNConfig,
    logistic: LogisticConfig,
) -> dict[str, str]:
    """What was done, by part of the study."""
    members = next(iter(groups.values()))
    fields, seeds = members[0].fields, ", ".join(str(member.seed) for member in members)
    images = int(fields["steps"]) * int(fields["global_batch"])
    low, high = logistic.exponents
    told = {
        "training": f"{', '.join(groups)}: {fields['steps']} steps of {fields['global_batch']} images ({images:,} seen), the "
        f"same images and network, seeds {seeds}; {next(iter(groups))} is the baseline",
        "pre-training": _seen(members[0], labelled, data),
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
    if domains is not None:
        told["domains"] = domains.protocol
    return told


def _seen(member: Member, labelled: Labelled, data: str) -> str:
    """Which of the images pre-training saw, in words."""
    learn, judged = (saw(member, images, path=data) for images in (labelled.bank, labelled.queries))
    if learn and judged:
        held_back = float(member.fields["data.holdout"])
        return f"saw these images, those that are judged too, but for {held_back:.0%} with labels that it held back"
    which = "saw the images that heads learn from, and none that are judged" if learn else ""
    which = which or ("saw the images that are judged, and none that heads learn from" if judged else "")
    its = name_of(str(member.fields["data.path"]))
    return which or f"saw none of these images; its own were {its} (copies among them were not looked for)"
