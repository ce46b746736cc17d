"""The command line of evaluations: which models, which images, which protocols; then run, tell, record.

Heavy imports happen after the command line is parsed and checked, so that `--help` and typing errors answer at once.
"""

import argparse
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydino.config import ConfigError, read_yaml, read_yaml_file
from raydino.evals.config import (
    CopiesConfig,
    DepthConfig,
    DiscoveryConfig,
    EvaluationConfig,
    KNNGridConfig,
    LinearConfig,
    LogisticConfig,
    RetrievalConfig,
    RobustnessConfig,
    SegmentationConfig,
    SpectrumConfig,
    VideoConfig,
)
from raydino.launch.terminal.command import fail, say, version

if TYPE_CHECKING:
    import torch

    from raydino.evals.evaluation import Evaluation, Labelled
    from raydino.export.model import Model
    from raydino.launch.results import Result

EVALS: Mapping[str, EvaluationConfig] = {
    "knn": KNNGridConfig(),
    "linear": LinearConfig(),
    "logistic": LogisticConfig(),
    "retrieval": RetrievalConfig(),
    "segmentation": SegmentationConfig(),
    "depth": DepthConfig(),
    "copies": CopiesConfig(),
    "video": VideoConfig(),
    "discovery": DiscoveryConfig(),
    "spectrum": SpectrumConfig(),
    "robustness": RobustnessConfig(),
}
"""What can be asked for by name, with its defaults."""
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


def main(description: str, argv: Sequence[str] | None = None) -> int:
    """Carry out the command line; returns the exit status, or leaves with one line per fault."""
    # Before torch comes: threads that spin at a barrier make small products 75 times slower on cores that others use too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        asked = _asked(_parser(description).parse_args(argv))
        with _workers() as (rank, device):
            _carry_out(asked, rank=rank, device=device)
    except (ConfigError, OSError) as error:
        fail(str(error))
    return 0


def _parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", action="append", required=True, help="RUN, RUN@STEP, random:RUN, timm:NAME, pixels; repeatable")
    add("--evals", default="knn,linear", help=f"of {', '.join(EVALS)} (knn,linear)")
    add("--data", action="append", required=True, help="folder of images, local or a URI; repeatable")
    add("--set", action="append", default=[], metavar="EVAL.FIELD=VALUE", help="a setting of an evaluation; repeatable")
    add("--out", help="folder of the results (evaluations/ in the run's folder, else runs/evaluations/)")
    add("--size", type=int, help="side of the crops of labelled images, pixels (that of the model)")
    add("--seed", type=int, default=0, help="seed of what is held back and of the heads (0)")
    add("--holdout", type=float, default=0.2, help="share that is judged where there is but one split (0.2)")
    add("--split", help="split to learn from (train)")
    add("--eval-split", help="split that is judged (test, validation or val)")
    add("--untracked", action="store_true", help="leave the run's record in MLflow alone")
    return parser


def _asked(options: argparse.Namespace) -> Asked:
    names = [name.strip() for name in options.evals.split(",") if name.strip()]
    if not names:
        raise ConfigError(f"evals = {options.evals!r}: names nothing; give some of {', '.join(EVALS)}.")
    if unknown := [name for name in names if name not in EVALS]:
        raise ConfigError(f"evals = {unknown[0]!r}: there is no such evaluation; give some of {', '.join(EVALS)}.")
    if options.size is not None and options.size <= 0:
        raise ConfigError(f"size = {options.size}: give pixels, such as 224.")
    return Asked(
        models=tuple(dict.fromkeys(options.model)),
        configs=configured(names, options.set),
        data=tuple(dict.fromkeys(options.data)),
        out=options.out,
        size=options.size,
        seed=options.seed,
        holdout=options.holdout,
        split=options.split,
        eval_split=options.eval_split,
        tracked=not options.untracked,
    )


def configured(names: Sequence[str], settings: Sequence[str]) -> dict[str, EvaluationConfig]:
    """The evaluations by name, with settings "name.field=value" (the value in YAML). Raises ConfigError."""
    configs = {name: EVALS[name] for name in names}
    for setting in settings:
        path, equals, text = setting.partition("=")
        name, dot, field = path.strip().partition(".")
        if not (equals and dot and field):
            raise ConfigError(f"set = {setting!r}: write EVAL.FIELD=VALUE, such as knn.k=10.")
        if name not in configs:
            raise ConfigError(f"set = {setting!r}: {name!r} is not among --evals {','.join(names)}; add it there.")
        value = read_yaml(f"value: {text}", origin=f"set = {setting!r}")["value"]
        try:
            configs[name] = configs[name].override({field.replace("-", "_"): value})
        except ConfigError as error:
            raise ConfigError(f"{name}.{error}") from None
    return configs


@contextmanager
def _workers() -> "Iterator[tuple[int, torch.device]]":
    """This process's rank and device; under torchrun, joined with the others."""
    import torch
    import torch.distributed as dist

    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield 0, device
        return
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield dist.get_rank(), device
    finally:
        dist.destroy_process_group()


