"""The measuring: networks, one head on clean training images for each, and what they say of corrupted and shifted images.

Images are corrupted one kind and level at a time, once for all networks; nothing of them is kept but how many were right.
Letters: N images, C channels, H W pixels, D width, K classes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from scipy.special import softmax
from torch import Tensor

from raydino.config import ConfigError
from raydino.evals.calibration import calibration_error, fit_temperature, negative_log_likelihood
from raydino.evals.config import KNNConfig, LogisticConfig
from raydino.evals.corruptions import KINDS, LEVELS, corrupt
from raydino.evals.evaluation import Labelled
from raydino.evals.features import extract, frozen
from raydino.evals.images import ImageSet
from raydino.evals.knn import classify
from raydino.evals.linear import held_back_rows
from raydino.evals.logistic import Logistic
from raydino.launch.robustness.groups import Member
from raydino.launch.robustness.scores import Scores
from raydino.launch.subjects import PIXELS, address_of
from raydino.shards.reader import open_collection

if TYPE_CHECKING:
    from raydino.export.model import Model

BATCH = 256


class Answer(NamedTuple):
    """What a head says of images."""

    head: str
    labels: np.ndarray
    """[N]."""
    logits: np.ndarray | None
    """[N, K], before any temperature; None for a head without probabilities."""


@dataclass(frozen=True)
class Subject:
    """A network in the study."""

    group: str
    seed: int
    model: "Model"


@dataclass(frozen=True)
class Judges:
    """Images that all networks are judged on, in memory as they are on disk but for the crop."""

    pixels: np.ndarray
    """uint8 [N, H, W, C]."""
    labels: np.ndarray
    ids: tuple[bytes, ...]
    """Content ids: they key the corruptions."""


@dataclass(frozen=True)
class Heads:
    """What was learned on the clean features of a network."""

    knn: Callable[[Tensor], np.ndarray]
    """Features [N, D] to labels [N]."""
    logits: Callable[[Tensor], np.ndarray] | None
    """Features [N, D] to logits [N, K]; None where regression was left out."""
    temperature: float = 1.0

    def __call__(self, features: Tensor) -> list[Answer]:
        """What the heads say of features [N, D]."""
        found = [Answer("knn", self.knn(features), None)]
        if self.logits is not None:
            logits = self.logits(features)
            found.append(Answer("logistic", logits.argmax(1), logits))
        return found

    def ece(self, logits: np.ndarray, labels: np.ndarray) -> float:
        """Expected calibration error after temperature scaling."""
        return calibration_error(softmax(logits / self.temperature, axis=1), labels)


def judges(images: ImageSet, *, name: str) -> Judges:
    """The decodable images of a set. Raises ConfigError where there are none."""
    parts = [(pixels.numpy(), good) for pixels, good in images.chunks(np.arange(len(images)), batch=BATCH)]
    good = np.concatenate([np.empty(0, dtype=np.int64), *(good for _, good in parts)])
    if not len(good):
        raise ConfigError(f"{name}: none of {len(images)} labelled images can be decoded; give other images.")
    pixels = np.ascontiguousarray(np.concatenate([pixels for pixels, _ in parts]).transpose(0, 2, 3, 1))
    return Judges(pixels, images.labels[good], tuple(images.part(good).ids()))


def shifted(path: str, like: ImageSet, classes: tuple[str, ...]) -> Judges:
    """All labelled images of a shifted set as crops like those of `like`. Raises ConfigError where its classes are others."""
    whole = open_collection(address_of(path))
    if whole.manifest.classes != classes:
        raise ConfigError(
            f"shift = {path!r}: its classes are {', '.join(whole.manifest.classes)}, and those of --data "
            f"{', '.join(classes)}; give a set with the same classes in the same order."
        )
    labels = whole.labels()
    rows = np.flatnonzero(labels >= 0)
    channels, height, width = like.shape
    return judges(
        ImageSet(whole, rows, labels[rows], size=(height, width), channels=channels), name=f"shift = {path!r}"
    )


def fit_heads(subject: Subject, labelled: Labelled, knn: KNNConfig, logistic: LogisticConfig) -> Heads:
    """Heads on the clean bank: all of it votes; regression learns from it but for a part that C and temperature are chosen on.

    Of raw pixels k-NN alone: regression on 3,072 values takes longer than that on features of all networks together.
    """
    backbone = subject.model.backbone
    device = next(backbone.parameters()).device
    bank, labels = extract(backbone, labelled.bank, labelled.normalisation, device=device)
    classes = len(labelled.classes)

    def vote(features: Tensor) -> np.ndarray:
        votes = classify(bank, labels, features, classes=classes, k=knn.k, temperature=knn.temperature)
        return votes.argmax(1).cpu().numpy()

    if subject.group == PIXELS:
        return Heads(vote, None)
    x, y = bank.double().cpu().numpy(), labels.cpu().numpy()
    learn, held_back = held_back_rows(len(x), share=logistic.holdout, seed=labelled.seed)
    regression = Logistic(logistic)
    found = regression.sweep(x, y, seed=labelled.seed)
    best = max(found, key=lambda strength: found[strength])  # of equals the first, as in evals/logistic.py
    model = regression.fit(x[learn], y[learn], best)

    def logits(features: Tensor) -> np.ndarray:
        scores = model.decision_function(features.double().cpu().numpy())
        every = np.full((len(scores), classes), -np.inf)
        # Of two classes scikit-learn gives one logit, the second's.
        every[:, model.classes_] = scores if scores.ndim == 2 else np.stack([np.zeros(len(scores)), scores], axis=1)
        return every

    return Heads(vote, logits, fit_temperature(logits(bank[held_back]), y[held_back]))


def encode(subject: Subject, pixels: np.ndarray) -> Tensor:
    """cls features, float32 [N, D], of uint8 [N, H, W, C]."""
    backbone = subject.model.backbone
    device = next(backbone.parameters()).device
    rows = []
    with frozen(backbone, device):
        for start in range(0, len(pixels), BATCH):
            part = np.ascontiguousarray(pixels[start : start + BATCH].transpose(0, 3, 1, 2))
            rows.append(backbone(subject.model.normalisation(torch.from_numpy(part).to(device))).cls.float())
    return torch.cat(rows).clone()  # of inference mode no more


def measure(
    subjects: Sequence[Subject],
    labelled: Labelled,
    shifts: Mapping[str, Judges],
    *,
    knn: KNNConfig,
    logistic: LogisticConfig,
    say: Callable[[str], None],
) -> list[Scores]:
    """Scores of every network with every head. Raises ConfigError or ValueError where images are missing."""
    clean = judges(labelled.queries, name="data")
    heads = [fit_heads(subject, labelled, knn, logistic) for subject in subjects]
    say(f"heads of {len(subjects)} networks learned from {len(labelled.bank):,} clean images")
    kinds: dict[tuple[int, str], dict[str, list[float]]] = {}
    errors: dict[tuple[int, str], list[float]] = {}
    for kind, level, pixels in corrupted(clean, seed=labelled.seed):
        for index, (subject, head) in enumerate(zip(subjects, heads, strict=True)):
            for name, answer, logits in head(encode(subject, pixels)):
                right = float((answer == clean.labels).mean())
                kinds.setdefault((index, name), {}).setdefault(kind, []).append(right)
                if logits is not None:
                    errors.setdefault((index, name), []).append(head.ece(logits, clean.labels))
        if level == LEVELS[-1]:
            say(f"{kind}: done")
    complete = []
    for index, (subject, head) in enumerate(zip(subjects, heads, strict=True)):
        for scores in _clean_and_shifted(subject, head, clean, shifts):
            key = index, scores.head
            far = {"ECE, corrupted": fmean(errors[key])} if key in errors else {}
            complete.append(replace(scores, kinds=kinds[key], calibration={**scores.calibration, **far}))
    return complete


def corrupted(images: Judges, *, seed: int) -> Iterator[tuple[str, int, np.ndarray]]:
    """The images at every kind and level: kind, level and uint8 [N, H, W, C]."""
    pairs = list(zip(images.pixels, images.ids, strict=True))
    for kind in KINDS:
        for level in LEVELS:
            yield kind, level, np.stack([corrupt(image, kind, level, image_id=key, seed=seed) for image, key in pairs])


def _clean_and_shifted(subject: Subject, head: Heads, clean: Judges, shifts: Mapping[str, Judges]) -> list[Scores]:
    """Scores without corruptions, one for each head."""
    near = head(encode(subject, clean.pixels))
    far = {name: head(encode(subject, images.pixels)) for name, images in shifts.items()}
    found = []
    for place, (name, answer, logits) in enumerate(near):
        shift, calibration = {}, {}
        if logits is not None:
            calibration["temperature"] = head.temperature
            calibration["NLL"] = negative_log_likelihood(logits, clean.labels, temperature=head.temperature)
            calibration["ECE before"] = calibration_error(softmax(logits, axis=1), clean.labels)
            calibration["ECE"] = head.ece(logits, clean.labels)
        for shifted_name, images in shifts.items():
            other = far[shifted_name][place]
            common = np.intersect1d(images.labels, clean.labels)
            if not len(common):
                raise ConfigError(
                    f"shift = {shifted_name!r}: none of its classes is among --images; give more of them."
                )
            shift[shifted_name] = (
                class_mean(answer, clean.labels, common),
                class_mean(other.labels, images.labels, common),
            )
            if other.logits is not None:
                calibration[f"ECE, {shifted_name}"] = head.ece(other.logits, images.labels)
        clean_share = float((answer == clean.labels).mean())
        found.append(Scores(subject.group, subject.seed, subject.model.name, name, clean_share, {}, shift, calibration))
    return found


def class_mean(answers: np.ndarray, labels: np.ndarray, classes: np.ndarray) -> float:
    """Mean over `classes` of the share of their images that is right: class shares of two sets differ."""
    return float(np.mean([(answers[labels == label] == label).mean() for label in classes]))


def subjects_of(members: Sequence[Member], device: torch.device) -> list[Subject]:
    """The networks of runs at their last step. Raises ConfigError where one cannot be opened."""
    from raydino.launch.model import open_model

    return [Subject(member.group, member.seed, open_model(str(member.folder), device=device)) for member in members]


def ladder_of(members: Sequence[Member], device: torch.device) -> list[Subject]:
    """The same runs before their first step and at every earlier step that is kept: weaker networks to draw a line through."""
    from raydino.launch.model import open_model
    from raydino.train.checkpoint import committed, step_of

    found = []
    for member in members:
        last = int(member.fields["steps"])
        steps = sorted(step for path in committed(member.folder / "checkpoints") if (step := step_of(path)) < last)
        specs = [f"random:{member.folder}", *(f"{member.folder}@{step}" for step in steps)]
        found += [Subject(member.group, member.seed, open_model(spec, device=device)) for spec in specs]
    return found
