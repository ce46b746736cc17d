"""Rows 41 to 50 of the matrix of bad input (docs/reliability.md): checkpoints."""

import hashlib
import json
import logging
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from raydino.train import checkpoint as checkpoints


def saved(folder: Path, *steps: int) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        tensors = {name: torch.randn(7, 5, generator=generator) for name in ("student.w", "teacher.w")}
        state = checkpoints.Checkpoint(
            step=step, model=tensors, optimizer={"0.exp_avg": tensors["student.w"]}, meta={"run": "r"}
        )
        checkpoints.save(folder, state, keep=3)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    place = np.random.default_rng(0).integers(len(data))
    data[place] ^= 4
    path.write_bytes(bytes(data))


def link_out(folder: Path) -> None:
    """The right bytes, but somewhere else, where they may change after they were verified."""
    (folder / "model.safetensors").rename(folder.parent.parent / "elsewhere")
    (folder / "model.safetensors").symlink_to(folder.parent.parent / "elsewhere")


FALLS_BACK: list[
    tuple[str, str, Callable[[Path], object], str]
] = [  # row, what, damage to the newest, word of the warning
    ("41", "truncated", lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 40), "model.safetensors"),
    ("41", "0 bytes", lambda folder: (folder / "optimizer.safetensors").write_bytes(b""), "optimizer.safetensors"),
    ("41", "bit flip", lambda folder: flip(folder / "model.safetensors"), "model.safetensors"),
    ("41", "bit flip in meta", lambda folder: flip(folder / "meta.json"), "meta.json"),
    ("41", "missing shard", lambda folder: (folder / "optimizer.safetensors").unlink(), "optimizer.safetensors"),
    ("41", "extra file", lambda folder: (folder / "model2.safetensors").write_bytes(b"x"), "unexpected file model2"),
    ("41", "manifest of another", lambda folder: (folder / "MANIFEST.json").write_text("{}"), "MANIFEST.json"),
]


@pytest.mark.parametrize(
    ("row", "what", "damage", "word"), FALLS_BACK, ids=[f"{row} {what}" for row, what, *_ in FALLS_BACK]
)
def test_row_41__the_checkpoint_before_is_taken_with_a_warning(
    row: str, what: str, damage: Callable[[Path], object], word: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved(tmp_path / "checkpoints", 3, 6)
    damage(tmp_path / "checkpoints" / "step-00000006")
    with caplog.at_level(logging.WARNING):
        found = checkpoints.load_newest(tmp_path / "checkpoints")
    assert found is not None and found.step == 3
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "step-00000006" in warning and word in warning, warning


@pytest.mark.parametrize(
    ("row", "plant", "name"),
    [
        ("45", lambda folder: (folder / "optimizer.pt").write_bytes(pickle.dumps({})), "optimizer.pt is a pickle"),
        ("50", link_out, "model.safetensors"),
    ],
    ids=["45 pickle beside", "50 link out of the run"],
)
def test_rows_45_50__what_no_damage_explains_is_refused(
    row: str, plant: Callable[[Path], object], name: str, tmp_path: Path
) -> None:
    saved(tmp_path / "checkpoints", 3, 6)
    plant(tmp_path / "checkpoints" / "step-00000006")
    with pytest.raises(checkpoints.CheckpointError) as refused:
        checkpoints.load_newest(tmp_path / "checkpoints")
    assert "step-00000006" in str(refused.value) and name in str(refused.value)


def test_row_41__all_damaged_is_refused_by_name_and_never_a_start_from_nothing(tmp_path: Path) -> None:
    saved(tmp_path, 3, 6)
    for step in (3, 6):
        flip(tmp_path / f"step-0000000{step}" / "model.safetensors")
    with pytest.raises(checkpoints.CheckpointError) as refused:
        checkpoints.load_newest(tmp_path)
    assert all(word in str(refused.value) for word in ("step-00000003", "step-00000006", "sha256", "Restore"))


def test_row_42__without_commit_it_is_ignored_and_swept(tmp_path: Path) -> None:
    saved(tmp_path, 3, 6)
    (tmp_path / "step-00000006" / "COMMIT").unlink()
    (tmp_path / ".step-00000009.tmp").mkdir()
    found = checkpoints.load_newest(tmp_path)
    assert found is not None and found.step == 3
    checkpoints.sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


class _Marker:
    """Writes a file if anybody unpickles it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_row_45__a_pickle_in_place_of_tensors_is_never_loaded_even_with_hashes_that_agree(tmp_path: Path) -> None:
    saved(tmp_path, 6)
    folder, marker = tmp_path / "step-00000006", tmp_path / "marker"
    (folder / "model.safetensors").write_bytes(pickle.dumps(_Marker(marker)))
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    content = (folder / "model.safetensors").read_bytes()
    manifest["model.safetensors"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))
    (folder / "COMMIT").write_text(hashlib.sha256((folder / "MANIFEST.json").read_bytes()).hexdigest())
    with pytest.raises(Exception, match=r"(?i)header|checkpoint"):
        checkpoints.load_newest(tmp_path)
    assert not marker.exists()
