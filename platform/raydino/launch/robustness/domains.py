"""Domain shift within one set of images: heads that know the labels of one domain alone, judged on every domain.

The PACS protocol of a single source (Li et al. 2017): the same classes as photos, paintings, cartoons and sketches, the domain in
a column. All heads are judged on the same images of a domain, none of which any head learns from.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from raydino.config import ConfigError
from raydino.evals.config import KNNConfig, LogisticConfig
from raydino.evals.evaluation import Labelled
from raydino.evals.images import ImageSet
from raydino.evals.knn import classify
from raydino.evals.logistic import Logistic
from raydino.launch.fairness.groups import MISSING, NOT_GROUPS, near, stored
from raydino.launch.robustness.groups import Member
from raydino.launch.robustness.study import Judges, Subject, class_mean, encode, judges
from raydino.launch.subjects import PIXELS, address_of

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

LEAST = 20
"""Images of a domain that heads learn from, at the least: as many as vote."""


@dataclass(frozen=True)
class Domains:
    """Images by domain, the domains in alphabetical order."""

    column: str
    learn: Mapping[str, Judges]
    judged: Mapping[str, Judges]
    classes: np.ndarray
    """Labels that occur, which is in every domain."""
    without: int
    """Images that the column says nothing of; they are left out."""

    @property
    def protocol(self) -> str:
        """What is done with them, in words."""
        learn, judged = (
            ", ".join(sorted({str(len(part.labels)) for part in parts.values()}, key=int))
            for parts in (self.learn, self.judged)
        )
        left = f"; {self.without} images without a value are left out" if self.without else ""
        return (
            f"column {self.column!r}: {', '.join(self.learn)}{left}. Heads learn from {learn} images of one domain and are "
            f"judged on {judged} of each, none of them learned from: mean accuracy of {len(self.classes)} classes. Regression as "
            "above, but learns again from all images of its domain once C is chosen. A drop is the accuracy on the domain "
            "learned from less the mean of those on the others"
        )


def read_domains(column: str, labelled: Labelled, *, path: str) -> Domains:
    """The images by the values of a column that they come with.

    Raises ConfigError where there is no such column, less than two values, a domain of fewer than LEAST images to learn from, or
    one without images of some class.
    """
    sets = (labelled.bank, labelled.queries)
    known = sorted(frozenset.intersection(*(images.collection.columns for images in sets)) - NOT_GROUPS)
    if column not in known:
        raise ConfigError(f"domains = {column!r}: {path} has no such column; {near(column, known)}")
    values = [stored(column, images.collection, images.rows, labelled.classes, field="domains") for images in sets]
    names = sorted({*values[0], *values[1]} - {MISSING})
    if len(names) < 2:
        raise ConfigError(
            f"domains = {column!r}: the images of {path} have {len(names)} values in it; give a column of two or more domains."
        )
    for name in names:
        if (count := values[0].count(name)) < LEAST:
            raise ConfigError(
                f"domains = {column!r}: {count} images of {name!r} to learn from, and heads want {LEAST}; give more images of it "
                "or a larger --bank, or another column."
            )
    learn, judged = (
        {name: _part(images, found, name, column) for name in names} for images, found in zip(sets, values, strict=True)
    )
    classes = np.unique(np.concatenate([part.labels for parts in (learn, judged) for part in parts.values()]))
    for parts, use in ((learn, "to learn from"), (judged, "to be judged")):
        for name, part in parts.items():
            if len(missing := np.setdiff1d(classes, part.labels)):
                raise ConfigError(
                    f"domains = {column!r}: {name!r} has no image of {labelled.classes[missing[0]]!r} {use}; give images of "
                    "every class in every domain, or larger --bank and --images."
                )
    return Domains(column, learn, judged, classes, sum(found.count(MISSING) for found in values))


def _part(images: ImageSet, values: list[str], name: str, column: str) -> Judges:
    positions = np.flatnonzero(np.array(values, dtype=object) == name)
    return judges(images.part(positions), name=f"domains = {column!r}: {name!r}")


def across(
    subject: Subject, domains: Domains, *, knn: KNNConfig, logistic: LogisticConfig, seed: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Accuracies of a network by head, domain learned from and domain judged. Raises ValueError where features are not finite."""
    judged = {name: (encode(subject, part.pixels), part.labels) for name, part in domains.judged.items()}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for source, part in domains.learn.items():
        bank = encode(subject, part.pixels)
        labels = torch.from_numpy(part.labels).to(bank.device)
        regression = None if subject.group == PIXELS else _regression(bank, part.labels, logistic, seed=seed)
        for target, (features, truth) in judged.items():
            count = int(domains.classes[-1]) + 1
            votes = classify(bank, labels, features, classes=count, k=knn.k, temperature=knn.temperature)
            answers = {"knn": votes.argmax(1).cpu().numpy()}
            if regression is not None:
                answers["logistic"] = np.asarray(regression.predict(features.double().cpu().numpy()))
            for head, answer in answers.items():
                row = found.setdefault(head, {}).setdefault(source, {})
                row[target] = class_mean(answer, truth, domains.classes)
    return found


def _regression(bank: Tensor, labels: np.ndarray, config: LogisticConfig, *, seed: int) -> "LogisticRegression":
    """Fitted on all rows: a tenth of so few is too much to do without once C is chosen."""
    x, head = bank.double().cpu().numpy(), Logistic(config)
    found = head.sweep(x, labels, seed=seed)
    return head.fit(x, labels, max(found, key=lambda strength: found[strength]))


def saw(member: Member, images: ImageSet, *, path: str) -> bool:
    """Whether a run was trained on the split that these images are of."""
    manifest = images.collection.manifest
    its_folder = address_of(path) == address_of(str(member.fields["data.path"]))
    return member.images == manifest.digest or (its_folder and member.fields["data.split"] in manifest.splits)
