"""The commit protocol: round trip, damage of every kind, crashes at every write, retention."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from raydino.train import checkpoint as cp


def _checkpoint(step: int) -> cp.Checkpoint:
    generator = torch.Generator().manual_seed(step)
    return cp.Checkpoint(
        step=step,
        model={
            "student.w": torch.randn(7, 5, generator=generator),
            "teacher.w": torch.randn(7, 5, generator=generator),
        },
        optimizer={"0.exp_avg": torch.randn(7, 5, generator=generator), "0.step": torch.tensor(float(step))},
        meta={"seed": 3},
    )


def _assert_equal(loaded: cp.Checkpoint | None, step: int) -> None:
    expected = _checkpoint(step)
    assert loaded is not None
    assert (loaded.step, loaded.meta) == (step, expected.meta)
    for name in expected.model:
        assert torch.equal(loaded.model[name], expected.model[name])
    for name in expected.optimizer:
        assert torch.equal(loaded.optimizer[name], expected.optimizer[name])


def test_save__round_trip_of_the_newest(tmp_path: Path):
    for step in (1, 2):
        cp.save(tmp_path, _checkpoint(step), keep=3)
    _assert_equal(cp.load_newest(tmp_path), 2)


def test_load_newest__is_none_where_nothing_was_committed(tmp_path: Path):
    assert cp.load_newest(tmp_path / "absent") is None


def test_save__keeps_the_newest_and_leaves_no_temporary_folder(tmp_path: Path):
    for step in range(1, 6):
        cp.save(tmp_path, _checkpoint(step), keep=2)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["step-00000004", "step-00000005"]


def _damages():
    yield "truncated", lambda folder: (folder / "model.safetensors").write_bytes(b"")
    yield "missing", lambda folder: (folder / "optimizer.safetensors").unlink()
    yield "extra", lambda folder: (folder / "intruder.bin").write_bytes(b"x")
    yield "manifest", lambda folder: (folder / "MANIFEST.json").write_text("{}")
    yield "commit", lambda folder: (folder / "COMMIT").write_text("0" * 64)
    yield "meta", lambda folder: (folder / "meta.json").write_text("{")
    yield "symlink", _make_symlink


def _make_symlink(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder.parent / "elsewhere")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder.parent / "elsewhere")


@pytest.mark.parametrize(("kind", "damage"), _damages(), ids=[k for k, _ in _damages()])
def test_load_newest__falls_back_to_the_one_before(kind: str, damage, tmp_path: Path):
    for step in (1, 2):
        cp.save(tmp_path, _checkpoint(step), keep=3)
    damage(tmp_path / "step-00000002")
    _assert_equal(cp.load_newest(tmp_path), 1)


def test_load_newest__detects_every_flipped_bit(tmp_path: Path):
    cp.save(tmp_path, _checkpoint(1), keep=3)
    cp.save(tmp_path, _checkpoint(2), keep=3)
    rng = np.random.default_rng(0)
    for _ in range(60):
        path = tmp_path / "step-00000002" / rng.choice(["model.safetensors", "optimizer.safetensors", "meta.json"])
        good = path.read_bytes()
        bad = bytearray(good)
        bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
        path.write_bytes(bytes(bad))
        _assert_equal(cp.load_newest(tmp_path), 1)
        path.write_bytes(good)
    _assert_equal(cp.load_newest(tmp_path), 2)


def test_load_newest__raises_when_all_are_damaged(tmp_path: Path):
    cp.save(tmp_path, _checkpoint(1), keep=3)
    (tmp_path / "step-00000001" / "meta.json").unlink()
    with pytest.raises(cp.CheckpointError, match="meta"):
        cp.load_newest(tmp_path)


def test_save__a_crash_before_any_write_leaves_the_old_checkpoint_and_sweep_cleans_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Count the writes of one save, then crash before each of them in turn."""

    class Crash(BaseException):
        pass

    def crash_at(number: int) -> list[int]:
        calls = [0]

        def counted(original):
            def wrapper(*arguments, **named):
                calls[0] += 1
                if calls[0] == number:
                    raise Crash
                return original(*arguments, **named)

            return wrapper

        for owner, name in ((cp, "save_file"), (cp, "_flush"), (cp, "_sha256"), (Path, "write_text"), (Path, "rename")):
            monkeypatch.setattr(owner, name, counted(getattr(owner, name)))
        return calls

    with monkeypatch.context() as patch:
        monkeypatch = patch
        calls = crash_at(0)
        cp.save(tmp_path / "count", _checkpoint(1), keep=3)
        writes = calls[0]
    assert writes > 10
    for number in range(1, writes + 1):
        folder = tmp_path / str(number)
        cp.save(folder, _checkpoint(1), keep=3)
        with pytest.MonkeyPatch.context() as patch:
            monkeypatch = patch
            crash_at(number)
            with pytest.raises(Crash):
                cp.save(folder, _checkpoint(2), keep=3)
        loaded = cp.load_newest(folder)
        assert loaded is not None
        _assert_equal(loaded, loaded.step)
        cp.sweep(folder)
        assert all((p / "COMMIT").exists() for p in folder.iterdir())


def test_optimizer_tensors__round_trip_gives_the_same_next_update():
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(4, 3)), torch.nn.Parameter(torch.randn(3))]
    optimizer = torch.optim.AdamW([{"params": [p]} for p in parameters], lr=0.1)

    def step() -> None:
        for p in parameters:
            p.grad = torch.ones_like(p)
        optimizer.step()

    step()
    saved, weights = cp.optimizer_tensors(optimizer), [p.detach().clone() for p in parameters]
    saved = {name: value.clone() for name, value in saved.items()}
    step()
    expected = [p.detach().clone() for p in parameters]
    fresh = torch.optim.AdamW([{"params": [p]} for p in parameters], lr=0.1)
    cp.load_optimizer(fresh, saved)
    with torch.no_grad():
        for p, w in zip(parameters, weights, strict=True):
            p.copy_(w)
    optimizer = fresh
    step()
    assert all(torch.equal(p, e) for p, e in zip(parameters, expected, strict=True))
