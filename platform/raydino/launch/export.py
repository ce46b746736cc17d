"""The command line of recipes/export.py: write a model in another library's format, prove it, and only then put it in place."""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from raydino.config import ConfigError, read_yaml_file
from raydino.launch.terminal.arguments import parser_of
from raydino.tracking.redact import redact_text

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from raydino.export.card import Origin
    from raydino.export.model import Model
    from raydino.export.verify import Loading

FORMATS = ("timm", "hf", "safetensors", "onnx", "mlflow")
COUNT = 4  # images compared at each size
README = "README.md"


def main(description: str, argv: Sequence[str] | None = None) -> int:
    """Carry out the command line; returns the exit status."""
    parser = _parser(description)
    options = parser.parse_args(argv)
    if bool(options.model) == bool(options.weights):
        parser.error("give --model SPEC, or --import FILE.pth with --arch NAME")
    if options.weights and not options.arch:
        parser.error("--import needs --arch, timm's name of the network, such as vit_small_patch14_dinov2")
    from raydino.export.verify import ExportError
    from raydino.tracking.opening import TrackerUnavailable

    try:
        return _carry_out(options)
    except (ConfigError, ExportError, TrackerUnavailable, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser(description: str) -> argparse.ArgumentParser:
    parser = parser_of(description)
    add = parser.add_argument
    add("--model", help="folder of a run (RUN or RUN@STEP), timm:NAME, or a folder exported as safetensors")
    add("--import", dest="weights", metavar="FILE.pth", help="instead: weights that DINO or DINOv2 published")
    add("--arch", help="with --import: timm's name of the network, such as vit_small_patch14_dinov2")
    add("--format", choices=FORMATS, default="safetensors", help="what to write (safetensors: raydino's own)")
    add("--out", required=True, help="folder to make; nothing is left there unless it is verified")
    add("--images", nargs="+", default=[], help="images to compare on (the run's own, else built-in ones)")
    add("--register", metavar="NAME", help="with --format mlflow: a new version of this model in the run's registry")
    add("--tracker", help="MLflow address of that registry (mlflow.db beside the run)")
    return parser


def _carry_out(options: argparse.Namespace) -> int:
    out = Path(options.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"out = {out}: there is something; give a new folder.")
    tracker, run_id = _registry(options) if options.register else ("", "")
    model, origin = _opened(options)
    if options.model:
        print(f"{model.name}: {model.config.name}, {model.backbone.width} dimensions")
    pixels, images = _images(options, model)
    with _beside(out) as folder:
        loading = _writer(options.format)(model, folder)
        _verify(model, folder, loading, pixels, origin, images)
    print(f"{out}: {options.format}, loaded in a fresh process and compared; {README} says how to use it")
    if options.register:
        from raydino.tracking.served import register

        version = register(out, options.register, tracking_uri=tracker, run_id=run_id, digest=model.digest)
        print(f"models:/{options.register}/{version} in {redact_text(tracker)}")
    return 0


def _registry(options: argparse.Namespace) -> tuple[str, str]:
    """Address of the run's tracker, and the run's id there. Raises ConfigError."""
    from raydino.launch.cluster import ClusterConfig
    from raydino.launch.model import run_folder
    from raydino.launch.resume import read_run

    folder = run_folder(options.model) if options.model else None
    run_id = read_run(folder).get("mlflow_run_id") if folder is not None else None
    if folder is None or options.format != "mlflow" or not run_id:
        raise ConfigError(
            f"register = {options.register}: is for --format mlflow of a run that MLflow has recorded; leave it out."
        )
    return options.tracker or ClusterConfig(storage=str(folder.resolve().parent)).tracker(), run_id


def _opened(options: argparse.Namespace) -> "tuple[Model, Origin]":
    from raydino.export.card import Origin
    from raydino.launch.model import open_model, run_folder

    if options.weights:
        from raydino.export.from_pth import import_pth

        imported = import_pth(Path(options.weights), options.arch)
        note = f"Imported from {Path(options.weights).name} as {options.arch}: {imported}."
        print(f"{Path(options.weights).name} as {options.arch}: {imported}")
        return imported.model, Origin(note=note)
    model = open_model(options.model)
    folder = run_folder(options.model)
    return model, Origin(note="") if folder is None else _of_run(folder)


def _of_run(folder: Path) -> "Origin":
    from raydino.export.card import Origin
    from raydino.launch.resume import RECIPE_FILE, read_run
    from raydino.launch.summary import SUMMARY

    summary = folder / SUMMARY
    return Origin(
        recipe=_without_places(read_yaml_file(folder / RECIPE_FILE)),
        data_digest=read_run(folder).get("data_digest", ""),
        metrics=json.loads(summary.read_text()).get("metrics", {}) if summary.exists() else {},
    )


def _without_places(recipe: dict[str, Any]) -> str:
    """A recipe as YAML in which images and weights have their last name alone: a card is for others."""
    data, init = recipe["data"], recipe.get("init", {})
    named = {
        "path": Path(data["path"]).name,
        "stream_against": [Path(path).name for path in data.get("stream_against") or ()],
    }
    init = {**init, "weights": Path(init["weights"]).name} if init.get("weights") else init
    return yaml.safe_dump({**recipe, "data": {**data, **named}, "init": init}, sort_keys=False, allow_unicode=True)


def _writer(name: str):  # noqa: ANN202 (a function of each format's file)
    if name == "timm":
        from raydino.export.to_timm import write
    elif name == "hf":
        from raydino.export.to_hf import write
    elif name == "mlflow":
        from raydino.export.to_mlflow import write
    elif name == "onnx":
        from raydino.export.to_onnx import write
    else:
        from raydino.export.to_safetensors import write
    return write


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A folder that becomes `out` if all goes well, and else is gone."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield folder
        folder.chmod(0o755)  # mkdtemp's are for the owner alone, and an export is to be handed out
        folder.replace(out)  # an empty folder may be there
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _verify(
    model: "Model",
    folder: Path,
    loading: "Loading",
    pixels: "list[np.ndarray]",
    origin: "Origin",
    images: str,
) -> None:
    """Compare at every size that the format keeps, print it, and write the model card. Raises ExportError."""
    from raydino.export.card import card
    from raydino.export.verify import compare, require_same, sizes

    comparisons = compare(model, folder, loading, [_batch(pixels, size) for size in sizes(model)])
    binding = comparisons if loading.any_size else comparisons[:1]
    for each in comparisons:
        print(f"largest difference at {each}{'' if each in binding else ' (another rule for positions: not claimed)'}")
    require_same(binding)
    (folder / README).write_text(card(model, origin, loading, binding, images=f"{len(pixels)} {images}"))


def _batch(pixels: "list[np.ndarray]", size: tuple[int, int]) -> "Tensor":
    """Images as evaluations see them: uint8 [B, C, H, W]."""
    import numpy as np
    import torch

    from raydino.evals.images import centre_crop

    return torch.from_numpy(np.stack([centre_crop(image, size) for image in pixels]))


def _images(options: argparse.Namespace, model: "Model") -> "tuple[list[np.ndarray], str]":
    """A few images uint8 [H, W, C] to compare on, and what they are."""
    from raydino.data.decode import Undecodable, decode
    from raydino.launch.model import run_folder

    channels = model.config.channels
    if options.images:
        try:
            return [decode(Path(path).read_bytes(), channels=channels) for path in options.images], "images given"
        except Undecodable as error:
            raise ConfigError(f"images: one of them cannot be decoded ({error}); leave it out.") from error
    folder = run_folder(options.model) if options.model else None
    own = _own_images(folder, channels) if folder is not None else []
    if own:
        return own, "images of the run's own data"
    if folder is not None:
        print("note: the run's own images cannot be read here; comparing on built-in ones")
    return _builtin(channels), "built-in images"


def _own_images(run: Path, channels: int) -> "list[np.ndarray]":
    from raydino.data.decode import Undecodable, decode
    from raydino.launch.inputs import BUILTIN
    from raydino.shards.reader import open_collection
    from raydino.shards.schema import ShardError

    data = read_yaml_file(run / "recipe.yaml")["data"]
    path = str(run.resolve().parent / "builtin-images") if data["path"] == BUILTIN else str(data["path"])
    found = []
    try:
        for content in open_collection(path, split=data["split"]).read(0)["bytes"].to_pylist():
            try:
                found.append(decode(content, channels=channels))
            except Undecodable:
                continue
            if len(found) == COUNT:
                break
    except (ShardError, ConfigError, OSError):
        return []
    return found


def _builtin(channels: int) -> "list[np.ndarray]":
    import numpy as np

    from raydino.curation.synthetic import CLASSES, texture

    numbers = range(COUNT)
    return [np.stack([texture(CLASSES[n], 0, "export", n, c) for c in range(channels)], axis=2) for n in numbers]
