"""The commit protocol: round trip, damage of every kind, crashes at every write, retention."""

import hashlib
import json
import math
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from raydino.train import checkpoint as cp
from raydino.train import durable
from raydino.train.verify import require_same

PLATFORM = Path(__file__).resolve().parents[2] / "platform"


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


FILES = ("model.safetensors", "optimizer.safetensors", "meta.json", "MANIFEST.json", "COMMIT")


def _damages():
    for name in FILES[:-1]:
        yield f"missing {name}", lambda folder, name=name: (folder / name).unlink()
    for name in FILES:
        yield f"empty {name}", lambda folder, name=name: (folder / name).write_bytes(b"")
        yield (
            f"truncated {name}",
            lambda folder, name=name: (folder / name).write_bytes((folder / name).read_bytes()[:-1]),
        )
        yield (
            f"longer {name}",
            lambda folder, name=name: (folder / name).write_bytes((folder / name).read_bytes() + b"x"),
        )
    yield "extra", lambda folder: (folder / "intruder.txt").write_bytes(b"x")
    yield "manifest", lambda folder: (folder / "MANIFEST.json").write_text("{}")
    yield "of another step", lambda folder: shutil.copy(folder.parent / "step-00000001" / FILES[0], folder / FILES[0])


@pytest.mark.parametrize(("kind", "damage"), _damages(), ids=[k for k, _ in _damages()])
def test_load_newest__falls_back_to_the_one_before_and_says_what_was_wrong(
    kind: str, damage, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    for step in (1, 2):
        cp.save(tmp_path, _checkpoint(step), keep=3)
    damage(tmp_path / "step-00000002")
    _assert_equal(cp.load_newest(tmp_path), 1)
    assert "step-00000002" in caplog.text and "falling back" in caplog.text


def test_load_newest__detects_400_of_400_flipped_bits_and_never_errs_on_sound_files(tmp_path: Path):
    cp.save(tmp_path, _checkpoint(1), keep=3)
    cp.save(tmp_path, _checkpoint(2), keep=3)
    rng = np.random.default_rng(0)
    newest = tmp_path / "step-00000002"
    for _ in range(400):
        path = newest / rng.choice(FILES)
        good = path.read_bytes()
        bad = bytearray(good)
        bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
        path.write_bytes(bytes(bad))
        found, rejected = cp.newest(tmp_path)
        assert (found, rejected) == (tmp_path / "step-00000001", [newest])
        path.write_bytes(good)
        assert cp.newest(tmp_path) == (newest, [])
    _assert_equal(cp.load_newest(tmp_path), 2)


def test_load_newest__raises_when_all_are_damaged(tmp_path: Path):
    cp.save(tmp_path, _checkpoint(1), keep=3)
    (tmp_path / "step-00000001" / "meta.json").unlink()
    with pytest.raises(cp.CheckpointError, match="meta"):
        cp.load_newest(tmp_path)


def _commit_again(folder: Path) -> None:
    """Make the files as they are now the committed ones, as whoever forged them would."""
    sums = {
        p.name: {"bytes": p.stat().st_size, "sha256": hashlib.sha256(p.read_bytes()).hexdigest()}
        for p in folder.iterdir()
        if p.name not in ("MANIFEST.json", "COMMIT")
    }
    (folder / "MANIFEST.json").write_text(json.dumps(sums))
    (folder / "COMMIT").write_text(hashlib.sha256((folder / "MANIFEST.json").read_bytes()).hexdigest())


class _Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def _forge_pickle(folder: Path) -> None:
    (folder / "extras").write_bytes(pickle.dumps(_Bomb()))


def _forge_torch_pickle(folder: Path) -> None:
    torch.save(_Bomb(), folder / "extras.pth")


def _forge_model(folder: Path) -> None:
    torch.save(_Bomb(), folder / "model.safetensors")
    _commit_again(folder)


def _forge_meta(folder: Path) -> None:
    (folder / "meta.json").write_bytes(pickle.dumps(_Bomb()))
    _commit_again(folder)


def _link_a_file(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder.parent / "elsewhere")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder.parent / "elsewhere")


