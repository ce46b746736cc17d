"""The record on disk: nothing lost, nothing rewritten, crashes in the middle of a line survived."""

import json
import logging
import math
from pathlib import Path

import pytest
from PIL import Image

from raydino.tracking.spool import Spool, entries, read_metrics


def test_log__one_json_object_a_line_with_step_and_time(tmp_path: Path) -> None:
    spool = Spool(tmp_path, clock=lambda: 1234.5678)
    spool.log({"loss/total": 7.25, "optim/lr": 1e-4}, 10)
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "step": 10, "time": 1234.568, "loss/total": 7.25, "optim/lr": 1e-4,
    }  # fmt: skip


def test_log__is_on_disk_before_close(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.log({"a/b": 1.0}, 0)
    assert read_metrics(tmp_path / "metrics.jsonl") == {0: {"a/b": 1.0}}


def test_log__non_finite_values_are_null_and_flagged_and_read_back(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.log({"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.0}, 3)
    line = json.loads(
        (tmp_path / "metrics.jsonl").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON")
    )
    assert [line[name] for name in "abcd"] == [None, None, None, 1.0]
    assert line["non_finite"] == {"a": "nan", "b": "inf", "c": "-inf"}
    read = read_metrics(tmp_path / "metrics.jsonl")[3]
    assert math.isnan(read["a"]) and (read["b"], read["c"], read["d"]) == (math.inf, -math.inf, 1.0)


def test_read_metrics__merges_lines_of_a_step_and_the_last_value_wins(tmp_path: Path) -> None:
    first = Spool(tmp_path)
    for step in (10, 20, 30):
        first.log({"loss/total": step + 0.1}, step)
    first.log({"knn/top1": 0.5}, 20)
    first.close("KILLED")
    before = (tmp_path / "metrics.jsonl").read_bytes()
    resumed = Spool(tmp_path)  # from the checkpoint at step 10
    resumed.log({"loss/total": 99.0}, 20)
    assert (tmp_path / "metrics.jsonl").read_bytes().startswith(before)
    assert read_metrics(tmp_path / "metrics.jsonl") == {
        10: {"loss/total": 10.1}, 20: {"loss/total": 99.0, "knn/top1": 0.5}, 30: {"loss/total": 30.1},
    }  # fmt: skip


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_spool__a_torn_line_costs_that_line_only(tmp_path: Path, cut: int, caplog: pytest.LogCaptureFixture) -> None:
    spool = Spool(tmp_path)
    for step in range(3):
        spool.log({"loss/total": float(step)}, step)
    spool.close("KILLED")
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    assert list(read_metrics(path)) == [0, 1]
    Spool(tmp_path).log({"loss/total": 9.0}, 9)
    with caplog.at_level(logging.WARNING):
        steps = list(read_metrics(path))
    # Without its newline alone, a line is whole again once the next writer has ended it.
    assert steps == ([0, 1, 2, 9] if cut == 1 else [0, 1, 9])
    assert ("torn" in caplog.text) == (cut > 1)


def test_entries__offsets_continue_where_they_ended(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for step in range(5):
        spool.log({"a": float(step)}, step)
    all_entries = list(entries(spool.path))
    assert [entry.step for entry in entries(spool.path, offset=all_entries[2].end)] == [3, 4]
    assert all_entries[-1].end == spool.path.stat().st_size


def test_read_metrics__a_missing_file_is_an_empty_record(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == {}


@pytest.mark.parametrize("name", ["", "step", "time", "a b\n", "loss//x", "../x", "x/", "a" * 251, "loss/ü", "a?b"])
def test_log__refuses_names_no_tracker_can_hold(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="metric "):
        Spool(tmp_path).log({name: 1.0}, 0)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_log__refuses_a_negative_step(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="step = -1"):
        Spool(tmp_path).log({"a": 1.0}, -1)


def test_picture__is_written_with_name_and_step(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 3), (1, 2, 3))
    path = Spool(tmp_path).picture("pictures/attention", image, 40)
    assert path == tmp_path / "pictures" / "pictures-attention-step-0000040.png"
    assert list(Image.open(path).get_flattened_data()) == [(1, 2, 3)] * 12


def test_artifact__must_be_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Spool(tmp_path).artifact(tmp_path / "nowhere.txt")
