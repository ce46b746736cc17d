"""What a study says of the images that pre-training saw, and that a tracker that is down costs no table."""

import json
from pathlib import Path

import pytest
import torch

from raydino.evals.config import KNNConfig, LogisticConfig
from raydino.launch.robustness.groups import Member
from raydino.launch.robustness.record import JSON_FILE, PICTURE_FILE, TABLE_FILE, protocol, record, save
from raydino.launch.robustness.table import head_tables
from raydino.launch.subjects import PIXELS, Asked, open_images, opened
from raydino.shards.reader import open_collection
from tests.evals.test_images import png, write_split
from tests.launch.robustness.test_table import ALL, NONE

FIELDS = {"steps": 2, "global_batch": 16, "data.split": "train", "data.path": "elsewhere", "data.holdout": 0.1}


@pytest.mark.parametrize(
    ("splits", "own", "said"),
    [
        (("train", "test"), {}, "saw none of these images; its own were elsewhere"),
        (("train", "test"), {"data.path": "here"}, "saw the images that heads learn from, and none that are judged"),
        (("train", "test"), {"images": "train"}, "saw the images that heads learn from, and none that are judged"),
        (("train", "test"), {"images": "test"}, "saw the images that are judged, and none that heads learn from"),
        (("test",), {"data.path": "here"}, "saw none of these images"),  # it was trained on another split of the folder
        (("test",), {"images": "test"}, "saw these images, those that are judged too, but for 10%"),
    ],
)
def test_protocol__says_what_pre_training_saw(
    splits: tuple[str, ...], own: dict[str, str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, split in enumerate(splits):
        write_split(tmp_path / "here", split, [png(10 * number + i) for i in range(8)], [0, 1] * 4)
    asked = Asked((PIXELS,), {"knn": KNNConfig()}, (), None, 16, 0, 0.5, None, None, tracked=False)
    labelled = open_images(asked, "here", opened(asked, torch.device("cpu"))[0])
    images = open_collection("here").part(own["images"]).manifest.digest if "images" in own else "elsewhere"
    member = Member("a", 0, tmp_path, {**FIELDS, **{k: v for k, v in own.items() if k != "images"}}, images)
    settings = {"data": "here", "knn": KNNConfig(), "logistic": LogisticConfig()}
    assert said in protocol({"a": (member,)}, labelled, {}, None, **settings)["pre-training"]


def test_record__a_tracker_that_is_down_is_told_and_costs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    groups = {name: (Member(name, 0, tmp_path / name, FIELDS, "x"),) for name in ("supervised", "dino")}
    (tmp_path / "dino").mkdir()  # the one folder that has a run
    (tmp_path / "dino" / "run.json").write_text(json.dumps({"mlflow_run_id": "a" * 32}))
    (tmp_path / "dino" / "cluster.yaml").write_text("tracking_uri: http://127.0.0.1:9\n")
    tables = head_tables(ALL, NONE)
    save(tmp_path, groups, tables, ALL, ALL, {"training": "none"})
    record(groups, tables, tmp_path, data="set")
    assert "nothing was added to run aaaa" in capsys.readouterr().out
    assert (tmp_path / TABLE_FILE).read_text().startswith("# Robustness")
    assert len(json.loads((tmp_path / JSON_FILE).read_text())["scores"]) == 6
    assert (tmp_path / PICTURE_FILE).stat().st_size > 1000
