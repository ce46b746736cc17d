"""An export is good if a fresh process that knows only its folder computes the same features of the same images."""

import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import raydino
from raydino.export.model import Model
from raydino.views import height_width

LIMIT = 1e-4  # of float32 features after their norm, whose entries are of the order of 1
PATIENCE = 1800  # seconds for one fresh process; a ViT-g on two cores takes minutes
OUTPUTS = ("cls", "registers", "patches")


class ExportError(RuntimeError):
    """What was written is not the model; the message says how it differs."""


@dataclass(frozen=True)
class Loading:
    """How to use what a format wrote; the same lines stand in its README and are run to verify it."""

    load: str
    """Python that makes `model`, to be run in the folder."""
    use: str
    """Python from `images`, a normalised float tensor [B, C, H, W], or `pixels`, uint8 [B, H, W, C], to cls [B, D], registers
    [B, R, D], patches [B, P, D]."""
    outputs: tuple[str, ...] = OUTPUTS
    """What `use` makes."""
    any_size: bool = True
    """Whether the features are the model's at sizes other than the one it was trained at."""
    note: str = ""
    """A sentence for those who use it."""


@dataclass(frozen=True)
class Comparison:
    """Features of one batch, by the model and by its export."""

    height: int
    width: int
    difference: float
    """Largest absolute difference of an entry."""

    def __str__(self) -> str:
        return f"{self.height} × {self.width} pixels: {self.difference:.1e}"


def sizes(model: Model) -> list[tuple[int, int]]:
    """Heights and widths to compare at: as trained, a smaller or larger one, and one that is not square."""
    patch = model.config.patch_size
    high, wide = (side // patch for side in height_width(model.size))
    other = (max(2, high * 3 // 4), max(2, wide * 3 // 4)) if min(high, wide) > 3 else (high + 2, wide + 2)
    oblong = (high + 1, max(1, wide - 1)) if high + 1 != wide - 1 else (high + 2, wide - 1)
    return [height_width(model.size), *((rows * patch, columns * patch) for rows, columns in (other, oblong))]


def compare(model: Model, folder: Path, loading: Loading, batches: Sequence[Tensor]) -> list[Comparison]:
    """Run `loading` in a fresh process in `folder` on `batches`, uint8 [B, C, H, W], one for each size.

    Raises:
        ExportError: the process fails, or gives other shapes.
    """
    with tempfile.TemporaryDirectory(prefix="raydino-verify-") as beside:
        for number, pixels in enumerate(batches):
            images = model.normalisation(pixels).numpy()
            np.savez(Path(beside, f"{number}-in.npz"), images=images, pixels=pixels.movedim(1, 3).numpy())
        _run(_script(loading, beside, len(batches)), folder)
        return [
            _compared(model, pixels, loading.outputs, Path(beside, f"{number}.npz"))
            for number, pixels in enumerate(batches)
        ]


def require_same(comparisons: Sequence[Comparison]) -> None:
    """Raise ExportError where a difference is above LIMIT, or not a number."""
    if bad := [each for each in comparisons if not each.difference <= LIMIT]:
        raise ExportError(
            f"its features differ from the model's by more than {LIMIT:g} ({'; '.join(map(str, bad))}): nothing was kept."
        )


def _script(loading: Loading, beside: str, count: int) -> str:
    lines = [
        "import numpy as np, torch",
        "torch.set_grad_enabled(False)",
        loading.load,
        f"for number in range({count}):",
        f"    given = np.load(f{beside + '/{number}-in.npz'!r})",
        "    images, pixels = torch.from_numpy(given['images']), given['pixels']",
        textwrap.indent(loading.use, "    "),
        f"    np.savez(f{beside + '/{number}.npz'!r}, {', '.join(f'{name}={name}' for name in loading.outputs)})",
    ]
    return "\n".join(lines)


def _run(script: str, folder: Path) -> None:
    root = str(Path(raydino.__path__[0]).parent)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
        "HF_HUB_OFFLINE": "1",  # what is not in the folder is not in the export
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", script],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        raise ExportError(f"a fresh process did not load and run it within {PATIENCE} s.") from None
    if done.returncode:
        raise ExportError(f"a fresh process could not load and run it:\n{done.stderr.strip()[-2000:]}")


def _compared(model: Model, pixels: Tensor, outputs: Sequence[str], path: Path) -> Comparison:
    with torch.inference_mode():
        expected = model.backbone(model.normalisation(pixels.to(next(model.backbone.parameters()).device)))
    differences = [0.0]
    with np.load(path) as found:
        for name in outputs:
            ours, theirs = getattr(expected, name).float().cpu().numpy(), found[name]
            if ours.shape != theirs.shape:
                raise ExportError(f"{name} is {list(theirs.shape)}, and the model's {list(ours.shape)}.")
            if ours.size:  # without registers there is nothing to compare
                differences.append(float(np.abs(ours - theirs).max()))
    return Comparison(*pixels.shape[-2:], difference=float(np.max(differences)))  # NaN, if one is
