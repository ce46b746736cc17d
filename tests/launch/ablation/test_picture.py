"""The picture holds the table's figures, in order."""

from pathlib import Path

import pytest
from PIL import Image

from raydino.launch.ablation.picture import COLOURS, draw, figure
from raydino.launch.ablation.table import Outcome, Row, rows
from raydino.launch.ablation.variants import FULL, Variant

SCORES = {
    FULL: [0.5, 0.52, 0.54],
    "off": [0.2, 0.21, 0.25],
    "on": [0.7, 0.72, 0.73],
    "other": [0.4, 0.6, 0.5],
    "gone": [],
}


def _rows() -> list[Row]:
    outcomes = [
        Outcome(name, seed, score, first_alarm=50 if (name, seed) == ("off", 1) else None)
        for name, scores in SCORES.items()
        for seed, score in enumerate(scores)
    ]
    outcomes.append(Outcome("gone", 0, None, failure="failed"))
    return rows(outcomes, [Variant(name, "part", "changed", {}) for name in SCORES if name != FULL])


def test_figure__has_a_dot_per_seed_and_the_interval_from_worst_to_best():
    found = {row.variant: row for row in _rows()}
    (axes,) = figure(list(found.values()), objective="knn/top1").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["part: off", "part: other", "part: on"]
    marks = iter(axes.collections)  # for each variant its dots, then its bar
    for name in ("off", "other", "on"):
        row = found[name]
        dots = [next(marks) for _ in row.scores]
        differences = [score - full for score, full in zip(SCORES[name], SCORES[FULL], strict=True)]
        assert [dot.get_offsets()[0, 0] for dot in dots] == pytest.approx(differences)
        crossed = [len(dot.get_paths()[0].vertices) < 10 for dot in dots]  # a circle has more
        assert crossed == [name == "off" and seed == 1 for seed in range(3)]
        bar = next(marks).get_segments()[0]
        assert bar[:, 0].tolist() == pytest.approx([row.difference - row.half_width, row.difference + row.half_width])
    assert [found[name].direction for name in ("off", "other", "on")] == ["worse", "close", "better"]
    assert len(set(COLOURS.values())) == 3


def test_draw__writes_a_png_that_grows_with_the_variants(tmp_path: Path):
    draw(_rows(), tmp_path / "four.png", objective="knn/top1")
    draw(_rows()[:2], tmp_path / "one.png", objective="knn/top1")
    with Image.open(tmp_path / "four.png") as four, Image.open(tmp_path / "one.png") as one:
        assert four.width == one.width and four.height > one.height
