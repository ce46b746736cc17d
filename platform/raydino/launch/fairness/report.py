"""What a fairness study leaves: a page with tables and a datasheet of the groups, a file for programs, a picture."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from raydino.evals.fairness import LEAST, RESAMPLES, TOP, Estimate, Gap, GroupShare
from raydino.launch.fairness.groups import MISSING, Groups
from raydino.launch.results import row, write
from raydino.launch.terminal.command import version
from raydino.tracking.redact import redact_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE_FILE, JSON_FILE, PICTURE_FILE = "fairness.md", "fairness.json", "fairness.png"
MOST_CLASSES = 40
"""Classes of the page's table of counts; the file has all."""
TOO_FEW = "too few"
CAUTIONS = (
    "That a network is fair, or unfair, to people: unless the groups are people's, as they described themselves, nothing here is "
    "about them; groups that were measured of the pixels are of image quality.",
    "That a gap is the network's doing: groups differ in their images' difficulty, in their classes (see the counts) and in what "
    "the head learned from. Compare with an untrained network and raw pixels on the same images.",
    "That two groups differ where their intervals overlap widely, or where shuffled groups are often as far apart.",
    "That there is no gap where none was found: with few images only wide gaps show. A group of which all or no images are right "
    "has an interval of no width, which is no certainty.",
    "Anything about other images, other labels, or groups that are not in the columns.",
)


@dataclass(frozen=True)
class Judged:
    """What was found of one model."""

    model: str
    digest: str
    step: int | None
    accuracy: float
    """Of all judged images."""
    columns: Mapping[str, tuple[tuple[GroupShare, ...], Gap | None]]
    """Accuracy by group, and the gap, of each column."""
    associations: Mapping[str, Mapping[str, tuple[GroupShare, ...]]]
    """By column and group of classes: the share of each group's images that is associated with it."""


@dataclass(frozen=True)
class Study:
    """All that is told."""

    command: str
    data: str
    data_digest: str
    source: str
    licence: str
    images: str
    head: str
    learned_from: str
    minimum: int
    seed: int
    classes: tuple[str, ...]
    labels: np.ndarray
    """int64 [images], of the judged images in the order of `Groups.of`."""
    groups: Sequence[Groups]
    associations: Mapping[str, Sequence[str]]
    """Classes by name of their group."""
    judged: Sequence[Judged]

    def counts(self, groups: Groups) -> dict[str, dict[str, int]]:
        """Judged images by group and class."""
        found = Counter(zip(groups.of, self.labels.tolist(), strict=True))
        return {group: {name: found[group, label] for label, name in enumerate(self.classes)} for group in groups.names}


