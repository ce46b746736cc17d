"""`recipes/fairness.py` from the command line to its page, on images whose hard group is known, and what it refuses."""

import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raydino.launch.fairness.command import main
from raydino.launch.fairness.report import JSON_FILE, PAGE_FILE, PICTURE_FILE
from raydino.tracking.mlflow_run import client_of

COLOURS = np.array([[230, 30, 30], [30, 230, 30], [30, 30, 230], [220, 220, 30]])
NAMES = ["red", "green", "blue", "yellow"]
COUNT = 200


def encoded(label: int, *, hard: bool, seed: int) -> bytes:
    """A colour, or noise that says nothing of the class, of 12 to 36 pixels."""
    generator = np.random.default_rng(seed)
    side = 12 + seed % 3 * 12
    pixels = (
        generator.integers(0, 256, (side, side, 3))
        if hard
        else COLOURS[label] + generator.normal(0, 8, (side, side, 3))
    )
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_images(folder: Path, *, labelled: bool = True) -> Path:
    """Images in one split with groups: `place` is hard in the north, is missing for some and "islet" for six; one is broken."""
    folder.mkdir()
    places = ["north" if i % 5 == 0 else ("south", None, "east")[i % 3] for i in range(COUNT)]
    places[3:COUNT:34] = ["islet"] * len(places[3:COUNT:34])
    labels = [i // 5 % 4 for i in range(COUNT)]
    images = [
        encoded(label, hard=place == "north", seed=i)
        for i, (label, place) in enumerate(zip(labels, places, strict=True))
    ]
    images[1] = b"no image"
    columns = {
        "image": pa.array([{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(images)]),
        "label": pa.array(labels if labelled else [None] * COUNT, pa.int32()),
        "place": places,
        "year": [2000.0 + i % 2 if i % 7 else float("nan") for i in range(COUNT)],
        "number": list(range(COUNT)),
        "kind": ["png"] * COUNT,
        "box": [[1, 2]] * COUNT,
    }
    table = pa.table(columns).replace_schema_metadata({"label_names": json.dumps(NAMES)})
    pq.write_table(table, folder / "test-00000-of-00001.parquet", row_group_size=64)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("fair") / "places")


def test_main__the_hard_group_is_the_worst_and_the_rest_is_told(
    run_folder: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", "pixels", "--model", str(run_folder), "--data", str(images), "--size", "16", "--minimum", "15"]
    words += [*"--by place --by size --by year --by label --licence CC0".split(), "--source", "made here"]
    words += ["--association", "warm=red,yellow", "--association", "cold=blue"]
    assert main("", [*words, "--out", str(tmp_path / "one")]) == 0
    said, page = capsys.readouterr().out, (tmp_path / "one" / PAGE_FILE).read_text()
    found = json.loads((tmp_path / "one" / JSON_FILE).read_text())
    assert page in said and (tmp_path / "one" / PICTURE_FILE).read_bytes().startswith(b"\x89PNG")
    pixels, run = found["models"]
    assert (pixels["model"], run["model"], run["step"]) == ("pixels", "small-run@7", 7)
    place = pixels["columns"]["place"]
    shares = {group["group"]: group for group in place["groups"]}
    assert list(shares) == ["east", "islet", "north", "south", "(missing)"]
    assert shares["islet"]["share"] is None and 0 < shares["islet"]["count"] < 15
    assert place["gap"]["worst"] == "north" and shares["north"]["share"]["value"] < 0.6
    assert all(shares[name]["share"]["value"] > 0.95 for name in ("east", "south", "(missing)"))
    assert place["gap"]["chance"] < 0.01 and place["gap"]["between"]["low"] > 0.2
    assert [group["group"] for group in pixels["columns"]["year"]["groups"]] == ["2000.0", "2001.0", "(missing)"]
    assert [group["group"] for group in pixels["columns"]["label"]["groups"]] == sorted(NAMES)
    assert [group["group"] for group in pixels["columns"]["size"]["groups"]] == ["low", "middle", "high"]
    assert sum(group["count"] for group in shares.values()) in (COUNT // 2, COUNT // 2 - 1)
    assert "1 undecodable left out" in page
    warm = {share["group"]: share for share in pixels["associations"]["label"]["warm"]}
    assert warm["red"]["share"]["value"] > 0.7 > 0.3 > warm["blue"]["share"]["value"]
    for text in (
        "made here",
        "CC0",
        "no demographics",
        "What must not be concluded",
        "too few",
        "half of the images",
        "20-NN",
    ):
        assert text in page, text
    run_id = json.loads((run_folder / "run.json").read_text())["mlflow_run_id"]
    client = client_of(f"sqlite:///{run_folder.parent}/mlflow.db")
    metrics = client.get_run(run_id).data.metrics
    assert metrics["fairness-places/place_gap"] == pytest.approx(run["columns"]["place"]["gap"]["between"]["value"])
    assert PAGE_FILE in [file.path for file in client.list_artifacts(run_id)]
    assert main("", [*words, "--out", str(tmp_path / "two"), "--untracked"]) == 0
    again = json.loads((tmp_path / "two" / JSON_FILE).read_text())
    assert again["models"] == found["models"] and again["columns"] == found["columns"]


def test_main__counts_are_those_of_the_file_and_halves_are_even(images: Path, tmp_path: Path) -> None:
    words = ["--model", "pixels", "--data", str(images), "--by", "place", "--size", "16", "--head", "logistic"]
    assert main("", [*words, "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / JSON_FILE).read_text())
    table = pq.read_table(images / "test-00000-of-00001.parquet", columns=["place", "label"]).to_pydict()
    every = Counter((place or "(missing)", NAMES[label]) for place, label in zip(*table.values(), strict=True))
    counts = found["columns"]["place"]["counts"]
    assert sum(sum(of_class.values()) for of_class in counts.values()) == COUNT // 2
    for group, of_class in counts.items():
        for name, count in of_class.items():
            assert abs(2 * count - every[group, name]) <= 1
    assert "logistic regression" in found["head"] and found["source"] == "not stated"


def test_main__the_head_learns_on_a_training_split_where_there_is_one(small_images: Path, tmp_path: Path) -> None:
    words = ["--model", "pixels", "--data", str(small_images), "--by", "brightness", "--size", "16", "--minimum", "40"]
    assert main("", [*words, "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / JSON_FILE).read_text())
    assert found["learned_from"] == "the training split" and found["images"].startswith("60 queries against 24")
    assert found["models"][0]["columns"]["brightness"]["gap"] is None  # thirds of 60 are too few
    assert "there is no gap to tell" in (tmp_path / PAGE_FILE).read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--by", "plaec"], "by = 'plaec': "),
        (["--by", "plaec"], "did you mean place"),
        (["--by", "colour"], "there are box, brightness, bytes-per-pixel"),
        (["--by", "kind"], "by = 'kind': all 100 judged images are 'png'; give a column of two or more groups"),
        (["--by", "number"], "by = 'number': 100 values among 100 judged images; give a column of at most 50"),
        (["--by", "box"], "by = 'box': holds lists"),
        (["--minimum", "0"], "minimum = 0: give at least 1"),
        (["--association", "warm"], "association = 'warm': write NAME=CLASS,CLASS"),
        (["--association", "a=red", "--association", "a=blue"], "'a' is there twice"),
        (["--association", "warm=red,yelow"], "the images have no class 'yelow'; did you mean yellow"),
        (["--model", "nowhere"], "model = 'nowhere'"),
        (["--data", "nowhere"], "nowhere"),
    ],
)
def test_main__refuses_in_words_and_with_a_status(
    words: list[str], said: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [] if "--model" in words else ["--model", "pixels"]
    given += [] if "--data" in words else ["--data", str(images)]
    given += [] if "--by" in words else ["--by", "place"]
    with pytest.raises(SystemExit) as left:
        main("", [*given, *words, "--size", "16", "--out", str(tmp_path / "out")])
    assert left.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_main__refuses_images_without_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_images(tmp_path / "unlabelled", labelled=False)
    with pytest.raises(SystemExit):
        main("", ["--model", "pixels", "--data", str(folder), "--by", "place"])
    assert "no labels (column `label`)" in capsys.readouterr().err
