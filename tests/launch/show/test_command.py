"""`recipes/show.py` from the command line to its page and MLflow, and what it refuses before anything is drawn."""

import base64
import json
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image

from raydino.launch.model import open_model, teacher_targets
from raydino.launch.show.command import PAGE, main
from raydino.recipe import Recipe
from raydino.tracking.mlflow_run import client_of
from raydino.train.checkpoint import load, path_of

Files = dict[str, Path]


def embedded(page: str) -> list[bytes]:
    return [base64.b64decode(each) for each in re.findall(r'src="data:image/png;base64,([^"]+)"', page)]


def test_main__files_of_one_name_and_two_models_on_one_page_that_loads_nothing(
    run_folder: Path, files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = [str(files["wide"]), str(files["high"])], tmp_path / "out"
    words = ["--model", str(run_folder), "--model", f"random:{run_folder}", "--foreground", "--size", "48"]
    assert main("", [*images, *words, "--out", str(out), "--crops", "3", "--untracked"]) == 0
    pictures = sorted(out.rglob("*.png"))
    kinds = ("attention", "crops", "foreground", "pca")
    assert [str(path.relative_to(out)) for path in pictures] == [
        f"{model}/{name}-{kind}.png"
        for model in ("random-small-run", "small-run@7")
        for name in ("cat-1-2", "cat-1")
        for kind in kinds
    ]
    page = (out / PAGE).read_text()
    assert sorted(embedded(page)) == sorted(path.read_bytes() for path in pictures)
    bare = re.sub(r'src="data:image/png;base64,[^"]+"', "", page)
    assert not re.findall(r"""src=|href=["'](?!#)|url\(|@import|<script|https?:|//[a-z]""", bare)
    assert "default-src 'none'" in page and "--foreground" in page
    wide, high = (Image.open(out / "small-run@7" / f"cat-1{end}-attention.png").size for end in ("", "-2"))
    assert wide[0] > high[0]  # each keeps its shape
    assert f"{out / PAGE}" in capsys.readouterr().out


def test_main__some_of_a_set_with_its_map_and_prototypes_and_in_mlflow(run_folder: Path, small_images: Path) -> None:
    words = ["--model", str(run_folder), "--data", str(small_images), "--images", "2", "--k", "3", "--bank", "60"]
    assert main("", [*words, "--map", "pca"]) == 0
    out = run_folder / "show"
    names = [path.name for path in sorted((out / "small-run@7").iterdir())]
    assert len(names) == 2 * 4 + 2 and names[-2:] == ["set-map.png", "set-prototypes.png"]
    assert "of its class" in (out / PAGE).read_text()
    run_id = json.loads((run_folder / "run.json").read_text())["mlflow_run_id"]
    client = client_of(f"sqlite:///{run_folder.parent}/mlflow.db")
    kept = [file.path for file in client.list_artifacts(run_id, "images")]
    assert sum("set-map" in path and path.endswith(".png") for path in kept) == 1
    assert sum(path.endswith(".png") for path in kept) == len(names)


def test_main__neighbours_of_a_file_and_a_network_without_attention(
    files: Files,
    small_images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from raydino.launch import model

    own = model.open_timm  # published weights would come from the network
    monkeypatch.setattr(
        model, "open_timm", lambda name, *, device, pretrained: own(name, device=device, pretrained=False)
    )
    words = [str(files["wide"]), "--model", "timm:resnet18", "--data", str(small_images), "--bank", "8", "--size", "64"]
    assert main("", [*words, "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "no attention to draw: resnet18 is a convolutional network" in said and "nearest of 8 images" in said
    assert sorted(path.name for path in (tmp_path / "timm-resnet18").iterdir()) == [
        "cat-1-crops.png", "cat-1-neighbours.png", "cat-1-pca.png",
    ]  # fmt: skip
    assert "no attention to draw" in (tmp_path / PAGE).read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "image: none is named; name image files, or give --data"),
        (["nowhere.png"], "image = 'nowhere.png': there is no such file"),
        (["FOLDER"], "is a folder; give its images, or --data"),
        (["broken"], "cannot be decoded (truncated"),
        (["text"], "cannot be decoded (not an image"),
        (["wide", "--size", "0"], "size = 0: give at least 1"),
        (["wide", "--crops", "1"], "crops = 1: give at least 2"),
        (["wide", "--k", "0"], "k = 0: give at least 1"),
        (["wide", "--model", "nowhere"], "model = 'nowhere': there is no such file or folder"),
        (["wide", "--data", "nowhere"], "nowhere"),
        (["--data", "SET", "--split", "dev"], "split = 'dev'"),
        (["--data", "SET", "--eval-split", "dev"], "eval_split = 'dev'"),
        (["--data", "SET", "--bank", "2"], "map = 'tsne': 2 images of curated, and a map needs 3; give --map none"),
        (["--data", "SET", "--map", "umap"], "invalid choice: 'umap'"),
    ],
)
def test_main__refuses_in_words_and_with_a_status(
    words: list[str],
    said: str,
    run_folder: Path,
    files: Files,
    small_images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    named = {"SET": small_images, "FOLDER": tmp_path, **files}
    model = [] if "--model" in words else ["--model", str(run_folder)]
    with pytest.raises(SystemExit) as left:
        main("", [*(str(named.get(word, word)) for word in words), *model, "--out", str(tmp_path / "out")])
    assert left.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_teacher_targets__are_those_of_the_methods_own_teacher(run_folder: Path) -> None:
    recipe = Recipe().from_yaml((run_folder / "recipe.yaml").read_text())
    method = recipe.method.build(recipe.backbone, steps=recipe.steps)
    method.load_state_dict(load(path_of(run_folder / "checkpoints", 7)).model)
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    cls = open_model(str(run_folder)).backbone(images).cls
    found = teacher_targets(str(run_folder))
    assert callable(found)
    with torch.no_grad():
        scores = method.teacher.head(cls) - method.centering.center  # type: ignore[union-attr,operator]
    expected = F.softmax(scores / method.teacher_temperature(6), dim=1)  # type: ignore[operator]
    torch.testing.assert_close(found(cls), expected)


def test_teacher_targets__say_why_there_are_none(run_folder: Path, tmp_path: Path) -> None:
    assert teacher_targets(f"random:{run_folder}") == teacher_targets("timm:resnet18")
    assert "only the folder of a run" in str(teacher_targets("timm:resnet18"))
    recipe = yaml.safe_load((run_folder / "recipe.yaml").read_text())
    del recipe["method"]["head"]  # as a supervised run has none
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert teacher_targets(str(tmp_path)) == "its method has no prototypes"
