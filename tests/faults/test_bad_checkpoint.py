"""Rows 41 to 50 of the matrix of bad input (docs/reliability.md): checkpoints.

Row 46, another number of workers, is accepted: tests/golden/test_resume.py repeats a run on others. Row 47, foreign `.pth` files,
waits for the command that would import them; nothing here opens one.
"""

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
from raydino.train import saving
from raydino.train.verify import require_same


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


@pytest.mark.parametrize("name", ["optimizer.pt", "notes.bin"])
def test_row_45__a_pickle_beside_the_tensors_is_named_and_not_stepped_over(name: str, tmp_path: Path) -> None:
    saved(tmp_path / "checkpoints", 3, 6)
    content = pickle.dumps(_Marker(tmp_path / "marker"), protocol=4)
    (tmp_path / "checkpoints" / "step-00000006" / name).write_bytes(content)
    with pytest.raises(checkpoints.CheckpointError, match=rf"{name} is a pickle: .* remove it"):
        checkpoints.load_newest(tmp_path / "checkpoints")
    assert not (tmp_path / "marker").exists()


def recommitted(folder: Path) -> None:
    """Hashes that agree with what the files hold now, as whoever wrote them can make them."""
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    for name in manifest:
        content = (folder / name).read_bytes()
        manifest[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))
    (folder / "COMMIT").write_text(hashlib.sha256((folder / "MANIFEST.json").read_bytes()).hexdigest())


def test_row_45__a_pickle_in_place_of_tensors_is_never_loaded_even_with_hashes_that_agree(tmp_path: Path) -> None:
    saved(tmp_path, 6)
    folder, marker = tmp_path / "step-00000006", tmp_path / "marker"
    (folder / "model.safetensors").write_bytes(pickle.dumps(_Marker(marker)))
    recommitted(folder)
    with pytest.raises(checkpoints.CheckpointError, match="not in the safetensors format"):
        checkpoints.load_newest(tmp_path)
    assert not marker.exists()


def test_row_43__one_of_a_newer_version_is_refused_by_both_numbers(tmp_path: Path) -> None:
    saved(tmp_path, 3, 6)
    meta = tmp_path / "step-00000006" / "meta.json"
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "schema": checkpoints.SCHEMA + 1}))
    recommitted(meta.parent)
    with pytest.raises(
        checkpoints.CheckpointError, match=r"newer version \(schema 2, this one reads up to 1\); upgrade raydino"
    ):
        checkpoints.load_newest(tmp_path)


def test_row_44__another_architecture_lists_ten_shapes_and_the_count() -> None:
    here = {f"block.{number:02d}.w": torch.zeros(4, 4) for number in range(30)}
    there = {**{name: torch.zeros(8, 4) for name in here}, "more.w": torch.zeros(2)}
    with pytest.raises(checkpoints.CheckpointError) as refused:
        require_same("step-6", here, there)
    message = str(refused.value)
    assert "block.00.w (4, 4) float32 here, (8, 4) float32 there" in message and "(31 in all)" in message
    assert message.count(" there") == 10


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_row_48__weights_that_are_no_numbers_are_refused_at_load(value: float, tmp_path: Path) -> None:
    state = {"student.w": torch.tensor([1.0, value]), "teacher.w": torch.ones(2)}
    checkpoints.save(tmp_path, checkpoints.Checkpoint(step=6, model=state, optimizer={}, meta={}), keep=3)
    with pytest.raises(checkpoints.CheckpointError, match=r"NaN or infinite values in student\.w \(1 in all\); remove"):
        checkpoints.load_newest(tmp_path)


def test_row_49__a_full_target_is_a_warning_each_time_and_a_stop_after_the_limit(
    tmp_path: Path, monkeypatch, caplog
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    saved(tmp_path, 3, 6)
    monkeypatch.setattr(saving, "save", full)
    saver, state = saving.Saver(tmp_path, keep=3, limit=3), {"w": torch.ones(2)}
    with caplog.at_level(logging.WARNING):
        for step in (9, 12, 15):
            saver.save(step, model=state, optimizer={}, meta={})
        with pytest.raises(checkpoints.CheckpointError, match=r"3 checkpoints in a row .* Free space there") as stopped:
            saver.finish()
    assert "--resume auto" in str(stopped.value) and "no checkpoint was saved" in caplog.text
    found = checkpoints.load_newest(tmp_path)
    assert found is not None and found.step == 6


def link_out(folder: Path) -> None:
    """The right bytes, but somewhere else, where they may change after they were verified."""
    (folder / "model.safetensors").rename(folder.parent.parent / "elsewhere")
    (folder / "model.safetensors").symlink_to(folder.parent.parent / "elsewhere")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_row_50__a_link_out_of_the_run_is_refused_by_its_aim(kind: str, tmp_path: Path) -> None:
    saved(tmp_path / "checkpoints", 3, 6)
    newest = tmp_path / "checkpoints" / "step-00000006"
    if kind == "file":
        link_out(newest)
    else:
        newest.rename(tmp_path / "elsewhere")
        newest.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(
        checkpoints.CheckpointError, match=r"is a link to .*elsewhere: a checkpoint holds its own files"
    ):
        checkpoints.load_newest(tmp_path / "checkpoints")
