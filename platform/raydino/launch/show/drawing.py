"""All pictures of one model: of each subject its patches, attention, crops and neighbours; of a set its map and prototypes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from raydino.config import ConfigError
from raydino.data.decode import Undecodable, decode
from raydino.evals.components import foreground_colours, patch_colours
from raydino.evals.consistency import consistency, consistency_sheet, crop_features, mean_of_pairs, random_crops
from raydino.evals.dense import whole_image
from raydino.evals.embedding import How, embedding_map, plane, usage_picture, used
from raydino.evals.features import Features, extract_blocks
from raydino.evals.images import ImageSet, centre_crop
from raydino.evals.neighbours import Neighbour, nearest, neighbour_sheet
from raydino.evals.pictures import attention_maps, patch_grids, pca_sheet
from raydino.export.model import Model
from raydino.launch.show.subjects import Bank, Subject
from raydino.nn.layers import patch_size
from raydino.views import height_width

TILE = 216
"""Pixels of an image in a sheet: half as many again as while training, where several share a sheet."""


@dataclass(frozen=True)
class Drawn:
    """One picture, or in words why there is none."""

    model: str
    subject: str
    """Empty for a picture of the whole set."""
    kind: str
    """"pca", "foreground", "attention", "crops", "neighbours", "map" or "prototypes"."""
    picture: Image.Image | None
    words: str
    """A line for the terminal and the page."""


@dataclass(frozen=True)
class Wanted:
    """What is drawn."""

    foreground: bool
    crops: int
    """Crops per image, at least 2."""
    neighbours: int
    """Per image."""
    seed: int


@dataclass(frozen=True)
class Seen:
    """A set of images as a model sees them."""

    bank: Bank
    images: ImageSet
    features: Features
    """Of the decodable ones."""


def seen_by(model: Model, bank: Bank) -> Seen:
    """Encode a set. Raises ConfigError where none of its images can be decoded."""
    images, device = bank.seen_by(model), next(model.backbone.parameters()).device
    try:
        features = extract_blocks(model.backbone, images, model.normalisation, device=device)
    except ValueError as error:
        raise ConfigError(f"data = {bank.name!r}: {error}") from error
    return Seen(bank, images, features)


def draw_subjects(model: Model, subjects: Sequence[Subject], seen: Seen | None, wanted: Wanted) -> Iterator[Drawn]:
    """The pictures of each subject, those of one kind after another. Raises ConfigError for images that do not suit the model."""
    images = [_whole(subject, model) for subject in subjects]
    names = [subject.name for subject in subjects]
    grids = patch_grids(model.backbone, images, model.normalisation)
    over = f"one basis for {len(images)} images" if len(images) > 1 else "a basis of its own"
    for name, image, colours in zip(names, images, patch_colours(grids), strict=True):
        yield Drawn(model.name, name, "pca", pca_sheet([image], [colours], tile=TILE), f"patch features, {over}")
    if wanted.foreground:
        for name, image, colours in zip(names, images, foreground_colours(grids), strict=True):
            share = float(colours.any(axis=1).mean())
            sheet = pca_sheet([image], [colours], foreground=True, tile=TILE)
            yield Drawn(model.name, name, "foreground", sheet, f"foreground {share:.0%} of the patches, {over}")
    for name, image in zip(names, images, strict=True):
        sheet = attention_maps(model.backbone, [image], model.normalisation, tile=TILE)
        words = "attention of the cls token in the last block"
        if sheet is None:
            words = f"no attention to draw: {model.config.name} is a convolutional network and has none"
        if model.name == "pixels":
            words = "no attention to draw: pixels are no network"
        yield Drawn(model.name, name, "attention", sheet, words)
    for subject in subjects:
        yield _crops(model, subject, wanted)
    if seen is not None:
        yield from _neighbours(model, subjects, seen, wanted)


def draw_set(
    model: Model, seen: Seen, targets: Callable[[Tensor], Tensor] | str, how: How | None, *, seed: int
) -> Iterator[Drawn]:
    """The map of a set's cls features and the teacher's use of its prototypes; `targets` as `teacher_targets` gives them."""
    bank, rows, labels = seen.bank, seen.features.cls[:, -1], seen.features.labels.cpu().numpy()
    if how is not None:
        try:
            places = plane(rows, how, seed=seed)
        except ValueError as error:
            raise ConfigError(f"map = {how!r}: {error} that can be decoded.") from error
        picture = embedding_map(places, labels, bank.classes, how)
        yield Drawn(model.name, "", "map", picture, f"{len(rows):,} images of {bank.name} by {how}")
    if isinstance(targets, str):
        yield Drawn(model.name, "", "prototypes", None, f"no use of prototypes to draw: {targets}")
        return
    found = targets(rows)
    words = f"prototypes: perplexity {used(found):.1f} of {found.shape[1]:,} over {len(rows):,} images"
    yield Drawn(model.name, "", "prototypes", usage_picture(found), words)


def _whole(subject: Subject, model: Model) -> UInt8[Tensor, "C H W"]:
    patch, side = patch_size(model.backbone), min(height_width(model.size))
    image = whole_image(subject.data, side=side, patch=patch, channels=model.config.channels)
    if image is None:
        raise ConfigError(f"image {subject.name}: not one of {model.config.channels} channels, as {model.name} needs.")
    return image


def _pixels(subject: Subject, model: Model) -> UInt8[np.ndarray, "H W C"]:
    try:
        return decode(subject.data, channels=model.config.channels)
    except Undecodable as error:
        raise ConfigError(f"image {subject.name}: {error}, as {model.name} needs.") from error


def _crops(model: Model, subject: Subject, wanted: Wanted) -> Drawn:
    crops = random_crops(
        _pixels(subject, model), count=wanted.crops, size=model.size, seed=wanted.seed, name=subject.name
    )
    cosines = consistency(crop_features(model.backbone, crops, model.normalisation))
    words = f"cosine between {len(crops)} crops {mean_of_pairs(cosines):.3f} in the mean"
    return Drawn(model.name, subject.name, "crops", consistency_sheet(crops, cosines), words)


def _neighbours(model: Model, subjects: Sequence[Subject], seen: Seen, wanted: Wanted) -> Iterator[Drawn]:
    bank, features = seen.bank, seen.features
    crops = torch.from_numpy(np.stack([centre_crop(_pixels(subject, model), model.size) for subject in subjects]))
    queries = crop_features(model.backbone, crops, model.normalisation)
    positions = features.positions.cpu().numpy()
    there = {int(row): place for place, row in enumerate(seen.images.rows[positions])}
    own = torch.tensor([there.get(subject.row, -1) for subject in subjects])
    try:
        rows, cosines = nearest(queries, features.cls[:, -1].cpu(), k=wanted.neighbours, leave_out=own)
    except ValueError as error:
        raise ConfigError(f"data = {bank.name!r}: {error}.") from error
    for subject, crop, places, values in zip(subjects, crops, rows.numpy(), cosines.tolist(), strict=True):
        images = torch.cat([chunk for chunk, _ in seen.images.chunks(positions[places], batch=len(places))])
        labels = [bank.called(int(label)) for label in features.labels.cpu().numpy()[places]]
        found = [Neighbour(*each) for each in zip(images, values, labels, strict=True)]
        hits = sum(label == subject.label for label in labels)
        judged = f", {hits} of {len(labels)} of its class" if subject.label and any(labels) else ""
        words = f"nearest of {len(features.labels):,} images of {bank.name}: cosine {values[0]:.3f}{judged}"
        yield Drawn(model.name, subject.name, "neighbours", neighbour_sheet(crop, subject.label, found), words)
