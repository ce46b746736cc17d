"""The command line of evaluations: which models, which images, which protocols; then run, tell, record.

Heavy imports happen after the command line is parsed and checked, so that `--help` and typing errors answer at once.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydino.config import ConfigError, read_yaml
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
from raydino.launch.cluster import ClusterConfig
from raydino.launch.engine.group import in_group
from raydino.launch.subjects import Asked, name_of, open_images, opened, run_folder, suited
from raydino.launch.terminal.arguments import check_least, parser_of, share_cores
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


def main(description: str, argv: Sequence[str] | None = None) -> int:
    """Carry out the command line; returns the exit status, or leaves with one line per fault."""
    share_cores()
    try:
        options = _parser(description).parse_args(argv)
        check_least(options, {"workers": 1})
        asked = _asked(options)
        if options.workers > 1:
            say(f"evaluating on {options.workers} workers of Ray; each result is written as soon as it is there")
            found = in_group(partial(_carry_out, asked), ClusterConfig(workers=options.workers))
        else:
            import torch

            found = _carry_out(asked, 0, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        if found is not None:
            _tell(asked, found)
    except (ConfigError, OSError) as error:
        fail(str(error))
    return 0


def _parser(description: str) -> argparse.ArgumentParser:
    parser = parser_of(description)
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
    add(
        "--workers",
        type=int,
        default=1,
        help="processes of Ray that share the images, a GPU each where there are some (1)",
    )
    add("--untracked", action="store_true", help="leave the run's record in MLflow alone")
    return parser


def _asked(options: argparse.Namespace) -> Asked:
    names = [name.strip() for name in options.evals.split(",") if name.strip()]
    if not names:
        raise ConfigError(f"evals = {options.evals!r}: names nothing; give some of {', '.join(EVALS)}.")
    if unknown := [name for name in names if name not in EVALS]:
        raise ConfigError(f"evals = {unknown[0]!r}: there is no such evaluation; give some of {', '.join(EVALS)}.")
    paths = list(dict.fromkeys(options.data))
    if len({name_of(path) for path in paths}) < len(paths):
        raise ConfigError(
            f"data = {', '.join(paths)}: two folders have one name, and a table would mix them; rename one."
        )
    if options.size is not None and options.size <= 0:
        raise ConfigError(f"size = {options.size}: give pixels, such as 224.")
    return Asked(
        models=tuple(dict.fromkeys(options.model)),
        configs=configured(names, options.set),
        data=tuple(paths),
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


@dataclass(frozen=True)
class _Found:
    """What a command line comes to."""

    results: "list[Result]"
    models: list[tuple[str, int | None]]
    """Name and step of each model."""
    folder: Path


def _carry_out(asked: Asked, rank: int, device: "torch.device") -> _Found | None:
    """Evaluate, and write each result as soon as it is there; None at other ranks than 0."""
    from raydino.launch.results import save

    models = opened(asked, device)
    evaluations = {name: config.build() for name, config in asked.configs.items()}
    pictures = {model.name: [open_images(asked, path, model) for path in asked.data] for model in models}
    pairs = suited(evaluations, dict(zip(asked.data, pictures[models[0].name], strict=True)))
    results: list[Result] = []
    folder = Path(asked.out or _folder_of(asked.models[0], models[0])).resolve()
    for model in models:
        for index, path in enumerate(asked.data):
            wanted = {name: evaluations[name] for name in pairs[path]}
            found = evaluate(model, wanted, pictures[model.name][index], data=name_of(path), device=device)
            results += found
            if rank == 0:
                save(folder, found)  # now: what comes next may take hours, or fail
                for result in found:
                    say(f"{result.model}  {result.evaluation} on {result.data}: {_headline(result.metrics)}")
    return None if rank else _Found(results, [(model.name, model.step) for model in models], folder)


def _tell(asked: Asked, found: _Found) -> None:
    """The table, for the terminal and for MLflow."""
    from raydino.launch.results import table, track

    say(f"\n{table(found.results)}\n{found.folder}")
    if asked.tracked:
        for spec, (name, step) in zip(asked.models, found.models, strict=True):
            track(run_folder(spec), step, [result for result in found.results if result.model == name], found.folder)


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


def _folder_of(spec: str, model: "Model") -> Path:
    run = run_folder(spec)
    return (
        Path("runs", "evaluations", model.name.replace(":", "-").replace("/", "-"))
        if run is None
        else run / "evaluations"
    )


def _headline(metrics: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in list(metrics.items())[:4])


def _device_name(device: "torch.device") -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
