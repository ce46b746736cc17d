"""Runs as their folders are, written by hand: nothing here goes through what reads them."""

import json
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from raydino.recipe import Recipe

STEPS, BATCH = 20, 16
KNN = {0: 0.25, 10: 0.5, 20: 0.75}
RANKME = {0: 5.0, 10: 8.0, 20: 12.5}


def recipe_of(changes: Mapping[str, Any] | None = None) -> Recipe:
    return Recipe().override({"name": "run", "steps": STEPS, "global_batch": BATCH, **(changes or {})})


def lines(shift: float = 0.0, *, upto: int = STEPS) -> list[dict[str, Any]]:
    """metrics.jsonl: an evaluation every ten steps, losses every second."""
    found: list[dict[str, Any]] = []
    for step in range(upto + 1):
        if step in KNN:
            judged = {"knn/top1": KNN[step] + shift, "health/rankme": RANKME[step]}
            found.append(
                {"step": step, "time": 1000.0 + step, **judged, **({"pixels/top1": 0.625} if step == 0 else {})}
            )
        if step and step % 2 == 0:
            found.append(
                {
                    "step": step,
                    "time": 1000.5 + step,
                    "loss/total": 9.0 - step / 10 + shift,
                    "throughput/step_seconds": 0.5,
                    "throughput/data_wait": 0.25,
                    "throughput/images_per_s": 32.0,
                    "health/collapsed": 0.0,
                    "health/not_finite_steps": float(step == 4),
                    "health/loss_spikes": 0.0,
                }
            )
    return found


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., Path]:
    """Write a run's folder: `rows` of its record, changes of its recipe, its name."""

    def make(
        name: str = "run-1",
        *,
        changes: Mapping[str, Any] | None = None,
        rows: list[dict[str, Any]] | None = None,
        inside: Path | None = None,
    ) -> Path:
        folder = (inside or tmp_path) / name
        (folder / "pictures").mkdir(parents=True)
        (folder / "recipe.yaml").write_text(recipe_of(changes).to_yaml())
        (folder / "cluster.yaml").write_text("workers: 2\ncpus_per_worker: 3.0\n")
        record = lines() if rows is None else rows
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in record))
        for step, colour in ((0, "red"), (10, "green"), (20, "blue")):
            Image.new("RGB", (8, 8), colour).save(folder / "pictures" / f"patch_pca-step-{step:07d}.png")
        bad = [{"id": "00", "path": "a.jpg", "reason": "truncated"}, {"id": "01", "path": "b", "reason": "empty"}]
        (folder / "quarantine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*bad, bad[0]]))
        (folder / "run.json").write_text(json.dumps({"run_id": name, "device": "core", "mlflow_run_id": "abc"}))
        stage = {"name": "validate", "rows_in": 120, "rows_out": 100, "by_reason": {"empty": 15, "not an image": 5}}
        card = {"path": "images", "digest": "d" * 64, "rows": 100, "kept": 90, "classes": 4, "labelled": True}
        (folder / "data.json").write_text(json.dumps({**card, "stages": [stage]}))
        return folder

    return make


@pytest.fixture
def evaluated() -> list[dict[str, Any]]:
    """evaluation.json, of a run and of the same untrained."""
    about = {
        "digest": "e" * 16, "step": 20, "evaluation": "linear", "data": "birds", "data_digest": "f" * 16,
        "protocol": "52 heads", "images": "all", "seconds": 1.0, "device": "cpu", "version": "0.1.0",
    }  # fmt: skip
    return [
        {"model": "run-1@20", **about, "metrics": {"top1": 0.4375}},
        {"model": "random:run-1", **about, "metrics": {"top1": 0.1875}},
    ]


class Seen(HTMLParser):
    """A page as somebody reads it: tables by caption, tiles, sections, addresses, all words."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.tiles: dict[str, list[str]] = {}
        self.words, self.tags, self.addresses = "", set[str](), list[str]()
        self.ids: list[str] = []
        self._cell: list[str] | None = None
        self._rows: list[list[str]] = []
        self._caption, self._in = "", ""
        self._term = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        known = dict(attrs)
        self.addresses += [
            str(known[name]) for name in ("src", "href", "action", "data", "xlink:href") if known.get(name)
        ]
        self.ids += [str(known["id"])] if known.get("id") else []
        assert not any(name.startswith("on") for name, _ in attrs), "no scripts in attributes"
        if tag in ("th", "td"):
            self._cell = []
        elif tag == "tr":
            self._rows.append([])
        elif tag == "table":
            self._rows = []
        if tag in ("caption", "dt", "dd"):
            self._in, self._caption = tag, self._caption if tag != "caption" else ""

    def handle_endtag(self, tag: str) -> None:
        if tag in ("th", "td") and self._cell is not None:
            self._rows[-1].append("".join(self._cell))
            self._cell = None
        elif tag == "table":
            self.tables[self._caption] = self._rows
        if tag in ("caption", "dt", "dd"):
            self._in = ""

    def handle_data(self, data: str) -> None:
        self.words += data
        if self._cell is not None:
            self._cell.append(data)
        if self._in == "caption":
            self._caption += data
        elif self._in == "dt":
            self._term = data
            self.tiles[data] = []
        elif self._in == "dd":
            self.tiles[self._term].append(data)


@pytest.fixture
def seen() -> Callable[[str | Path], Seen]:
    """Read a page, or the file of one."""
    return lambda page: Seen(page.read_text() if isinstance(page, Path) else page)


def yaml_of(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())
