"""The figures of a study on accuracies made by hand, and their intervals against SciPy's."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from raydino.evals.corruptions import KINDS, LEVELS
from raydino.launch.robustness.picture import draw, figure
from raydino.launch.robustness.scores import Scores, figures, lines
from raydino.launch.robustness.table import as_json, head_tables, markdown

CLEAN = {"supervised": [0.60, 0.64, 0.62], "dino": [0.50, 0.58, 0.57]}


def scores(group: str, seed: int, *, clean: float | None = None, model: str = "") -> Scores:
    """Accuracies that fall by 0.02 a level from the clean one, and by 0.01 more for fog."""
    clean = CLEAN[group][seed] if clean is None else clean
    kinds = {kind: [clean - 0.02 * level - 0.01 * (kind == "fog") for level in LEVELS] for kind in KINDS}
    shift = {"far": (clean, clean - 0.2)}
    return Scores(group, seed, model or f"{group}-{seed}", "knn", clean, kinds, shift, {"ECE": 0.1 * (seed + 1)})


ALL = [scores(group, seed) for group in CLEAN for seed in range(3)]
NONE = {"knn": {"corrupted": "none", "far": "none"}}


def test_scores__means_over_kinds_and_levels() -> None:
    found = scores("dino", 0)
    assert found.corrupted == pytest.approx(0.5 - 0.06 - 0.01 / 15)
    assert [found.at_level(level) for level in (0, 2)] == pytest.approx([0.5, 0.46 - 0.01 / 15])
    assert found.errors["fog"] == pytest.approx([0.53, 0.55, 0.57, 0.59, 0.61])


def test_figures__by_hand() -> None:
    found = figures(scores("dino", 0), scores("supervised", 0), NONE["knn"])
    # Errors over levels: 0.5 + 0.02 · level, mean 0.56, beside 0.46; fog 0.57 beside 0.47. What they rise by is equal.
    assert found["mCE"] == pytest.approx((14 * 0.56 / 0.46 + 0.57 / 0.47) / 15)
    assert found["relative mCE"] == pytest.approx(1)
    assert found["drop"] == pytest.approx(0.06 + 0.01 / 15)
    assert (found["far"], found["drop, far"]) == pytest.approx((0.3, 0.2))
    assert found["effective, corrupted"] is None and found["ECE"] == pytest.approx(0.1)


def test_head_tables__intervals_are_scipys_and_differences_by_seed() -> None:
    (table,) = head_tables(ALL, NONE)
    own = table.figures["clean"]["dino"]
    assert own is not None and own.mean == pytest.approx(np.mean(CLEAN["dino"]))
    low, high = stats.t.interval(0.95, 2, loc=own.mean, scale=stats.sem(CLEAN["dino"]))
    assert own.half_width == pytest.approx((high - low) / 2)
    apart = np.subtract(CLEAN["dino"], CLEAN["supervised"])
    low, high = stats.t.interval(0.95, 2, loc=apart.mean(), scale=stats.sem(apart))
    assert (own.difference, own.difference_half_width) == pytest.approx((apart.mean(), (high - low) / 2))
    base = table.figures["mCE"]["supervised"]
    assert base is not None and (base.mean, base.half_width, base.difference) == pytest.approx((1, 0, None))
    assert table.figures["effective, far"]["dino"] is None


def test_lines__of_the_baselines_networks() -> None:
    ladder = [scores("supervised", 0, clean=clean) for clean in (0.3, 0.4, 0.5, 0.6, 0.7)]
    expected = {"knn": lines(ladder, ["far"])}
    (table,) = head_tables(ALL, expected)
    for name, clean in (("supervised", 0.60), ("dino", 0.50)):
        found = table.figures["effective, far"][name]
        x = [math.log(a / (1 - a)) for a in (0.3, 0.4, 0.5, 0.6, 0.7)]
        y = [math.log((a - 0.2) / (1.2 - a)) for a in (0.3, 0.4, 0.5, 0.6, 0.7)]
        fitted = stats.linregress(x, y)
        logit = fitted.slope * math.log(clean / (1 - clean)) + fitted.intercept
        assert found is not None and found.values[0] == pytest.approx(clean - 0.2 - 1 / (1 + math.exp(-logit)))


def test_markdown__bold_only_where_the_interval_has_a_width_and_leaves_out_0(tmp_path: Path) -> None:
    far = [scores("dino", seed, clean=CLEAN["supervised"][seed] - 0.2) for seed in range(3)]
    pixels = [scores("pixels", seed, clean=0.3, model="pixels") for seed in range(3)]
    tables = head_tables([*ALL[:3], *far, *pixels], NONE)
    page = markdown(tables, {"images": "ten"})
    assert "| clean | -0.200 ± 0.000 | **-0.320 ± 0.050** |" in page
    assert "| clean | 0.620 ± 0.050 | 0.420 ± 0.050 | 0.300 |" in page  # pixels have no seeds of their own
    assert "- **images**: ten." in page
    # Differences of -0.10, -0.06, -0.05: -0.07 ± 0.066. Of -0.10, -0.06, 0.01: -0.05 ± 0.14.
    assert "| clean | **-0.070 ± 0.066** |" in markdown(head_tables(ALL, NONE), {})
    unclear = [*ALL[:5], scores("dino", 2, clean=0.63)]
    assert "| clean | -0.050 ± 0.138 |" in markdown(head_tables(unclear, NONE), {})
    body = json.loads(as_json(tables, far, {"version": "1"}))
    assert body["scores"][0]["kinds"]["fog"] == pytest.approx(far[0].kinds["fog"])
    assert body["tables"][0]["figures"]["clean"]["dino"]["values"]["0"] == pytest.approx(0.4)
    draw(ALL, tmp_path / "picture.png")
    assert Image.open(tmp_path / "picture.png").size[0] > 200


def test_figure__lines_are_means_and_bands_go_from_worst_to_best() -> None:
    (axes,) = figure(ALL).axes
    assert [line.get_label() for line in axes.lines] == list(CLEAN)
    for line, band, group in zip(axes.lines, axes.collections, CLEAN, strict=True):
        expected = [np.mean(CLEAN[group]) - 0.02 * level - (level > 0) * 0.01 / 15 for level in range(6)]
        assert np.allclose(np.asarray(line.get_ydata()), expected)
        edges = band.get_paths()[0].vertices
        assert edges is not None and edges[:, 1].max() == pytest.approx(max(CLEAN[group]))