def save(folder: Path, study: Study) -> str:
    """Write page, file and picture; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    text = redact_text(page(study))
    write(folder / JSON_FILE, redact_text(json.dumps(as_json(study), indent=1)))
    write(folder / PAGE_FILE, text)
    figure(study).savefig(folder / PICTURE_FILE, dpi=120)
    return text


def as_json(study: Study) -> dict:
    """All figures, by column and model."""
    plain = ("command", "data", "data_digest", "source", "licence", "images", "head", "learned_from", "minimum", "seed")
    return {
        **{name: getattr(study, name) for name in plain},
        "version": version(),
        "resamples": RESAMPLES,
        "associations": {name: list(classes) for name, classes in study.associations.items()},
        "columns": {g.column: {"origin": g.origin, "counts": study.counts(g)} for g in study.groups},
        "models": [
            {
                **{name: getattr(one, name) for name in ("model", "digest", "step", "accuracy")},
                "columns": {
                    column: {"groups": [asdict(share) for share in shares], "gap": None if gap is None else asdict(gap)}
                    for column, (shares, gap) in one.columns.items()
                },
                "associations": {
                    column: {name: [asdict(share) for share in shares] for name, shares in found.items()}
                    for column, found in one.associations.items()
                },
            }
            for one in study.judged
        ],
    }


def page(study: Study) -> str:
    """The Markdown page."""
    lines = [f"# Fairness: {study.data}", "", f"    {study.command}", ""]
    lines += [
        f"Brackets are 95 % intervals of the percentile bootstrap: {RESAMPLES:,} times, the images of each group are drawn again "
        f"from that group; seed {study.seed}. Neither the network nor the head is trained again, so their chance is not in them. "
        f"Groups of fewer than {study.minimum} images are {TOO_FEW} and not ranked.",
        "",
    ]
    for groups in study.groups:
        lines += _accuracies(study, groups)
        lines += _associations(study, groups)
    return "\n".join([*lines, *_datasheet(study)]) + "\n"


def _accuracies(study: Study, groups: Groups) -> Iterator[str]:
    yield from (f"## Accuracy by {groups.column}", "")
    yield row([groups.column, "images", *(one.model for one in study.judged)])
    yield row(["---", "---:", *("---:" for _ in study.judged)])
    found = [one.columns[groups.column] for one in study.judged]
    for place, name in enumerate(groups.names):
        shares = [of_model[place] for of_model, _ in found]
        yield row([name, str(shares[0].count), *(_told(share.share) for share in shares)])
    yield row(["all images", str(len(groups.of)), *(f"{one.accuracy:.3f}" for one in study.judged)])
    gaps = [gap for _, gap in found]
    if None in gaps:
        yield from ("", f"Fewer than two groups have {study.minimum} images, so there is no gap to tell.", "")
        return
    known = [gap for gap in gaps if gap is not None]
    yield row(["**worst group**", "", *(gap.worst for gap in known)])
    yield row(["**gap**, best less worst", "", *(f"{_told(gap.between)} (best: {gap.best})" for gap in known)])
    yield row(["**gap**, mean of groups less worst", "", *(_told(gap.below_mean) for gap in known)])
    yield row(["shuffled groups as far apart", "", *(f"{gap.chance:.2%}" for gap in known)])
    yield from (
        "",
        "Best and worst are chosen by these very images, which makes the gap look larger than it is, and its interval too high "
        "where groups hardly differ. Whether they do is told by the last line: the share of shufflings of the groups over the "
        "images that are at least as far apart.",
        "",
    )


def _associations(study: Study, groups: Groups) -> Iterator[str]:
    if not study.associations:
        return
    yield from (f"### What images are taken for, by {groups.column}", "")
    yield (
        f"The share of a group's images for which one of these classes is among the {TOP} likeliest with a probability of at "
        f"least {LEAST:g} (DINOv2, section 8); below it the share whose label is one of them."
    )
    for one in study.judged:
        yield from _associations_of(study, groups, one)


def _associations_of(study: Study, groups: Groups, one: Judged) -> Iterator[str]:
    yield from ("", f"{one.model}:", "")
    yield row(["classes", *groups.names])
    yield row(["---", *("---:" for _ in groups.names)])
    counts = study.counts(groups)
    for name, shares in one.associations[groups.column].items():
        yield row([name, *(_told(share.share) for share in shares)])
        labelled = (
            f"{sum(counts[share.group][c] for c in study.associations[name]) / max(1, sum(counts[share.group].values())):.3f}"
            for share in shares
        )
        yield row([f"{name}: labelled so", *labelled])
    yield ""


def _datasheet(study: Study) -> Iterator[str]:
    yield from ("## Datasheet", "")
    yield f"- Images: {study.data} (digest {study.data_digest[:16]}); {study.images}."
    yield f"- Source, as given: {study.source}. Licence, as given: {study.licence}."
    yield f"- Head: {study.head}. It learned from {study.learned_from}."
    for one in study.judged:
        yield f"- Model {one.model}: weights {one.digest[:16]}, raydino {version()}."
    for name, classes in study.associations.items():
        yield f"- Classes of {name!r}: {', '.join(classes)}."
    for groups in study.groups:
        missing = groups.of.count(MISSING)
        yield f"- {groups.column}: {groups.origin}. Missing: {missing} of {len(groups.of)}" + (
            ", a group of their own." if missing else "."
        )
    for groups in study.groups:
        yield from _counts(study, groups)
    yield from ("", "### What must not be concluded", "", *(f"- {caution}" for caution in CAUTIONS))


def _counts(study: Study, groups: Groups) -> Iterator[str]:
    counts = study.counts(groups)
    yield from ("", f"### Judged images by class and {groups.column}", "")
    yield row(["class", *groups.names])
    yield row(["---", *("---:" for _ in groups.names)])
    for name in study.classes[:MOST_CLASSES]:
        yield row([name, *(str(counts[group][name]) for group in groups.names)])
    yield row(["**all**", *(str(sum(counts[group].values())) for group in groups.names)])
    if len(study.classes) > MOST_CLASSES:
        yield from ("", f"{MOST_CLASSES} of {len(study.classes)} classes; {JSON_FILE} has all.")
    sizes = [sum(counts[group].values()) for group in groups.names]
    yield from ("", f"The largest group has {max(sizes) / max(1, min(sizes)):.3g} times the images of the smallest.")


def _told(estimate: Estimate | None) -> str:
    if estimate is None:
        return TOO_FEW
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def figure(study: Study) -> "Figure":
    """Accuracy with its interval by group, a panel a column and a colour a model; dashed, each model's accuracy of all images."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure  # no pyplot: that would pick a display

    heights = [0.9 + 0.16 * len(groups.names) * (1 + len(study.judged)) for groups in study.groups]
    picture = Figure(figsize=(8, 0.5 + sum(heights)), layout="constrained")
    panels = picture.subplots(len(heights), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    for axes, groups in zip(panels, study.groups, strict=True):
        labels = []
        for place, name in enumerate(groups.names):
            few = study.judged[0].columns[groups.column][0][place].share is None
            labels.append(f"{name} ({TOO_FEW})" if few else name)
        for number, one in enumerate(study.judged):
            colour = colormaps["tab10"](number % 10)
            axes.axvline(one.accuracy, color=colour, linewidth=0.8, linestyle="--")
            for place, share in enumerate(one.columns[groups.column][0]):
                if (found := share.share) is not None:
                    at = place + (number + 0.5) / len(study.judged) * 0.7 - 0.35
                    axes.plot([found.low, found.high], [at, at], color=colour, linewidth=1.5)
                    axes.plot(found.value, at, "o", color=colour, markersize=5)
            axes.plot([], [], "o-", color=colour, label=one.model)
        axes.set_yticks(range(len(labels)), labels, fontsize=8)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.set_title(f"by {groups.column}{', measured' if groups.measured else ''}", fontsize=9, loc="left")
        axes.grid(axis="x", alpha=0.3)
    panels[-1].set_xlabel("accuracy and its 95 % interval; dashed: all images")
    picture.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=2, fontsize=8)
    return picture
