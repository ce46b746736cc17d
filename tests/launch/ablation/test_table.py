"""The table against figures worked out by hand, and its three forms against each other."""

import csv
import io
import json
import random
from typing import Any

import pytest

from raydino.launch.ablation.table import Outcome, Row, as_csv, as_json, interval, markdown, rows
from raydino.launch.ablation.variants import FULL, LeftOut, Variant


def _variant(expected: Any = "worse", name: str = "off") -> Variant:
    return Variant(name, "a component", "none of it", {"seed": 1}, expected, "0.1 against 0.2 (a paper)")


def _outcomes(full: list[float], other: list[float | None], **about: Any) -> list[Outcome]:
    return [
        *(Outcome(FULL, seed, score, seconds=10.0) for seed, score in enumerate(full)),
        *(Outcome("off", seed, score, **{"seconds": 20.0, **about}) for seed, score in enumerate(other)),
    ]


def _row(full: list[float], other: list[float | None], expected: Any = "worse", **about: Any) -> Row:
    return rows(_outcomes(full, other, **about), [_variant(expected)])[1]


def test_interval__is_student_s_of_the_printed_tables():
    assert interval([1.0, 2.0, 3.0]) == (2.0, pytest.approx(4.303 / 3**0.5, rel=1e-4))
    assert interval([0.0, 0.2]) == (pytest.approx(0.1), pytest.approx(12.706 * 0.1, rel=1e-4))
    assert interval([0.3]) == (0.3, None)


def test_interval__covers_the_true_mean_in_95_of_100_cases():
    draw, hits = random.Random(0), 0
    for _ in range(2000):
        mean, half = interval([draw.gauss(0.5, 0.1) for _ in range(4)])
        assert half is not None
        hits += abs(mean - 0.5) <= half
    assert 0.93 < hits / 2000 < 0.97


def test_row__difference_is_taken_seed_by_seed():
    """Seeds apart by more than the effect: unpaired nothing could be told."""
    row = _row([0.5, 0.7, 0.9], [0.48, 0.679, 0.881])
    assert (row.mean, row.spread) == (pytest.approx(0.68), pytest.approx(0.2005, abs=1e-3))
    assert row.difference == pytest.approx(-0.02) and row.half_width == pytest.approx(4.303 * 0.001 / 3**0.5, rel=1e-3)
    assert (row.direction, row.agrees) == ("worse", "yes")


NOISY, WORSE, BETTER, EQUAL = [0.6, 0.4, 0.5], [0.3, 0.31, 0.29], [0.7, 0.71, 0.69], [0.501, 0.5, 0.499]


@pytest.mark.parametrize(
    ("expected", "other", "agrees"),
    [
        ("worse", WORSE, "yes"),
        ("worse", BETTER, "no"),
        ("worse", NOISY, "too close to tell"),
        ("better", BETTER, "yes"),
        ("better", WORSE, "no"),
        ("same", EQUAL, "yes"),
        ("same", [0.51, 0.51, 0.51], "yes"),  # told from none, but of no weight
        ("same", NOISY, "too close to tell"),
        ("same", WORSE, "no"),
        ("same", BETTER, "no"),
        (None, WORSE, "not published"),
    ],
)
def test_row__agrees_with_the_papers_only_where_chance_is_ruled_out(expected: Any, other: list[float], agrees: str):
    assert _row([0.5, 0.5, 0.5], other, expected).agrees == agrees


@pytest.mark.parametrize(
    ("alarms", "agrees", "shown"),
    [
        ([40, 50, 60], "yes", "3 of 3, from step 40"),
        ([None, 50, None], "in part", "1 of 3, from step 50"),
        ([None] * 3, "no", "0 of 3"),
    ],
)
def test_row__a_collapse_is_judged_by_the_alarm(alarms: list[int | None], agrees: str, shown: str):
    outcomes = _outcomes([0.5] * 3, [])
    outcomes += [Outcome("off", seed, 0.4, first_alarm=alarm) for seed, alarm in enumerate(alarms)]
    found = rows(outcomes, [_variant("collapse")])
    assert found[1].agrees == agrees
    assert f"| {shown} |" in markdown(found, left_out=[], objective="knn/top1")


def test_row__what_the_alarm_could_not_judge_is_no_verdict():
    found = rows(_outcomes([0.5] * 3, [0.4] * 3, watched=False), [_variant("collapse")])
    assert found[1].agrees == "too close to tell"
    assert "| not judged |" in markdown(found, left_out=[], objective="knn/top1")
    mixed = [
        *_outcomes([0.5] * 3, [0.4, 0.4], first_alarm=60),
        Outcome("off", 2, None, watched=False, failure="killed"),
    ]
    assert rows(mixed, [_variant("collapse")])[1].agrees == "yes"


def test_row__one_seed_tells_nothing():
    row = _row([0.5], [0.1])
    assert (row.direction, row.agrees, row.spread, row.half_width) == ("close", "too close to tell", None, None)


def test_row__failed_runs_are_named_and_their_seeds_left_out_of_the_pairs():
    row = _row([0.5, 0.6, 0.7], [0.4, None, 0.61], failure="out of memory")
    assert (row.runs, set(row.scores)) == (3, {0, 2})
    assert row.difference == pytest.approx(-0.095)
    found = rows(_outcomes([0.5], [None], failure="failed: no room"), [_variant()])
    assert (found[1].mean, found[1].difference, found[1].agrees) == (None, None, None)
    text = markdown(found, left_out=[], objective="knn/top1")
    assert "| failed |" in text and "Failed, `off`, seed 0: failed: no room" in text


def test_forms__say_the_same():
    outcomes = _outcomes([0.5, 0.52, 0.54], [0.3, 0.31, 0.33], first_alarm=60)
    found = rows([*outcomes, Outcome("new", 0, 0.6)], [_variant("collapse"), _variant(None, "new")])
    left_out = [LeftOut("no_koleo", "DINO has no KoLeo")]
    body = json.loads(as_json(found, left_out=left_out, about={"steps": 7}))
    table = list(csv.DictReader(io.StringIO(as_csv(found))))
    text = markdown(found, left_out=left_out, objective="knn/top1")
    lines = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("|")]
    assert body["steps"] == 7 and body["left_out"][0]["name"] == "no_koleo" and "Left out, `no_koleo`: DINO has" in text
    assert len({len(line) for line in lines}) == 1 and len(lines) == 2 + len(found)
    for row, plain, record, line in zip(found, table, body["rows"], lines[2:], strict=True):
        assert plain["variant"] == record["variant"] == row.variant and f"`{row.variant}`" in line[1]
        assert {int(seed): score for seed, score in record["scores"].items()} == row.scores
        assert [float(plain[f"seed_{seed}"]) for seed in row.scores] == list(row.scores.values())
        assert float(plain["mean"]) == record["mean"] == row.mean and f"{row.mean:.3f}" in line[2]
    assert table[2]["seed_1"] == "" and table[1]["agrees"] == "yes" and table[1]["seconds"] == "20.0"


def test_markdown__the_full_recipe_has_no_difference_to_itself():
    text = markdown(rows(_outcomes([0.5, 0.6], [0.4, 0.5]), [_variant()]), left_out=[], objective="knn/top1")
    line = next(line for line in text.splitlines() if "`full`" in line)
    assert "+0.000" not in line and "0.550 ± 0.071" in line