def _link_the_folder(folder: Path) -> None:
    folder.rename(folder.parent / "elsewhere")
    folder.symlink_to(folder.parent / "elsewhere")


def _newer_schema(folder: Path) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, "schema": cp.SCHEMA + 1}))
    _commit_again(folder)


def _nan(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["teacher.w"][3, 2] = math.nan
    save_file(tensors, folder / "model.safetensors")
    _commit_again(folder)


REFUSED = {
    _forge_pickle: "is a pickle",
    _forge_torch_pickle: "is a pickle",
    _forge_model: "not in the safetensors format",
    _forge_meta: "meta.json",
    _link_a_file: "is a link to .*elsewhere",
    _link_the_folder: "is a link to .*elsewhere",
    _newer_schema: "made by a newer version",
    _nan: r"NaN or infinite values in teacher\.w \(1 in all\)",
}


@pytest.mark.parametrize("forge", REFUSED)
def test_load_newest__what_is_no_damage_is_refused_rather_than_passed_over(
    forge: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    for step in (1, 2):
        cp.save(tmp_path / "run", _checkpoint(step), keep=3)
    forge(tmp_path / "run" / "step-00000002")
    with pytest.raises(cp.CheckpointError, match=REFUSED[forge]):
        cp.load_newest(tmp_path / "run")
    assert not (tmp_path / "exploded").exists()


def test_require_same__names_the_first_ten_of_the_tensors_that_differ_and_their_number():
    mine = {f"layer{n:02d}": torch.zeros(4, n) for n in range(14)}
    theirs = {f"layer{n:02d}": torch.zeros(4, n if n < 2 else n + 1) for n in range(13)}
    require_same("step-1", mine, mine)
    with pytest.raises(cp.CheckpointError) as error:
        require_same("step-1", mine, theirs)
    said = str(error.value)
    assert "layer02 (4, 2) float32 here, (4, 3) float32 there" in said
    assert said.count(" here,") == 10 and "layer12" not in said and "2 more (12 in all)" in said


@pytest.mark.parametrize("wrong", ["2.exp_avg", "0.exp_avg", "x.exp_avg"])
def test_load_optimizer__refuses_the_state_of_other_parameters(wrong: str):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(4, 3)), torch.nn.Parameter(torch.zeros(3))])
    with pytest.raises(cp.CheckpointError, match=wrong.replace(".", r"\.")):
        cp.load_optimizer(optimizer, {wrong: torch.zeros(4, 2)})


def test_recover__clears_the_folder_and_damaged_ones_never_count_as_kept(tmp_path: Path):
    for step in (10, 20, 30):
        cp.save(tmp_path, _checkpoint(step), keep=3)
    for step in (20, 30):
        (tmp_path / f"step-000000{step}" / "meta.json").write_text("{}")
    (tmp_path / ".step-00000040.tmp").mkdir()
    (tmp_path / "step-00000040").mkdir()  # renamed, not committed
    assert cp.recover(tmp_path) == tmp_path / "step-00000010"
    assert not list(tmp_path.glob("*40*"))
    cp.save(tmp_path, _checkpoint(11), keep=2)  # another cadence than before
    cp.save(tmp_path, _checkpoint(12), keep=2)
    assert [path.name[-2:] for path in cp.committed(tmp_path)] == ["12", "11"]
    assert cp.recover(tmp_path) == tmp_path / "step-00000012"
    assert sorted(path.name[-2:] for path in tmp_path.iterdir()) == ["11", "12"]


def test_save__never_deletes_itself_in_favour_of_damaged_ones_of_later_steps(tmp_path: Path):
    for step in (20, 30, 40):
        cp.save(tmp_path, _checkpoint(step), keep=3)
        (tmp_path / f"step-000000{step}" / "meta.json").write_text("{}")
    cp.save(tmp_path, _checkpoint(5), keep=2)
    _assert_equal(cp.load_newest(tmp_path), 5)


