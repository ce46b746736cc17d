"""Checkpoints by a commit protocol of our own: after a crash at any moment the newest committed one loads whole, or
an older one does.

A checkpoint is written to a temporary folder, its hashes into MANIFEST.json, all of it flushed and read back, the folder
renamed, and only then COMMIT put there, which holds the manifest's hash. Reading starts at the newest COMMIT and verifies every
hash before any weight is used: damage makes it fall back to the one before. What is no damage is refused instead, because
silently going back would hide it: another architecture, a newer version, NaN, links, pickles.
No pickle: tensors are safetensors, the rest JSON. Ray's own checkpoint bookkeeping is not relied on: it loses the last
checkpoint on a kill and hands out broken ones.
"""

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from raydino import faults
from raydino.train.durable import flush_folder, sha256, write_tensors, write_text
from raydino.train.sharding import part_of
from raydino.train.verify import COMMIT, MANIFEST, CheckpointError, damage, require_finite, some

SCHEMA = 1
REJECTED = "REJECTED"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint in memory."""

    step: int
    """Steps finished: training goes on at this step."""
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    meta: dict[str, Any]


def save(folder: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Commit `checkpoint`, of CPU tensors, as folder/step-N and delete all but the newest `keep`. One rank calls it.

    Raises:
        OSError: the disk is full, not writable, or gave back other bytes than were written; what was written is removed and
            older checkpoints stay.
    """
    step = checkpoint.step
    final = path_of(folder, step)
    if (final / COMMIT).exists() and damage(final) is None:
        return final  # the state after a step is always the same, and rewriting what is sound can only lose it
    temporary = folder / f".{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        faults.reach("save.write", step=step)
        committed_as = _write(temporary, checkpoint)
        faults.reach("save.rename", step=step)
        _remove(final)  # a rejected one of the same step
        temporary.rename(final)
        flush_folder(folder)
        faults.reach("save.commit", step=step)
        write_text(final / f".{COMMIT}", committed_as)
        (final / f".{COMMIT}").rename(final / COMMIT)
        flush_folder(final)
    except Exception:
        shutil.rmtree(temporary, ignore_errors=True)
        if not (final / COMMIT).exists():
            shutil.rmtree(final, ignore_errors=True)
        raise
    faults.reach("save.prune", step=step)
    try:
        prune(folder, keep=keep, upto=step)
    except OSError as error:  # this one is saved all the same
        log.warning("old checkpoints in %s could not be deleted (%s)", folder, error)
    return final


def prune(folder: Path, *, keep: int, upto: int | None = None) -> None:
    """Delete all committed checkpoints but the newest `keep`; those above step `upto` neither count nor go.

    They are not of this run's past: it began from an older one. Were they counted, the one just saved could be the oldest.
    """
    known = [path for path in committed(folder) if upto is None or step_of(path) <= upto]
    for old in known[keep:]:
        _remove(old)


def committed(folder: Path) -> list[Path]:
    """Checkpoints with a COMMIT, newest first; not yet verified."""
    return sorted((path.parent for path in folder.glob(f"step-*/{COMMIT}")), key=step_of, reverse=True)


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of `step` finished steps lies."""
    return folder / f"step-{step:08d}"


def step_of(path: Path) -> int:
    """The step in a checkpoint's name, -1 where there is none."""
    number = path.name.removeprefix("step-")
    return int(number) if number.isdigit() else -1


def load_newest(folder: Path, *, device: str | torch.device = "cpu") -> Checkpoint | None:
    """The newest checkpoint that verifies, or None where none was ever committed.

    Raises:
        CheckpointError: all checkpoints are damaged, or the newest sound one is not to be used (see `load`).
    """
    path, _ = newest(folder)
    return None if path is None else load(path, device=device)


def recover(folder: Path) -> Path | None:
    """The newest checkpoint that verifies, after clearing the folder: what a crash left is removed, and damaged ones lose their
    COMMIT, so that they never count as kept ones; the next start removes them. One rank calls it, before training.

    Raises CheckpointError as `newest`; then nothing is touched but temporary folders.
    """
    sweep(folder)
    path, rejected = newest(folder)
    for damaged in rejected:
        (damaged / COMMIT).rename(damaged / REJECTED)
    return path