def _carry_out(asked: Asked, *, rank: int, device: "torch.device") -> None:
    from raydino.launch.results import save, table

    models = opened(asked, device)
    evaluations = {name: config.build() for name, config in asked.configs.items()}
    pictures = {model.name: [_open_data(asked, path, model) for path in asked.data] for model in models}
    pairs = suited(evaluations, dict(zip(asked.data, pictures[models[0].name], strict=True)))
    results: list[Result] = []
    for model in models:
        for index, path in enumerate(asked.data):
            wanted = {name: evaluations[name] for name in pairs[path]}
            found = evaluate(model, wanted, pictures[model.name][index], data=_name_of(path), device=device)
            results += found
            if rank == 0:
                for result in found:
                    say(f"{result.model}  {result.evaluation} on {result.data}: {_headline(result.metrics)}")
    if rank == 0:
        folder = Path(asked.out or _folder_of(asked.models[0], models[0]))
        save(folder, results)
        say(f"\n{table(results)}\n{folder}")
        if asked.tracked:
            for spec, model in zip(asked.models, models, strict=True):
                _track(spec, model, [result for result in results if result.model == model.name], folder)


def evaluate(
    model: "Model", evaluations: "Mapping[str, Evaluation]", labelled: "Labelled", *, data: str, device: "torch.device"
) -> "list[Result]":
    """Run evaluations of a model on images called `data`, each crop encoded once. All ranks call it together.

    Raises ConfigError where an evaluation finds that it cannot be done.
    """
    from raydino.evals.features import shared_features
    from raydino.launch.results import Result

    results = []
    collection = labelled.test or labelled.train
    digest = "" if collection is None else collection.manifest.files_digest
    with shared_features(blocks=max((e.blocks for e in evaluations.values()), default=1)):
        for name, evaluation in evaluations.items():
            start = time.perf_counter()
            try:
                metrics = evaluation.run(model.backbone, labelled)
            except ConfigError:
                raise
            except ValueError as error:
                raise ConfigError(f"{name} on {data}: {error}") from error
            results.append(
                Result(
                    model=model.name,
                    digest=model.digest,
                    step=model.step,
                    evaluation=name,
                    data=data,
                    data_digest=digest,
                    protocol=evaluation.protocol,
                    images=evaluation.images(labelled),
                    metrics=metrics,
                    seconds=round(time.perf_counter() - start, 2),
                    device=_device_name(device),
                    version=version(),
                )
            )
    return results


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


def _open_data(asked: Asked, path: str, model: "Model") -> "Labelled":
    """The images at `path` as `model` sees them. Raises ConfigError or ShardError."""
    import numpy as np

    from raydino.evals.evaluation import EVAL_SPLITS, ImageSet, Labelled, labelled_sets
    from raydino.shards.reader import open_collection

    whole = open_collection(path if "://" in path else str(Path(path).expanduser().resolve()))
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
        labelled = Labelled(empty, empty, (), normalisation=model.normalisation, seed=asked.seed)
    judged = asked.eval_split or next((s for s in EVAL_SPLITS if s in splits and s != train), None)
    if judged is None:  # one split: all of it is judged by those that learn from nothing
        return replace(labelled, train=None, test=whole.part(train))
    return replace(labelled, train=whole.part(train), test=whole.part(judged))


def suited(evaluations: "Mapping[str, Evaluation]", data: "Mapping[str, Labelled]") -> dict[str, list[str]]:
    """Names of the evaluations that each folder of images suits. Raises ConfigError for an evaluation that none suits."""
    reasons = {name: {path: e.unfit(labelled) for path, labelled in data.items()} for name, e in evaluations.items()}
    for name, found in reasons.items():
        if all(reason is not None for reason in found.values()):
            why = "; ".join(f"{_name_of(path)}: {reason}" for path, reason in found.items())
            raise ConfigError(
                f"evals = {name!r}: no --data suits it ({why}); give images that have it, or leave it out."
            )
    return {path: [name for name in evaluations if reasons[name][path] is None] for path in data}


def _name_of(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2] or path


def _folder_of(spec: str, model: "Model") -> Path:
    run = _run_folder(spec)
    return (
        Path("runs", "evaluations", model.name.replace(":", "-").replace("/", "-"))
        if run is None
        else run / "evaluations"
    )


def _run_folder(spec: str) -> Path | None:
    """The folder of the run that a spec names a step of; None for a model of another kind."""
    for folder in (Path(spec), Path(spec.rpartition("@")[0])):
        if str(folder) != "." and (folder / "recipe.yaml").is_file():
            return folder
    return None


def _track(spec: str, model: "Model", results: "Sequence[Result]", folder: Path) -> None:
    """Add the figures to the model's own run in MLflow, if it has one; an outage is told and no more."""
    from raydino.launch.cluster import ClusterConfig
    from raydino.launch.results import TABLE_FILE
    from raydino.launch.resume import read_run
    from raydino.tracking.mlflow_run import add_to_run
    from raydino.tracking.opening import TrackerUnavailable
    from raydino.tracking.outbox import recorded_run
    from raydino.tracking.run import evaluation_metric

    run = _run_folder(spec)
    if run is None or (run_id := recorded_run(run) or read_run(run).get("mlflow_run_id")) is None:
        return
    cluster = ClusterConfig().override(read_yaml_file(run / "cluster.yaml"))
    address = cluster.tracking_uri or f"sqlite:///{(run.resolve().parent / 'mlflow.db').as_posix()}"
    metrics = {
        evaluation_metric(f"{result.evaluation}-{result.data}", name): value
        for result in results
        for name, value in result.metrics.items()
    }
    try:
        add_to_run(
            tracking_uri=address, run_id=run_id, metrics=metrics, step=model.step or 0, files=[folder / TABLE_FILE]
        )
    except TrackerUnavailable as error:
        say(f"warning  {error}")


def _headline(metrics: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in list(metrics.items())[:4])


def _device_name(device: "torch.device") -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
