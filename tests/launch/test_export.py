"""recipes/export.py from the command line: what it leaves behind, and that it leaves nothing where the features differ."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from raydino.export import to_safetensors, to_timm
from raydino.launch import export
from raydino.launch.model import open_model
from raydino.tracking.mlflow_run import client_of, record_files
from tests.launch.test_model import a_run


@pytest.fixture
def run(tmp_path: Path, small_images: Path) -> Path:
    folder = tmp_path / "tiny-0123"
    recipe, _ = a_run(folder, steps=(3,))
    (folder / "recipe.yaml").write_text(recipe.override({"data.path": str(small_images)}).to_yaml())
    (folder / "run.json").write_text(json.dumps({"data_digest": "abcd"}))
    metrics = {"knn/top1": {"untrained": 0.1, "last": 0.75, "best": 0.8, "best_step": 2}}
    (folder / "summary.json").write_text(json.dumps({"metrics": metrics}))
    return folder


def test_main__loads_it_in_a_fresh_process_and_says_how(
    run: Path,
    small_images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    out = tmp_path / "out"
    assert export.main("", ["--model", str(run), "--format", "timm", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert len(re.findall(r"largest difference at \d+ × \d+ pixels: \d\.\de[-+]\d\d", printed)) == 3
    page = (out / "README.md").read_text()
    for part in (
        "tiny-0123@3",
        "abcd",
        "| knn/top1 | 0.1 | 0.75 | 0.8 |",
        "patch_size: 8",
        "images of the run's own data",
    ):
        assert part in page
    assert str(small_images.parent) not in page and f"path: {small_images.name}" in page  # a card is for others
    (lines,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(out)
    names: dict[str, Any] = {"images": torch.randn(2, 3, 24, 40)}
    with torch.no_grad():
        exec(lines, names)
        torch.testing.assert_close(names["cls"], open_model(str(run)).backbone(names["images"]).cls, atol=1e-4, rtol=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "tiny-0123"]


def test_main__leaves_nothing_where_the_features_differ(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    weights = to_timm._weights

    def slightly_wrong(backbone: Any) -> dict[str, torch.Tensor]:
        tensors = weights(backbone)
        return {**tensors, "norm.bias": tensors["norm.bias"] + 2e-4}

    monkeypatch.setattr(to_timm, "_weights", slightly_wrong)
    assert export.main("", ["--model", str(run), "--format", "timm", "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "its features differ from the model's by more than 0.0001" in error and "2.0e-04" in error
    monkeypatch.setattr(to_timm, "LOAD", "import nowhere")
    assert export.main("", ["--model", str(run), "--format", "timm", "--out", str(tmp_path / "out")]) == 1
    assert "No module named 'nowhere'" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["tiny-0123"]


def test_main__safetensors_are_opened_again(run: Path, tmp_path: Path):
    out = tmp_path / "deep" / "out"
    assert export.main("", ["--model", str(run), "--out", str(out)]) == 0
    first, again = open_model(str(run)), open_model(str(out))
    assert (first.name, first.digest, first.step) == (again.name, again.digest, again.step)
    assert to_safetensors.is_export(out) and not to_safetensors.is_export(run)


def test_main__refuses_before_it_works(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("kept")
    assert export.main("", ["--model", str(run), "--out", str(tmp_path / "full")]) == 1
    assert "full: there is something; give a new folder" in capsys.readouterr().err
    assert (tmp_path / "full" / "mine.txt").read_text() == "kept"
    assert export.main("", ["--model", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 1
    assert "there is no such file or folder; give the folder of a run" in capsys.readouterr().err
    for words in (["--out", "x"], ["--import", "x.pth", "--out", "x"], ["--model", "x", "--import", "y", "--out", "z"]):
        with pytest.raises(SystemExit) as left:
            export.main("", words)
        assert left.value.code == 2


def test_main__mlflow_serves_and_registers_it(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tracker = f"sqlite:///{tmp_path}/mlflow.db"
    run_id = record_files(
        tracking_uri=tracker, experiment="raydino", run_name="tiny", params={}, metrics={}, files=[run / "recipe.yaml"]
    )
    words = ["--model", str(run), "--format", "mlflow", "--out", str(tmp_path / "out"), "--register", "encoder"]
    assert export.main("", words) == 1
    assert "register = encoder: is for --format mlflow of a run that MLflow has recorded" in capsys.readouterr().err
    (run / "run.json").write_text(json.dumps({"data_digest": "abcd", "mlflow_run_id": run_id}))
    assert export.main("", words) == 0
    printed = capsys.readouterr().out
    assert printed.count("largest difference") == 3 and "models:/encoder/1 in sqlite:///" in printed
    model = open_model(str(run))
    import mlflow

    version = client_of(tracker).get_model_version("encoder", "1")
    assert (version.run_id, version.tags["weights_digest"]) == (run_id, model.digest)
    served = mlflow.pyfunc.load_model(version.source)
    pixels = torch.randint(0, 256, (3, 3, 24, 32), dtype=torch.uint8)
    with torch.no_grad():
        expected = model.backbone(model.normalisation(pixels)).cls
    found = torch.from_numpy(served.predict(pixels.movedim(1, 3).numpy()))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert not list((tmp_path / "out").rglob("*.pkl"))
