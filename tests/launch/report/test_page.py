"""The page of runs: its figures are those of the folder, added up here by hand; what is missing is named; text stays text."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raydino.config import ConfigError
from raydino.launch.report.page import page
from raydino.launch.report.record import read

Write = Callable[..., Path]
See = Callable[..., Any]
HOSTILE = "<img src=x onerror=alert(1)>\"'&</script><script>alert(2)</script>"


def report(*folders: Path, **more: Any) -> str:
    return page([read(folder) for folder in folders], command="python recipes/dinov2.py", **more)


def test_page__has_the_figures_of_the_folder(write_run: Write, seen: See, evaluated: list[dict[str, Any]]):
    folder = write_run()
    (folder / "evaluations").mkdir()
    (folder / "evaluations" / "evaluation.json").write_text(json.dumps(evaluated))
    found = seen(report(folder))
    # 20 steps of 16 images, each 0.5 s, a quarter of it waiting; 2 workers of 3 cores each.
    assert found.tiles["state"] == ["finished", "20 of 20 steps"]
    assert found.tiles["images seen"] == ["320", "32 a second"]
    assert found.tiles["knn/top1"] == ["0.750", "untrained 0.250; raw pixels 0.625"]
    assert found.tables["While training, on the teacher"][1:] == [
        ["knn/top1", "0.250", "0.625", "0.750", "0.750 at step 20"],
        ["health/rankme", "5.000", "–", "12.500", "12.500 at step 20"],
    ]
    assert found.tables["By recipes/evaluate.py"] == [
        ["evaluation", "metric", "run-1@20", "random:run-1"],
        ["linear on birds", "top1", "0.438", "0.188"],
    ]
    [cost] = found.tables["Cost"][1:]
    assert cost[1:] == ["320", "32", "25.0%", "0.2", "0.3", f"{10 * 2 * 3 / 3600:.3g} core-hours"]
    assert found.tables["Curation by stage"][1] == ["validate", "empty 15, not an image 5", "", "120", "20", "100"]
    assert "100 images in the split that was trained on, 90 of them trained on (90 %); 4 classes" in found.words
    assert found.tables["Quarantined while training"][1:] == [["truncated", "1"], ["empty", "1"]]
    assert "1 steps were not finite" in found.words and "2 could not be used" in found.words
    assert "25% of the time in training was spent waiting" in found.words
    assert "global_batch: 16" in found.words and "python recipes/dinov2.py" in found.words


def test_page__curves_go_through_the_values_of_the_record(write_run: Write, seen: See):
    text = report(write_run())
    numbers = seen(text).tables["loss/total"]
    assert [row[0] for row in numbers[1:]] == [str(step) for step in range(2, 21, 2)]
    assert [float(row[1]) for row in numbers[1:]] == [pytest.approx(9.0 - step / 10) for step in range(2, 21, 2)]
    drawn = re.search(r'aria-label="knn/top1 over steps.*?<polyline class="s0" points="([^"]*)"', text, re.DOTALL)
    assert drawn is not None
    places = [tuple(map(float, place.split(","))) for place in drawn[1].split()]
    across = [x for x, _ in places]
    up = [y for _, y in places]
    assert across[1] - across[0] == pytest.approx(across[2] - across[1]) and up[0] > up[1] > up[2]
    assert up[0] - up[1] == pytest.approx(up[1] - up[2])  # 0.25 to 0.5 is as far as 0.5 to 0.75


def test_page__what_differs_by_rounding_alone_has_not_changed(write_run: Write):
    from .conftest import lines

    rows = [row | {"teacher/temperature": 0.04 - 1e-9 * (row["step"] == 6), "teacher/kl": 1.0} for row in lines()]
    rows[-1]["teacher/kl"] = 1.0001
    text = report(write_run(rows=rows))
    drawn, folded = text.split("what never changed")
    assert "teacher/temperature" in folded and "teacher/temperature" not in drawn
    assert "teacher/kl" in drawn


def test_page__loads_nothing_and_runs_nothing(write_run: Write, seen: See):
    for text in (report(write_run()), report(write_run("a"), write_run("b"))):
        found = seen(text)
        assert not found.tags & {"script", "link", "iframe", "object", "embed", "form", "base"}
        assert all(address.startswith(("data:image/", "#")) for address in found.addresses)
        assert {address[1:] for address in found.addresses if address.startswith("#")} <= set(found.ids)
        assert len(found.ids) == len(set(found.ids))
        style = text[text.index("<style>") : text.index("</style>")]
        assert "url(" not in style and "@import" not in style and "prefers-color-scheme: dark" in style
        assert "default-src 'none'" in text and 'name="viewport"' in text


def test_page__text_of_others_stays_text(write_run: Write, seen: See):
    folder = write_run(HOSTILE.replace("/", "_"), changes={"data.path": HOSTILE})
    (folder / "quarantine.jsonl").write_text(json.dumps({"id": "1", "path": HOSTILE, "reason": HOSTILE}) + "\n")
    card = json.loads((folder / "data.json").read_text())
    card["path"], card["stages"][0]["name"], card["stages"][0]["by_reason"] = HOSTILE, HOSTILE, {HOSTILE: 3}
    (folder / "data.json").write_text(json.dumps(card))
    (folder / "run.json").write_text(json.dumps({"mlflow_run_id": HOSTILE, "device": "core"}))
    (folder / "failure.json").write_text(json.dumps({"message": HOSTILE}))
    rows = [{"step": 1, "time": 1.0, HOSTILE: 1.0, "loss/total": 2.0}, {"step": 2, "time": 2.0, HOSTILE: 2.0}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for text in (report(folder, title=HOSTILE), report(folder, write_run("other"))):
        found = seen(text)
        assert "script" not in found.tags and "onerror" in found.words
        assert all(address.startswith(("data:image/", "#")) for address in found.addresses)
        assert "<script>" not in text and "<img src=x" not in text


def test_page__passwords_stay_away(write_run: Write):
    folder = write_run()
    text = (folder / "recipe.yaml").read_text()
    (folder / "recipe.yaml").write_text(text.replace("path: builtin", "path: s3://anna:hunter2@bucket/images"))
    (folder / "failure.json").write_text(json.dumps({"message": "no answer from https://anna:hunter2@host"}))
    (folder / "metrics.jsonl").write_text("")
    text = page([read(folder), read(write_run("b"))], command="python x.py --data s3://anna:hunter2@bucket/images")
    assert "bucket/images" in text and "hunter2" not in text


def test_page__seeds_share_a_line_with_mean_and_range(write_run: Write, seen: See):
    from .conftest import lines

    runs = [
        write_run(f"run-{seed}", changes={"seed": seed}, rows=lines(shift))
        for seed, shift in enumerate((0.0, 0.1, -0.04))
    ]
    text = report(*runs)
    found = seen(text)
    last = [0.75, 0.85, 0.71]
    row = next(row for row in found.tables["While training, on the teacher"] if row[0] == "knn/top1")
    assert row[3] == f"{math.fsum(last) / 3:.3f} (0.710 to 0.850)"
    assert found.tables["knn/top1"][0] == ["steps", "run (3 seeds)"]
    assert found.tables["knn/top1"][-1][1] == f"{math.fsum(last) / 3:.4g} (0.71 to 0.85)"
    assert text.count('class="band s0"') >= 2 and 'class="band s1"' not in text
    assert [row[0] for row in found.tables["Fields that differ"]] == ["field", "seed"]


@pytest.mark.parametrize("count", [2, 9])
def test_page__tells_exactly_the_fields_that_differ(write_run: Write, seen: See, count: int):
    changes = [{"optim.lr": 1e-3}, {"optim.lr": 2e-3, "method.koleo_weight": 0.0}]
    runs = [write_run(f"run-{number}", changes=changes[number % 2]) for number in range(count)]
    table = seen(report(*runs)).tables["Fields that differ"]
    if count == 2:
        assert [row[0] for row in table[1:]] == ["method.koleo_weight", "optim.lr"]
        assert table[2][1:] == ["0.001", "0.002"]
    else:
        assert table[0][1:] == ["method.koleo_weight", "optim.lr"] and len(table) == count + 1
        assert ["run-1", "0.0", "0.002"] in table and ["run-2", "0.1", "0.001"] in table


def test_page__a_field_that_one_recipe_has_not_is_said_to_be_absent(write_run: Write, seen: See):
    old = write_run("old")
    (old / "recipe.yaml").write_text((old / "recipe.yaml").read_text().replace("lanes: 8\n", ""))
    table = seen(report(old, write_run("new"))).tables["Fields that differ"]
    assert table == [["field", "old", "new"], ["lanes", "(not there)", "8"]]


def test_page__batches_of_other_sizes_are_compared_by_images(write_run: Write):
    text = report(write_run("a"), write_run("b", changes={"global_batch": 32}))
    assert "loss/total over images" in text and "loss/total over steps" not in text


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda run: (run / "metrics.jsonl").unlink(), "metrics.jsonl is not there"),
        (lambda run: (run / "metrics.jsonl").write_text(""), "metrics.jsonl is empty"),
        (lambda run: (run / "cluster.yaml").unlink(), "cluster.yaml cannot be read"),
        (lambda run: (run / "data.json").unlink(), "data.json is not there"),
        (lambda run: (run / "data.json").write_text("{"), "data.json cannot be read"),
        (lambda run: (run / "run.json").write_text("{"), "finished"),
        (lambda run: [p.write_text("no picture") for p in (run / "pictures").iterdir()], "2 pictures are left out"),
        (lambda run: (run / "quarantine.jsonl").unlink(), "No image was quarantined"),
        (lambda run: (run / "metrics.jsonl").open("a").write('{"step": 20, "loss/tot'), "finished"),
    ],
)
def test_page__names_what_is_missing_and_shows_the_rest(write_run: Write, seen: See, spoil: Any, said: str):
    folder = write_run()
    spoil(folder)
    found = seen(report(folder))
    assert said in found.words
    assert "global_batch: 16" in found.words  # the recipe is there all the same


def test_page__damaged_evaluations_are_named(write_run: Write, seen: See):
    folder = write_run()
    (folder / "evaluations").mkdir()
    (folder / "evaluations" / "evaluation.json").write_text("[{}]")
    assert "evaluations/evaluation.json is damaged" in seen(report(folder)).words


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda run: (run / "recipe.yaml").unlink(), "no recipe.yaml in it; give the folder of a run"),
        (lambda run: (run / "recipe.yaml").write_text("a: [1"), "recipe.yaml: not valid YAML"),
        (lambda run: (run / "recipe.yaml").write_text("steps: 3\n"), "it has no global_batch, evals"),
    ],
)
def test_read__refuses_what_is_no_run(write_run: Write, spoil: Any, said: str):
    folder = write_run()
    spoil(folder)
    with pytest.raises(ConfigError, match=re.escape(said)):
        read(folder)
    with pytest.raises(ConfigError, match="there is no such folder"):
        read(folder / "nowhere")


def test_page__of_a_run_in_progress_says_so(write_run: Write, seen: See):
    from raydino.launch.lock import run_lock

    from .conftest import lines

    folder = write_run(rows=lines(upto=10))
    with run_lock(folder):
        found = seen(report(folder))
        assert found.tiles["state"] == ["in progress", "10 of 20 steps"]
        assert "this page shows the first 10 of 20 steps" in found.words
        assert read(folder, over="lost its machine").state == "failed"  # as its own driver knows
    assert read(folder).state == "interrupted" and "--resume auto" in seen(report(folder)).words


def test_page__of_a_trial_in_progress_knows_by_the_lock_of_its_sweep(write_run: Write, tmp_path: Path):
    from raydino.launch.lock import run_lock

    from .conftest import lines

    folder = write_run("0", rows=lines(upto=10), inside=tmp_path / "sweep" / "trials")
    with run_lock(tmp_path / "sweep"):
        assert read(folder).state == "in progress"
    (folder / "ending.json").write_text(json.dumps({"status": "stopped", "reason": "place 3 of 3", "step": 10}))
    assert (read(folder).state, read(folder).reason) == ("stopped", "place 3 of 3")


def test_page__says_that_a_run_has_collapsed(write_run: Write, seen: See):
    from .conftest import lines

    rows = lines()
    for row in rows:
        if "health/collapsed" in row:
            row["health/collapsed"] = float(row["step"] >= 12)
    words = seen(report(write_run(rows=rows))).words
    assert "the alarm rang first at step 12, and rings still" in words


def test_page__a_long_record_stays_small_and_keeps_its_last_value(write_run: Write, seen: See):
    rows = [{"step": step, "time": float(step), "loss/total": 1.0 / step} for step in range(1, 30_001)]
    text = report(write_run(rows=rows, changes={"steps": 30_000}))
    assert len(text) < 200_000
    assert seen(text).tables["loss/total"][-1] == ["30,000", f"{1 / 30_000:.4g}"]


def test_page__large_pictures_are_made_small_and_the_page_stays_bounded(write_run: Write):
    import numpy as np
    from PIL import Image

    folder, noise = write_run(), np.random.default_rng(0)
    for path in (folder / "pictures").iterdir():
        Image.fromarray(noise.integers(0, 255, (1500, 1500, 3), dtype=np.uint8)).save(path)
    assert sum(path.stat().st_size for path in (folder / "pictures").iterdir()) > 12_000_000
    assert len(report(folder)) < 6_000_000
