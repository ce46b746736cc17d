"""Our own format: model.safetensors and a config.json that says what builds the network; `open_model` reads it."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from raydino.config import ConfigError
from raydino.export.model import Model, frozen
from raydino.export.verify import Loading
from raydino.nn.config import BackboneConfig
from raydino.nn.weights import load_strictly
from raydino.views import Crops, Normalisation

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT, VERSION = "raydino", 1
MAX_CONFIG_BYTES = 100_000


def write(model: Model, folder: Path) -> Loading:
    """Write `model` into `folder`; returns how it is used."""
    config = {
        **{"format": FORMAT, "version": VERSION, "name": model.name, "step": model.step, "digest": model.digest},
        **{"backbone": model.config.dump(), "size": model.size, "normalisation": model.normalisation.dump()},
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n")
    save_file({name: value.cpu().contiguous() for name, value in model.backbone.state_dict().items()}, folder / WEIGHTS)
    return Loading(
        load='from raydino.launch.model import open_model\n\nmodel = open_model(".")',
        use="cls, registers, patches = model.backbone(images)",
        note="`model.size` and `model.normalisation` say what the images are to be.",
    )


def is_export(path: Path) -> bool:
    """Whether `path` is a folder that `write` filled, or the weights in one."""
    folder = path if path.is_dir() else path.parent
    return (path.is_dir() or path.name == WEIGHTS) and (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def read(path: Path, *, device: str | torch.device = "cpu") -> Model:
    """The model that `write` left at `path`, the folder or its weights.

    Raises:
        ConfigError: config.json or the weights are of another format, a newer version, or not those that were written.
    """
    folder = path if path.is_dir() else path.parent
    try:
        with (folder / CONFIG).open("rb") as file:
            config = json.loads(file.read(MAX_CONFIG_BYTES))
        name, step, digest, size = config["name"], config["step"], config["digest"], _size(config["size"])
        if (config["format"], config["version"]) != (FORMAT, VERSION):
            raise ConfigError(f"format {config['format']} {config['version']}, and this reads {FORMAT} {VERSION}")
        backbone = BackboneConfig().override(config["backbone"])
        normalisation = Normalisation().override(config["normalisation"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"model = {str(folder)!r}: its {CONFIG} is not of this format ({error}); export it again."
        ) from error
    try:
        weights = load_file(folder / WEIGHTS, device=str(device))
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"model = {str(folder)!r}: {WEIGHTS} is damaged ({error}); export it again.") from error
    network = backbone.build(image_size=size, drop_path=0.0).to(device)
    load_strictly(network, weights, origin=f"model = {str(folder)!r}")
    model = frozen(name, network, backbone, size=size, normalisation=normalisation, step=step)
    if model.digest != digest:
        raise ConfigError(
            f"model = {str(folder)!r}: its weights have the digest {model.digest[:16]}…, and {CONFIG} says {digest[:16]}…; "
            "export it again."
        )
    return model


def _size(value: Any) -> Any:
    """A size as JSON has it, checked as that of crops."""
    return Crops(count=1, size=value, scale=(0.5, 1.0)).size