def newest(folder: Path) -> tuple[Path | None, list[Path]]:
    """The newest checkpoint whose files are those that were written (None: none was committed), and the damaged newer ones.

    Raises:
        CheckpointError: checkpoints exist and all of them are damaged, or one holds links or pickles.
    """
    rejected: list[Path] = []
    found: list[str] = []
    for path in committed(folder):
        fault = damage(path)
        if fault is None:
            return path, rejected
        rejected.append(path)
        found.append(f"{path.name}: {fault}")
        log.warning("checkpoint %s cannot be used (%s); falling back to the one before", path.name, fault)
    if found:
        raise CheckpointError(
            f"no usable checkpoint in {folder}: "
            + "; ".join(found)
            + ". Restore one from a copy, or start a run under another name."
        )
    return None, []


def load(path: Path, *, device: str | torch.device = "cpu") -> Checkpoint:
    """A checkpoint whose hashes have been verified (`newest`).

    Raises:
        CheckpointError: it was made by a newer version, or holds NaN or infinite values (whoever saved it had
            diverged), or its files are not what they are named.
    """
    try:
        meta = json.loads((path / "meta.json").read_text())
        schema, step = int(meta.pop("schema")), int(meta.pop("step"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: committed, but its meta.json is none ({error}); remove it.") from error
    if schema > SCHEMA:
        raise CheckpointError(
            f"{path}: made by a newer version (schema {schema}, this one reads up to {SCHEMA}); upgrade raydino, or start a run "
            "under another name."
        )
    try:
        parts = [load_file(path / f"{name}.safetensors", device=str(device)) for name in ("model", "optimizer")]
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: committed, but not in the safetensors format ({error}); remove it.") from error
    require_finite(path, *parts)
    return Checkpoint(step, parts[0], parts[1], meta)


def sweep(folder: Path) -> None:
    """Remove what a crash left: temporary folders and folders without COMMIT. One rank calls it, before training."""
    for path in [*folder.glob(".step-*.tmp"), *(p for p in folder.glob("step-*") if not (p / COMMIT).exists())]:
        shutil.rmtree(path, ignore_errors=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as flat tensors `<parameter number>.<name>`; hyper-parameters are schedules and not stored."""
    state = optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": torch.as_tensor(value) for number, values in state.items() for name, value in values.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put `optimizer_tensors` back, whole ones also where the parameters are sharded. Raises CheckpointError if they are of other
    parameters, or of another optimiser."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    unlike = []
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        of = parameters[int(number)] if number.isdigit() and int(number) < len(parameters) else None
        if of is None or (value.ndim and value.shape != of.shape):
            unlike.append(f"{key} {tuple(value.shape)}, parameter {None if of is None else tuple(of.shape)}")
        else:
            state.setdefault(int(number), {})[name] = part_of(value, like=of) if value.ndim else value
    if unlike:
        raise CheckpointError(
            f"the optimiser's state is of other parameters: {some(unlike)}; use the recipe it was made with."
        )
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _write(folder: Path, checkpoint: Checkpoint) -> str:
    """All files but COMMIT, flushed and read back; returns what COMMIT is to say. Raises OSError."""
    meta = {"schema": SCHEMA, "step": checkpoint.step, **checkpoint.meta}
    digests = {
        "model.safetensors": write_tensors(folder / "model.safetensors", checkpoint.model),
        "optimizer.safetensors": write_tensors(folder / "optimizer.safetensors", checkpoint.optimizer),
        "meta.json": write_text(folder / "meta.json", json.dumps(meta, indent=1, sort_keys=True)),
    }
    manifest = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": digest} for name, digest in sorted(digests.items())
    }
    digests[MANIFEST] = write_text(folder / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True))
    flush_folder(folder)
    for name, digest in digests.items():
        if sha256(folder / name, from_disk=True) != digest:
            raise OSError(f"{folder / name} holds other bytes than were written to it")
    return digests[MANIFEST]


def _remove(path: Path) -> None:
    """COMMIT goes first, so that a crash in between leaves an orphan and never half a checkpoint that claims to be whole."""
    (path / COMMIT).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)
