"""The command line of curation, as people call it, on small planted folders."""

import io
import json
import runpy
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raydino.curation.judge import LEAKED, SAME_PICTURE, SAME_PIXELS
from raydino.curation.synthetic import scene
from raydino.launch.curation_report import write_curated_builtin
from raydino.shards.keep import read_mask
from raydino.shards.manifest import load
from raydino.shards.reader import open_collection
from raydino.shards.schema import Folder

ROOT = Path(__file__).resolve().parents[2]
Curate = Callable[..., int]


def saved(image: np.ndarray, kind: str = "PNG", **options: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def write(root: Path, files: dict[str, bytes]) -> str:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return str(root)


FIRST = {f"train/{n:02d}.png": saved(scene(n)) for n in range(12)} | {
    f"test/{n}.png": saved(scene(n)) for n in range(50, 54)
}
SECOND = {
    "train/copy.jpg": saved(scene(3), "JPEG", quality=60),
    "train/pixels.bmp": saved(scene(4), "BMP"),
    "train/leak.jpg": saved(scene(50), "JPEG", quality=60),
    "train/new.png": saved(scene(30)),
    "train/broken.jpg": b"<html>",
}


@pytest.fixture
def curate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Curate:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def run(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["curate.py", *words])
        with pytest.raises(SystemExit) as exit_:
            runpy.run_path(str(ROOT / "recipes" / "curate.py"), run_name="__main__")
        return int(exit_.value.code or 0)

    return run


def reasons(out: str) -> dict[str, str]:
    """Reason by id, of training images left out."""
    manifest = load(Folder(out))
    collection = open_collection(out, split="train")
    mask = read_mask(Folder(out), "train", rows=len(collection), digest=manifest.keep["train"])
    ids = collection.rows(np.arange(len(collection)))["id"].to_pylist()
    return {one.hex(): reason for one, reason in zip(ids, mask.reason, strict=True) if reason}


def test_curate__chain_leaves_mask_report_and_answers(curate: Curate, tmp_path: Path, capsys):
    out = str(tmp_path / "my images")
    source = write(tmp_path / "in", FIRST | SECOND)
    assert curate("--source", source, "--out", f"{out}/", "--max-bad", "0.2", "--tracker", "none") == 0
    command = shlex.split(capsys.readouterr().out.splitlines()[-1].partition("Train on them: ")[2])
    assert command == ["python", "recipes/dinov2.py", "--data", out]
    assert sorted(reasons(out).values()) == [LEAKED, SAME_PICTURE, SAME_PIXELS]
    report = (tmp_path / "my images" / "report.html").read_text()
    assert "not an image" in report and "same picture" in report and "<script" not in report
    assert curate("verify", "--out", out) == 0
    leaked = next(one for one, reason in reasons(out).items() if reason == LEAKED)
    capsys.readouterr()
    assert curate("why", leaked[:12], "--out", out) == 0
    assert "leaked" in capsys.readouterr().out
    assert curate("plan", "--source", source) == 0
    assert f"{len(FIRST) + len(SECOND):,}" in capsys.readouterr().out


def test_curate__added_batch_is_judged_like_one_ingest(curate: Curate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    one, two = write(tmp_path / "one", FIRST), write(tmp_path / "two", SECOND)
    once, grown = str(tmp_path / "once"), str(tmp_path / "grown")
    rest = ("--max-bad", "0.5", "--tracker", "none")
    assert curate("--source", one, "--source", two, "--out", once, *rest) == 0
    assert curate("--source", one, "--out", grown, *rest) == 0
    assert curate("--source", two, "--out", grown, "--add", *rest) == 0
    assert reasons(grown) == reasons(once) and len(reasons(once)) == 3
    assert curate("diff", once, grown) == 0


def test_curate__other_thresholds_read_no_image_again(curate: Curate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = str(tmp_path / "out")
    assert curate("--source", write(tmp_path / "in", FIRST), "--out", out, "--tracker", "none") == 0
    monkeypatch.setattr("raydino.curation.features.decode", lambda data: pytest.fail("decoded again"))
    monkeypatch.setattr("raydino.curation.findings.search", lambda *_, **__: pytest.fail("searched again"))
    assert curate("--out", out, "--radius", "20", "--min-side", "80", "--tracker", "none") == 0
    with pytest.raises(pytest.fail.Exception):
        curate("--out", out, "--radius", "64", "--tracker", "none")


def test_curate__quality_and_placeholders_are_left_out_with_their_reason(curate: Curate, tmp_path: Path):
    files = FIRST | {
        "train/tiny.png": saved(scene(20, height=20, width=30)),
        "train/long.png": saved(scene(21, height=20, width=200)),
        "train/plain.png": saved(np.full((80, 100, 3), 200, np.uint8)),
        **{f"train/missing{n}.png": saved(scene(22)) for n in range(4)},
    }
    out = str(tmp_path / "out")
    rules = ("--copies", "3", "--min-side", "24", "--max-aspect", "4", "--min-entropy", "1")
    source = write(tmp_path / "in", files)
    assert curate("--source", source, "--out", out, *rules, "--tracker", "none") == 0
    assert sorted(reasons(out).values()) == ["placeholder", "too plain", "too small", "too small"]
    parameters = load(Folder(out)).stages[-1].parameters
    assert parameters["copies"] == 3 and parameters["max_aspect"] == 4


def test_curate__is_recorded_in_mlflow(curate: Curate, tmp_path: Path):
    from mlflow import MlflowClient

    out, tracker = str(tmp_path / "out"), f"sqlite:///{tmp_path}/mlflow.db"
    assert (
        curate(
            "--source", write(tmp_path / "in", FIRST | SECOND), "--out", out, "--max-bad", "0.2", "--tracker", tracker
        )
        == 0
    )
    client = MlflowClient(tracking_uri=tracker)
    experiment = client.get_experiment_by_name("curation")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.data.metrics["curation/leaked"] == 1
    assert {item.path for item in client.list_artifacts(run.info.run_id)} == {"report.html", "manifest.json"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "x"], "curate the images first"),
        (["--out", "x", "--radius", "80"], "radius = 80"),
        (["--out", "x", "--rule", "sscd"], "add --embed"),
        (["--out", "x", "--balance", "0.5"], "add --embed"),
        (["--out", "x", "--cells", "5"], "add --towards"),
        (["--source", "nowhere", "--out", "x"], "no such folder"),
        (["--source", "y"], "--out is missing"),
        (["wy", "--out", "x"], "none of run, plan, why, diff, verify"),
        (["why", "--out", "x"], "one id"),
        (["diff", "x"], "two curated folders"),
        (["--out", "x", "--no-screen"], "nothing to do"),
    ],
)
def test_curate__bad_commands_say_what_to_do(curate: Curate, capsys, words: list[str], message: str):
    assert curate(*words) != 0
    assert message in capsys.readouterr().err


def test_curate__verify_finds_a_changed_byte(curate: Curate, tmp_path: Path, capsys):
    out = str(tmp_path / "out")
    assert curate("--source", write(tmp_path / "in", FIRST), "--out", out, "--tracker", "none") == 0
    shard = next((tmp_path / "out" / "data").glob("train-*"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 1
    shard.write_bytes(bytes(data))
    assert curate("verify", "--out", out) == 1
    assert "train-00000" in capsys.readouterr().err


def test_write_curated_builtin__planted_copies_and_the_leak_are_all_that_is_left_out(tmp_path: Path):
    out = str(tmp_path / "out")
    write_curated_builtin(out)
    assert sorted(reasons(out).values()) == [LEAKED] + 8 * [SAME_PICTURE]
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["stages"]["deduplicate"] == {"duplicate": 8}
    kept = open_collection(out, split="train").keep()
    assert kept is not None and kept.sum() == 4096
