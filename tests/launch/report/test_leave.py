"""The page at the end of a run: how it ended stands in it, and nothing that goes wrong with it reaches the run."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raydino.launch.report.leave import add_files, leave_page

from .conftest import lines

Write = Callable[..., Path]


@pytest.mark.parametrize(
    ("over", "state", "said"),
    [("", "interrupted", "it was asked to stop"), ("a worker <died>", "failed", "a worker <died>")],
)
def test_leave_page__says_how_the_run_ended(
    write_run: Write, seen: Callable[..., Any], over: str, state: str, said: str
):
    folder = write_run(rows=lines(upto=10))
    files = leave_page(folder, over=over)
    assert files == [folder / "report.html", folder / "data.json"]
    found = seen(folder / "report.html")
    assert found.tiles["state"] == [state, "10 of 20 steps"] and said in found.words


def test_leave_page__a_page_that_cannot_be_made_is_a_warning(write_run: Write, caplog: pytest.LogCaptureFixture):
    folder = write_run()
    (folder / "recipe.yaml").write_text("s3://anna:hunter2@bucket: [")
    with caplog.at_level(logging.WARNING):
        assert leave_page(folder, over="") == [folder / "data.json"]
    (folder / "report.html").mkdir()
    leave_page(write_run("two"), over="")
    assert "was not written" in caplog.text and "hunter2" not in caplog.text


def test_add_files__a_tracker_that_is_away_is_a_warning(write_run: Write, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        add_files([write_run() / "data.json"], tracking_uri="http://anna:hunter2@127.0.0.1:9", run_id="x")
    assert "nothing was added to run x" in caplog.text and "hunter2" not in caplog.text
