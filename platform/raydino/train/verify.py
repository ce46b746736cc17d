"""Whether a checkpoint may be used: its files are those that were written, and what they hold fits and is sound."""

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from raydino.train.durable import sha256

MANIFEST, COMMIT = "MANIFEST.json", "COMMIT"
FILES = ("model.safetensors", "optimizer.safetensors", "meta.json")
SHOWN = 10  # tensors named in a message; the others are counted
PICKLES = (
    b"\x80\x02",
    b"\x80\x03",
    b"\x80\x04",
    b"\x80\x05",
    b"PK\x03\x04",
)  # how they begin: bare, and zipped by torch.save
PICKLE_NAMES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt")


class CheckpointError(RuntimeError):
    """No checkpoint can be used or saved; the message says which were tried and what was wrong with each."""


def damage(path: Path) -> str | None:
    """What is wrong with a committed checkpoint's files, or None. Raises CheckpointError for links and pickles."""
    _refuse_links(path)
    try:
        if (path / COMMIT).read_text() != sha256(path / MANIFEST):
            return f"{MANIFEST} is not the committed one"
        manifest = json.loads((path / MANIFEST).read_text())
        for extra in sorted({p.name for p in path.iterdir()} - {*FILES, MANIFEST, COMMIT}):
            _refuse_pickle(path / extra)
            return f"unexpected file {extra}"
        for name in FILES:
            expected = manifest[name]
            if (size := (path / name).stat().st_size) != expected["bytes"]:
                return f"{name} has {size:,} bytes, not {expected['bytes']:,}"
            if (digest := sha256(path / name)) != expected["sha256"]:
                return f"{name} has sha256 {digest[:16]}…, not {expected['sha256'][:16]}…"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def require_same(path: str, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Refuse tensors of another architecture. Raises CheckpointError with the first of them and their number."""
    unlike = [
        f"{name} {_shape(expected.get(name))} here, {_shape(found.get(name))} there"
        for name in sorted(expected.keys() | found.keys())
        if _shape(expected.get(name)) != _shape(found.get(name))
    ]
    if unlike:
        raise CheckpointError(
            f"{path} is of another architecture: {some(unlike)}. Go on with the recipe it was made with, or start a run under "
            "another name."
        )


def require_finite(path: Path, *parts: Mapping[str, Tensor]) -> None:
    """Refuse weights that are NaN or infinite. Raises CheckpointError naming them."""
    bad = [name for part in parts for name, value in part.items() if not value.isfinite().all()]
    if bad:
        raise CheckpointError(
            f"{path}: NaN or infinite values in {some(bad)}; remove this checkpoint to go on from the one before."
        )


def _refuse_links(path: Path) -> None:
    for link in (path, *path.iterdir()):
        if link.is_symlink():
            raise CheckpointError(
                f"{link} is a link to {link.readlink()}: a checkpoint holds its own files; copy them."
            )


def _refuse_pickle(path: Path) -> None:
    with path.open("rb") as file:
        if path.suffix in PICKLE_NAMES or file.read(4).startswith(PICKLES):
            raise CheckpointError(
                f"{path} is a pickle: loading one can run any code, so a checkpoint has none; remove it."
            )


def _shape(tensor: Tensor | None) -> str:
    return "absent" if tensor is None else f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def some(names: list[str]) -> str:
    """The first of `names` and how many there are."""
    more = f" and {len(names) - SHOWN} more ({len(names)} in all)" if len(names) > SHOWN else f" ({len(names)} in all)"
    return "; ".join(names[:SHOWN]) + more
