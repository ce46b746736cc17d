"""The measuring: networks, one head on clean training images for each, and what they say of corrupted and shifted images.

Images are corrupted one kind and level at a time, once for all networks; nothing of them is kept but how many were right.
Letters: N images, C channels, H W pixels, D width, K classes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

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
from raydino.shards.reader import open_collection

if TYPE_CHECKING:
    from raydino.export.model import Model

HEADS = ("knn", "logistic")
BATCH = 256


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
    logits: Callable[[Tensor], np.ndarray]
    """Features [N, D] to logits [N, K]."""
    temperature: float
    strength: float


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
    whole = open_collection(path if "://" in path else str(Path(path).expanduser().resolve()))
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
    """Heads on the clean bank: all of it votes; regression learns from it but for a part that C and temperature are chosen on."""
    backbone = subject.model.backbone
    device = next(backbone.parameters()).device
    bank, labels = extract(backbone, labelled.bank, labelled.normalisation, device=device)
    x, y, count = bank.double().cpu().numpy(), labels.cpu().numpy(), len(labelled.classes)
    learn, held_back = held_back_rows(len(x), share=logistic.holdout, seed=labelled.seed)
    regression = Logistic(logistic)
    found = regression.sweep(x, y, seed=labelled.seed)
    strength = max(found, key=lambda c: found[c])
    model = regression.fit(x[learn], y[learn], strength)

    def logits(features: Tensor) -> np.ndarray:
        scores = model.decision_function(features.double().cpu().numpy())
        every = np.full((len(scores), count), -np.inf)
        # Of two classes scikit-learn gives one logit, the second's.
        every[:, model.classes_] = scores if scores.ndim == 2 else np.stack([np.zeros(len(scores)), scores], axis=1)
        return every

    def vote(features: Tensor) -> np.ndarray:
        votes = classify(bank, labels, features, classes=count, k=knn.k, temperature=knn.temperature)
        return votes.argmax(1).cpu().numpy()

    return Heads(vote, logits, fit_temperature(logits(bank[held_back]), y[held_back]), strength)


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
    shifts: dict[str, Judges],
    *,
    knn: KNNConfig,
    logistic: LogisticConfig,
    say: Callable[[str], None],
) -> list[Scores]:
    """Scores of every network with every head. Raises ConfigError or ValueError where images are missing."""
    clean = judges(labelled.queries, name="data")
    heads = [fit_heads(subject, labelled, knn, logistic) for subject in subjects]
    say(f"heads of {len(subjects)} networks learned from {len(labelled.bank):,} clean images")
    found = [
        scores
        for subject, head in zip(subjects, heads, strict=True)
        for scores in _clean_and_shifted(subject, head, clean, shifts)
    ]
    kinds: list[dict[str, list[float]]] = [{} for _ in found]
    errors = np.zeros(len(subjects))
    for kind, pixels in corrupted(clean, seed=labelled.seed):
        for index, (subject, head) in enumerate(zip(subjects, heads, strict=True)):
            features = encode(subject, pixels)
            logits = head.logits(features)
            answers = head.knn(features), logits.argmax(1)
            for place, answer in enumerate(answers):
                right = float((answer == clean.labels).mean())
                kinds[len(HEADS) * index + place].setdefault(kind, []).append(right)
            errors[index] += calibration_error(softmax(logits / head.temperature, axis=1), clean.labels)
        if all(len(levels[kind]) == len(LEVELS) for levels in kinds):
            say(f"{kind}: done")
    complete = []
    for index, scores in enumerate(found):
        extra = {"ECE, corrupted": errors[index // len(HEADS)] / (len(KINDS) * len(LEVELS))}
        calibration = {**scores.calibration, **extra} if scores.calibration else {}
        complete.append(replace(scores, kinds=kinds[index], calibration=calibration))
    return complete


def corrupted(images: Judges, *, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """The images at every kind and level, level after level: the kind and uint8 [N, H, W, C]."""
    for kind in KINDS:
        for level in LEVELS:
            yield (
                kind,
                np.stack(
                    [
                        corrupt(image, kind, level, image_id=image_id, seed=seed)
                        for image, image_id in zip(images.pixels, images.ids, strict=True)
                    ]
                ),
            )


def _clean_and_shifted(subject: Subject, head: Heads, clean: Judges, shifts: dict[str, Judges]) -> list[Scores]:
    """Scores without corruptions, by head in the order of HEADS."""
    features = encode(subject, clean.pixels)
    logits = head.logits(features)
    answers = head.knn(features), logits.argmax(1)
    calibration = {
        "temperature": head.temperature,
        "NLL": negative_log_likelihood(logits, clean.labels, temperature=head.temperature),
        "ECE before": calibration_error(softmax(logits, axis=1), clean.labels),
        "ECE": calibration_error(softmax(logits / head.temperature, axis=1), clean.labels),
    }
    by_head: list[dict[str, tuple[float, float]]] = [{}, {}]
    for name, images in shifts.items():
        rows = encode(subject, images.pixels)
        far = head.logits(rows)
        occurring = np.intersect1d(images.labels, clean.labels)
        if not len(occurring):
            raise ConfigError(f"shift = {name!r}: no class of it is among the clean test images; give --images more.")
        for place, answer in enumerate((head.knn(rows), far.argmax(1))):
            by_head[place][name] = (
                class_mean(answers[place], clean.labels, occurring),
                class_mean(answer, images.labels, occurring),
            )
        calibration[f"ECE, {name}"] = calibration_error(softmax(far / head.temperature, axis=1), images.labels)
    return [
        Scores(
            subject.group,
            subject.seed,
            subject.model.name,
            name,
            clean=float((answers[place] == clean.labels).mean()),
            kinds={},
            shift=by_head[place],
            calibration=calibration if name == "logistic" else {},
        )
        for place, name in enumerate(HEADS)
    ]


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
