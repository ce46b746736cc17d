"""What evaluations are carried out on: the models and the images that a command line names.

Heavy imports happen inside the functions, so that the command line is answered without them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from raydino.config import ConfigError
from raydino.evals.config import EvaluationConfig

if TYPE_CHECKING:
    import torch

    from raydino.evals.evaluation import Evaluation, Labelled
    from raydino.export.model import Model

PIXELS = "pixels"
"""Names the images themselves as a model."""


@dataclass(frozen=True)
class Asked:
    """What a command line asks for, checked as far as it can be without opening anything."""

    models: tuple[str, ...]
    configs: dict[str, EvaluationConfig]
    data: tuple[str, ...]
    out: str | None
    size: int | None
    seed: int
    holdout: float
    split: str | None
    eval_split: str | None
    tracked: bool


def opened(asked: Asked, device: "torch.device") -> "list[Model]":
    """The models, with crops of the size asked for. Raises ConfigError where one cannot be opened or two have one name."""
    from raydino.launch.model import open_model

    known = {spec: open_model(spec, device=device) for spec in asked.models if spec != PIXELS}
    like = next(iter(known.values()), None)
    models = [known[spec] if spec != PIXELS else _pixels(like, device) for spec in asked.models]
    if asked.size is not None:
        models = [replace(model, size=asked.size) for model in models]
    if len({model.name for model in models}) < len(models):
        names = ", ".join(model.name for model in models)
        raise ConfigError(f"model: {names}: two have one name, and their results could not be told apart; give one.")
    return models


def _pixels(like: "Model | None", device: "torch.device") -> "Model":
    """The images themselves, seen as `like` sees them; without it as 224 pixels in patches of 16."""
    from raydino.export.model import frozen
    from raydino.nn.config import BackboneConfig
    from raydino.nn.layers import Pixels
    from raydino.views import Normalisation

    config = BackboneConfig() if like is None else like.config
    backbone = Pixels(channels=config.channels, patch_size=config.patch_size).to(device)
    size, normalise = (224, Normalisation()) if like is None else (like.size, like.normalisation)
    return frozen(PIXELS, backbone, config, size=size, normalisation=normalise)


def open_images(asked: Asked, path: str, model: "Model") -> "Labelled":
    """The images at `path` as `model` sees them. Raises ConfigError or ShardError."""
    import numpy as np

    from raydino.evals.evaluation import Labelled, judged_split, labelled_sets
    from raydino.evals.images import ImageSet
    from raydino.shards.reader import open_collection

    whole = open_collection(address_of(path))
    splits = whole.manifest.splits
    if asked.split is not None and asked.split not in splits:
        raise ConfigError(f"split = {asked.split!r}: {path} has {', '.join(splits)}; give one of them.")
    train = asked.split or ("train" if "train" in splits else splits[0])
    most = [(getattr(c, "bank", 0), getattr(c, "queries", 0)) for c in asked.configs.values()]
    sight = {"size": model.size, "channels": model.config.channels}
    labelled = labelled_sets(
        whole,
        train_split=train,
        eval_split=asked.eval_split,
        holdout=asked.holdout,
        seed=asked.seed,
        bank=max((bank for bank, _ in most), default=0),
        queries=max((queries for _, queries in most), default=0),
        normalisation=model.normalisation,
        **sight,
    )
    if labelled is None:
        none = np.empty(0, dtype=np.int64)
        empty = ImageSet(whole, none, none, **sight)
        judged = judged_split(whole, train_split=train, asked=asked.eval_split)
        parts = {"train": whole.part(train), "test": None if judged is None else judged[0]}
        labelled = Labelled(empty, empty, (), normalisation=model.normalisation, seed=asked.seed, **parts)
    if labelled.test is None:  # one split: all of it is judged by those that learn from nothing
        return replace(labelled, train=None, test=labelled.train)
    return labelled


def suited(evaluations: "Mapping[str, Evaluation]", data: "Mapping[str, Labelled]") -> dict[str, list[str]]:
    """Names of the evaluations that each folder of images suits. Raises ConfigError for an evaluation that none suits."""
    reasons = {name: {path: e.unfit(labelled) for path, labelled in data.items()} for name, e in evaluations.items()}
    for name, found in reasons.items():
        if all(reason is not None for reason in found.values()):
            why = "; ".join(f"{name_of(path)}: {reason}" for path, reason in found.items())
            raise ConfigError(
                f"evals = {name!r}: no --data suits it ({why}); give images that have it, or leave it out."
            )
    return {path: [name for name in evaluations if reasons[name][path] is None] for path in data}


def address_of(path: str) -> str:
    """A folder's address that holds wherever the command is started."""
    return path if "://" in path else str(Path(path).expanduser().resolve())


def name_of(path: str) -> str:
    """A folder's own name, for tables."""
    return path.rstrip("/").rpartition("/")[2] or path


def run_folder(spec: str) -> Path | None:
    """The folder of the run that a spec names a trained step of; None for a model of another kind."""
    from raydino.launch.model import run_folder as folder_of

    return None if spec.startswith("random:") else folder_of(spec)
