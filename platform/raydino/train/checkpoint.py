"""Checkpoints by a commit protocol of our own: after a crash at any moment the newest committed one loads whole, or
an older one does.

A checkpoint is written to a temporary folder, every file hashed into MANIFEST.json, flushed to disk, the folder
renamed, and only then
COMMIT written, which holds the manifest's hash. Reading starts at the newest COMMIT and verifies every hash before
any weight is used.
No pickle: tensors are safetensors, the rest JSON. Ray's own checkpoint bookkeeping is not relied on: it loses the
last checkpoint on a kill and hands out broken ones .
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

SCHEMA = 1
log = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """No checkpoint can be used; the message says which were tried and what was wrong with each."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint in memory."""

    step: int
    """Steps finished: training goes on at this step."""
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    meta: dict[str, Any]


def save(folder: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Commit `checkpoint` as folder/step-N and delete all but the newest `keep`. One rank calls it.

    Raises:
        OSError: the disk is full or not writable; the temporary folder is removed and older checkpoints stay.
    """
    final = folder / f"step-{checkpoint.step:08d}"
    temporary = folder / f".{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        save_file(_plain(checkpoint.model), temporary / "model.safetensors")
        save_file(_plain(checkpoint.optimizer), temporary / "optimizer.safetensors")
        meta = {"schema": SCHEMA, "step": checkpoint.step, **checkpoint.meta}
        (temporary / "meta.json").write_text(json.dumps(meta, indent=1, sort_keys=True))
        files = sorted(path for path in temporary.iterdir())
        manifest = {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in files}
        (temporary / "MANIFEST.json").write_text(json.dumps(manifest, indent=1, sort_keys=True))
        for path in [*files, temporary / "MANIFEST.json", temporary]:
            _flush(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(final, ignore_errors=True)  # an uncommitted or rejected folder of the same step
    temporary.rename(final)
    (final / "COMMIT").write_text(_sha256(final / "MANIFEST.json"))
    for path in (final / "COMMIT", final, folder):
        _flush(path)
    for old in committed(folder)[keep:]:
        _remove(old)
    return final


def committed(folder: Path) -> list[Path]:
    """Checkpoints with a COMMIT, newest first; not yet verified."""
    return sorted((path.parent for path in folder.glob("step-*/COMMIT")), reverse=True)


def load_newest(folder: Path, *, device: str | torch.device = "cpu") -> Checkpoint | None:
    """The newest checkpoint that verifies, or None where none was ever committed.

    Raises:
        CheckpointError: checkpoints exist and all of them are damaged.
    """
    faults = []
    for path in committed(folder):
        fault = _fault(path)
        if fault is None:
            return _load(path, device)
        faults.append(f"{path.name}: {fault}")
        log.warning("checkpoint %s cannot be used (%s); falling back to the one before", path.name, fault)
    if faults:
        raise CheckpointError(
            f"no usable checkpoint in {folder}: "
            + "; ".join(faults)
            + ". Restore one from a copy, or start a run under another name."
        )
    return None


def sweep(folder: Path) -> None:
    """Remove what a crash left: temporary folders and folders without COMMIT. One rank calls it, before training."""
    for path in [*folder.glob(".step-*.tmp"), *(p for p in folder.glob("step-*") if not (p / "COMMIT").exists())]:
        shutil.rmtree(path, ignore_errors=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as flat tensors `<parameter number>.<name>`; hyper-parameters are schedules and not stored."""
    state = optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": torch.as_tensor(value) for number, values in state.items() for name, value in values.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put `optimizer_tensors` back; the parameter groups must be those it was saved with."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _fault(path: Path) -> str | None:
    """What is wrong with a committed checkpoint, or None."""
    try:
        if (path / "COMMIT").read_text() != _sha256(path / "MANIFEST.json"):
            return "MANIFEST.json is not the committed one"
        manifest = json.loads((path / "MANIFEST.json").read_text())
        extra = {p.name for p in path.iterdir()} - set(manifest) - {"MANIFEST.json", "COMMIT"}
        if extra:
            return f"unexpected file {sorted(extra)[0]}"
        for name, expected in manifest.items():
            if (path / name).is_symlink() or _sha256(path / name) != expected["sha256"]:
                return f"{name} does not match its sha256"
        schema = json.loads((path / "meta.json").read_text())["schema"]
    except (OSError, ValueError, KeyError) as error:
        return str(error)
    return None if schema <= SCHEMA else f"made by a newer version (schema {schema}, this one reads up to {SCHEMA})"


def _load(path: Path, device: str | torch.device) -> Checkpoint:
    meta = json.loads((path / "meta.json").read_text())
    meta.pop("schema")
    step = meta.pop("step")
    model = load_file(path / "model.safetensors", device=str(device))
    return Checkpoint(step, model, load_file(path / "optimizer.safetensors", device=str(device)), meta)


def _remove(path: Path) -> None:
    """COMMIT goes first, so that a crash in between leaves an orphan and never half a checkpoint that claims to be whole."""
    (path / "COMMIT").unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
