"""`recipes/robustness.py` on small untrained runs from the command line to its files, and what it refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from raydino.curation.synthetic import write_builtin
from raydino.evals.config import KNNConfig, LogisticConfig
from raydino.evals.corruptions import KINDS, LEVELS, corrupt
from raydino.evals.evaluation import Labelled
from raydino.evals.features import extract
from raydino.evals.knn import classify
from raydino.launch.model import open_model
from raydino.launch.robustness.command import main
from raydino.launch.robustness.record import JSON_FILE, PICTURE_FILE, TABLE_FILE
from raydino.launch.robustness.study import Subject, class_mean, fit_heads, measure
from raydino.launch.subjects import Asked, open_images


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images") / "clean"
    write_builtin(str(folder), train=120, test=40)
    shutil.copytree(folder, folder.parent / "far")
    return folder


def labelled_of(images: Path, model, *, bank: int, queries: int) -> Labelled:
    asked = Asked(
        ("m",), {"knn": KNNConfig(bank=bank, queries=queries)}, (), None, None, 0, 0.2, None, None, tracked=False
    )
    return open_images(asked, str(images), model)


def test_main__groups_pixels_and_ladder_from_the_command_line_to_the_files(
    groups: list[str], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shift = ["--shift", str(images.parent / "far")]
    limits = ["--images", "4", "--bank", "60", "--strengths", "2"]
    out = ["--out", str(tmp_path), "--untracked"]
    assert main("", [*groups, "--data", str(images), *shift, *limits, "--pixels", "--ladder", *out]) == 0
    page = (tmp_path / TABLE_FILE).read_text()
    assert page in capsys.readouterr().out
    assert "4 queries against 60 images" in page and "| figure | supervised | dino | pixels |" in page
    assert (tmp_path / PICTURE_FILE).stat().st_size > 1000
    body = json.loads((tmp_path / JSON_FILE).read_text())
    # 4 runs and a ladder of 2 untrained and 2 earlier steps, with two heads each; pixels with one.
    assert len(body["scores"]) == 17 and body["runs"]["dino"] == ["dino-0", "dino-1"]
    ladder = {s["model"] for s in body["scores"]}
    assert {"random:supervised-0", "supervised-1@1", "supervised-1@2", "dino-0@2", "pixels"} <= ladder
    knn = body["tables"][0]["figures"]
    assert knn["mCE"]["supervised"]["values"] == {"0": pytest.approx(1), "1": pytest.approx(1)}
    assert set(knn["clean"]["pixels"]["values"]) == {"0", "1"} and knn["clean"]["pixels"]["half_width"] is None
    assert body["tables"][1]["figures"]["ECE, corrupted"]["dino"]["half_width"] is not None


def test_measure__equals_the_evaluation_of_each_corrupted_image(groups: list[str], images: Path) -> None:
    model = open_model(groups[1].partition("=")[2].partition(",")[0])
    labelled = labelled_of(images, model, bank=60, queries=8)
    knn = KNNConfig(k=3, bank=60)
    logistic = LogisticConfig(strengths=1, exponents=(-1.0, 0.0), iterations=20, tolerance=1e-3)
    found = measure([Subject("a", 0, model)], labelled, {}, knn=knn, logistic=logistic, say=lambda text: None)
    assert [(s.head, list(s.kinds)) for s in found] == [("knn", list(KINDS)), ("logistic", list(KINDS))]
    bank, labels = extract(model.backbone, labelled.bank, model.normalisation, device="cpu")
    pixels = next(labelled.queries.chunks(np.arange(8), batch=8))[0].numpy()
    for kind, level in (("fog", 1), ("jpeg", 5), ("gaussian_noise", 3)):
        right = []
        for crop, key, label in zip(pixels, labelled.queries.ids(), labelled.queries.labels, strict=True):
            bad = corrupt(np.ascontiguousarray(crop.transpose(1, 2, 0)), kind, level, image_id=key)
            x = model.normalisation(torch.from_numpy(bad.transpose(2, 0, 1).copy())[None])
            with torch.inference_mode():
                votes = classify(
                    bank, labels, model.backbone(x).cls, classes=len(labelled.classes), k=3, temperature=0.07
                )
            right.append(int(votes.argmax()) == label)
        assert found[0].kinds[kind][LEVELS.index(level)] == pytest.approx(np.mean(right))


def test_fit_heads__temperature_comes_from_images_that_regression_has_not_seen(groups: list[str], images: Path) -> None:
    model = open_model(groups[1].partition("=")[2].partition(",")[0])
    labelled = labelled_of(images, model, bank=40, queries=4)
    # Hardly any penalty: features of 16 values tell 36 images apart, which is overconfident on others.
    weak = LogisticConfig(strengths=1, exponents=(5.0, 5.0), iterations=500, tolerance=1e-6)
    assert fit_heads(Subject("a", 0, model), labelled, KNNConfig(), weak).temperature > 1.5


def test_class_mean__weighs_classes_alike() -> None:
    labels = np.array([0, 0, 0, 1, 2])
    answers = np.array([0, 0, 1, 0, 2])
    assert class_mean(answers, labels, np.array([0, 1])) == pytest.approx((2 / 3 + 0) / 2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--images", "0"], "images = 0: give at least 1"),
        (["--bank", "3"], "bank = 3: give at least 20"),
        (["--shift", "a/x", "--shift", "b/x"], "two folders have one name"),
        (["--data", "nowhere"], "nowhere"),
        (["--group", "third"], "group = 'third': write NAME=RUN,RUN"),
        (["--split", "dev"], "split = 'dev'"),
    ],
)
def test_main__refuses_in_words_and_with_a_status(
    words: list[str], said: str, groups: list[str], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main("", [*groups, "--data", str(images), "--out", str(tmp_path), *words])
    assert left.value.code == 2
    assert said in capsys.readouterr().err


def test_main__refuses_a_shift_of_other_classes(
    groups: list[str], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    far = tmp_path / "far"
    shutil.copytree(images, far)
    manifest = json.loads((far / "manifest.json").read_text())
    manifest["classes"] = manifest["classes"][::-1]
    (far / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(SystemExit):
        main("", [*groups, "--data", str(images), "--shift", str(far), "--out", str(tmp_path / "out")])
    assert "give a set with the same classes in the same order" in capsys.readouterr().err
