"""What a run trains on and is judged by: the collection, the rows kept, their weights and order, the labelled images.

Driver and workers build it from the same recipe, so both see the same plan; nothing of it is sent between them.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raydino.config import ConfigError
from raydino.data.decode import Undecodable, decode
from raydino.data.plan import Plan
from raydino.evals.evaluation import Labelled, labelled_sets
from raydino.evals.images import ImageSet
from raydino.keyed import generator
from raydino.launch.curation_report import write_curated_builtin
from raydino.launch.subjects import address_of
from raydino.recipe import Recipe
from raydino.shards.reader import Collection, open_collection

BUILTIN = "builtin"
FIRST_IMAGES = 32
PROBE_IMAGES = 1000  # for the label-free health figures: RankMe of a D-dimensional feature needs N > D


@dataclass(frozen=True)
class Inputs:
    """Everything on the data side of a run."""

    collection: Collection
    plan: Plan
    labelled: Labelled | None
    """None where the collection has no labels."""
    probe: ImageSet
    """Images for label-free figures and pictures; the queries where there are labels."""


def resolve(recipe: Recipe, storage: Path) -> str:
    """Where the recipe's images lie, as an address that holds on every node; makes the built-in ones if need be."""
    path = recipe.data.path
    if path == BUILTIN:
        return str(_builtin(storage / "builtin-images"))
    return address_of(path)


def open_against(recipe: Recipe) -> list[Collection]:
    """The folders of `data.stream_against`, all splits. Raises ShardError where one cannot be opened."""
    return [open_collection(address_of(path)) for path in recipe.data.stream_against]


def _builtin(folder: Path) -> Path:
    """The built-in images, made once: written beside and renamed, so that no run meets half of them, not even after a kill."""
    if not (folder / "manifest.json").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".builtin-", dir=folder.parent) as beside:
            write_curated_builtin(f"{beside}/images")
            try:
                Path(beside, "images").rename(folder)
            except OSError as error:  # not empty: another run was faster, unless what lies there is something else
                if not (folder / "manifest.json").exists():
                    raise ConfigError(
                        f"cluster.storage: {folder} holds no built-in images ({error}); move it away."
                    ) from error
    return folder


def open_inputs(recipe: Recipe, path: str) -> Inputs:
    """Open the images at `path` for `recipe`. Raises ConfigError or ShardError naming what is wrong with them."""
    data = recipe.data
    whole = open_collection(path)  # listed once: object storage tells 1,000 names a request
    collection = whole.part(data.split, mask=data.keep)
    _check_channels(recipe, collection)
    labelled = labelled_sets(
        whole,
        train_split=data.split,
        eval_split=data.eval_split,
        mask=data.keep,
        holdout=data.holdout,
        seed=recipe.seed,
        bank=max((getattr(e, "bank", 0) for e in recipe.evals.values()), default=0),
        queries=max((getattr(e, "queries", 0) for e in recipe.evals.values()), default=0),
        size=recipe.method.global_crops.size,
        channels=recipe.backbone.channels,
        normalisation=data.normalisation,
    )
    _check_suited(recipe, labelled)
    plan = Plan(
        collection.row_groups,
        seed=recipe.seed,
        global_batch=recipe.global_batch,
        lanes=recipe.lanes,
        window=data.window,
        keep=_kept(collection, labelled),
        weights=collection.weights(),  # of training only: the bank of k-NN has all kept rows
    )
    return Inputs(collection, plan, labelled, _probe(recipe, collection, labelled))


def _check_channels(recipe: Recipe, collection: Collection) -> None:
    """Refuse channels that none of the first images has: one by one they would only count as bad images."""
    channels = recipe.backbone.channels
    if channels in (1, 3):  # whatever an image has becomes grey or RGB
        return
    found = set()
    for data in collection.read(0)["bytes"].to_pylist()[:FIRST_IMAGES]:
        try:
            decode(data, channels=channels)
        except Undecodable as error:
            found.add(error.detail if error.reason == "wrong channels" else "")
        else:
            return
    if any(found):
        raise ConfigError(
            f"backbone.channels = {channels}: none of the first {FIRST_IMAGES} images of data.path = {recipe.data.path} has them "
            f"(one says: {max(found)}); give 1 for grey, 3 for RGB, or the number of bands or pages that the files have."
        )


def _check_suited(recipe: Recipe, labelled: Labelled | None) -> None:
    """Refuse evaluations that these images cannot be used for, before a run comes to the first of them."""
    if labelled is None:  # then none is carried out, and the plan says so
        return
    for name, config in recipe.evals.items():
        if (reason := config.build().unfit(labelled)) is not None:
            raise ConfigError(
                f"evals.{name}: data.path = {recipe.data.path} does not suit it ({reason}); leave it out, or use "
                "recipes/evaluate.py with other images."
            )


def _kept(collection: Collection, labelled: Labelled | None) -> np.ndarray | None:
    """bool [rows], False for what curation left out and for what is held back as queries; None to train on all."""
    masks = [mask for mask in (collection.keep(), labelled.keep if labelled else None) if mask is not None]
    return np.logical_and.reduce(masks) if masks else None


def _probe(recipe: Recipe, collection: Collection, labelled: Labelled | None) -> ImageSet:
    if labelled is not None:
        return labelled.queries.at_most(PROBE_IMAGES, seed=recipe.seed)
    total = sum(collection.row_groups)
    # Not a permutation's first: of 10⁹ rows that would take 8 GB and minutes.
    rows = np.sort(
        generator(recipe.seed, "probe").choice(total, min(PROBE_IMAGES, total), replace=False, shuffle=False)
    )
    labels = np.full(len(rows), -1)
    return ImageSet(collection, rows, labels, size=recipe.method.global_crops.size, channels=recipe.backbone.channels)