def test_save__what_comes_back_from_the_disk_changed_is_not_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cp.save(tmp_path, _checkpoint(1), keep=2)
    put = durable._put

    def flip(file, piece) -> None:
        changed = bytearray(piece)
        changed[len(changed) // 2] ^= 1
        put(file, bytes(changed))

    monkeypatch.setattr(durable, "_put", flip)
    with pytest.raises(OSError, match="other bytes than were written"):
        cp.save(tmp_path, _checkpoint(2), keep=2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_save__leaves_a_sound_one_of_the_same_step_as_it_is(tmp_path: Path):
    path = cp.save(tmp_path, _checkpoint(1), keep=2)
    before = (path / "model.safetensors").stat()
    assert cp.save(tmp_path, _checkpoint(1), keep=2) == path
    assert (path / "model.safetensors").stat() == before
    (path / "model.safetensors").write_bytes(b"")
    cp.save(tmp_path, _checkpoint(1), keep=2)
    _assert_equal(cp.load_newest(tmp_path), 1)


KILLER = """
import json, os, signal, sys
import torch
from pathlib import Path
from raydino.train import checkpoint as cp, durable

root = Path(sys.argv[1])
torch.set_num_threads(1)

def checkpoint(step):
    values = torch.full((300,), float(step))
    return cp.Checkpoint(step, {"w": values}, {"0.exp_avg": values}, {"seed": step})

def killed_at(folder, number):
    \"\"\"Save step 3 in a child that dies before file operation `number`, or half way through a write; whether it died.\"\"\"
    child = os.fork()
    if child == 0:
        count = 0
        def reached():
            nonlocal count
            count += 1
            return count == number
        def operation(event, arguments):
            if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.unlink") and reached():
                os.kill(os.getpid(), signal.SIGKILL)
        put = durable._put
        def half(file, piece):
            if reached():
                put(file, piece[: len(piece) // 2])
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            put(file, piece)
        durable._put = half
        sys.addaudithook(operation)
        cp.save(folder, checkpoint(3), keep=2)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return os.WIFSIGNALED(status)

out, number = [], 0
while True:
    number += 1
    folder = root / str(number)
    for step in (1, 2):
        cp.save(folder, checkpoint(step), keep=2)
    if not killed_at(folder, number):
        break
    path = cp.recover(folder)
    saved = cp.load(path)
    whole = all(bool((tensors[name] == saved.step).all()) for tensors in (saved.model, saved.optimizer) for name in tensors)
    cp.save(folder, checkpoint(4), keep=2)  # life goes on
    out.append([saved.step, whole and saved.meta == {"seed": saved.step}, sorted(p.name for p in folder.iterdir())])
print(json.dumps(out))
"""


def test_save__killed_at_any_file_operation_leaves_a_whole_checkpoint_and_no_litter(tmp_path: Path):
    """A fresh interpreter forks a child per operation, which dies by SIGKILL: nothing is cleaned up on the way."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLER, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(PLATFORM)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) >= 20
    assert all(whole for _, whole, _ in found)
    steps = [step for step, _, _ in found]
    assert set(steps) == {2, 3} and steps == sorted(steps)  # the old one up to the commit, the new one from then on
    assert all(len(names) == 2 and names[-1] == "step-00000004" for _, _, names in found)


DTYPES = [*durable.DTYPES]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_write_tensors__the_library_reads_what_was_given(dtype: torch.dtype, tmp_path: Path):
    tensors = {
        "matrix": (torch.arange(15).reshape(3, 5) % 2).to(dtype),
        "strided": torch.arange(24).reshape(4, 6)[:, ::2].t().to(dtype).t(),
        "scalar": torch.ones((), dtype=dtype),
        "empty": torch.zeros(0, 4, dtype=dtype),
    }
    digest = durable.write_tensors(tmp_path / "file", tensors)
    assert digest == hashlib.sha256((tmp_path / "file").read_bytes()).hexdigest()
    found = load_file(tmp_path / "file")
    assert found.keys() == tensors.keys()
    assert all(found[name].dtype == dtype and torch.equal(found[name], tensors[name]) for name in tensors)


def test_write_tensors__more_than_a_piece_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(durable, "PIECE", 64)
    tensors = {"a": torch.randn(37, 5), "b": torch.randn(16)}
    durable.write_tensors(tmp_path / "file", tensors)
    assert all(torch.equal(load_file(tmp_path / "file")[name], tensors[name]) for name in tensors)


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
