"""Which run a command takes up, and what it refuses to change about it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from presets import DINOV2

from raydino.config import ConfigError, read_yaml_file
from raydino.launch.resume import (
    DATA,
    RECIPE_FILE,
    RUN_FILE,
    Meant,
    changes_since,
    data_change,
    history,
    read_run,
    run_meant,
    steps_done,
)
from raydino.methods.config import DINOConfig
from raydino.recipe import Recipe

BASE = Recipe(name="x")


def run_of(storage: Path, recipe: Recipe, *, steps: int = 5, finished: bool = False, folder: str = "") -> Path:
    """A run as its driver leaves it."""
    run_dir = storage / (folder or recipe.id)
    checkpoint = run_dir / "checkpoints" / f"step-{steps:08d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "COMMIT").touch()
    (run_dir / RECIPE_FILE).write_text(recipe.to_yaml())
    (run_dir / RUN_FILE).write_text(json.dumps({"run_id": run_dir.name, "data_digest": "a" * 64}))
    if finished:
        (run_dir / "summary.json").write_text(json.dumps({"status": "finished"}))
    return run_dir


def meant(storage: Path, changes: dict, *, allow: str = "", resume: bool = True) -> Meant:
    return run_meant(BASE.override(changes), storage, resume=resume, allow=tuple(allow.split(",") if allow else ()))


def refusal(storage: Path, changes: dict, *, allow: str = "") -> str:
    with pytest.raises(ConfigError) as error:
        meant(storage, changes, allow=allow)
    return str(error.value)


def test_run_meant__the_same_recipe_is_the_same_run_whatever_its_cadence(tmp_path: Path):
    run_dir = run_of(tmp_path, BASE)
    for changes in ({}, {"cadence.log": 3}):
        assert meant(tmp_path, changes) == Meant(run_dir)
        assert meant(tmp_path, changes, resume=False) == Meant(run_dir)


def test_run_meant__without_resume_a_changed_recipe_is_another_run(tmp_path: Path):
    run_of(tmp_path, BASE)
    longer = BASE.override({"steps": 2000})
    assert meant(tmp_path, {"steps": 2000}, resume=False) == Meant(tmp_path / longer.id)


def test_run_meant__with_resume_every_changed_field_is_named_with_what_it_costs(tmp_path: Path):
    run_dir = run_of(tmp_path, BASE)
    changes = {"steps": 2000, "seed": 3, "evals.knn.k": 5, "method.koleo_weight": 0.5, "optim.warmup": 0.2}
    text = refusal(tmp_path, changes)
    lines = {line.split(":")[0].strip(): line for line in text.splitlines() if "→" in line}
    assert set(lines) == set(changes)
    assert "1000 → 2000" in lines["steps"] and "schedules" in lines["steps"] and "order stays" in lines["steps"]
    assert "0 → 3" in lines["seed"] and "twice or not at all" in lines["seed"]
    assert "training stays as it was" in lines["evals.knn.k"]
    assert str(run_dir) in text and "5 steps are saved" in text and "--name" in text
    remedy = text.split("--allow-change ")[1].split(";")[0]
    assert meant(tmp_path, changes, allow=remedy).run_dir == run_dir  # what the message says works


def test_run_meant__what_is_allowed_goes_on_in_the_same_folder_and_is_no_change_the_next_time(tmp_path: Path):
    run_dir = run_of(tmp_path, BASE)
    longer = BASE.override({"steps": 2000})
    found = meant(tmp_path, {"steps": 2000}, allow="steps")
    assert found.run_dir == run_dir
    assert [(change.field, change.was, change.now) for change in found.changes] == [("steps", 1000, 2000)]
    (run_dir / RECIPE_FILE).write_text(longer.to_yaml())
    for allow in ("", "steps"):
        assert meant(tmp_path, {"steps": 2000}, allow=allow) == Meant(run_dir)
    assert "steps: 2000 → 1000" in refusal(tmp_path, {})


def test_run_meant__a_permission_covers_what_lies_below_it_and_nothing_beside(tmp_path: Path):
    run_of(tmp_path, BASE)
    changes = {"optim.lr": 1e-3, "optim.clip": 1.0}
    assert len(meant(tmp_path, changes, allow="optim").changes) == 2
    text = refusal(tmp_path, changes, allow="optim.lr")
    assert "optim.clip: 3.0 → 1.0" in text and "optim.lr: " not in text and "--allow-change optim.clip,optim.lr" in text


@pytest.mark.parametrize(
    "changes", [{"backbone.width": 96}, {"method.head.prototypes": 64}, {"method.ibot_head.prototypes": 64}]
)
def test_run_meant__weights_that_would_not_fit_cannot_be_allowed(tmp_path: Path, changes: dict):
    run_of(tmp_path, BASE)
    (field,) = changes
    text = refusal(tmp_path, changes, allow=field.rpartition(".")[0])
    assert field in text and "would not fit" in text and "cannot be allowed" in text


def test_run_meant__drop_path_is_no_weight(tmp_path: Path):
    run_of(tmp_path, BASE)
    assert meant(tmp_path, {"backbone.drop_path": 0.3}, allow="backbone.drop_path").changes


def test_run_meant__another_method_shows_the_fields_that_one_of_them_lacks(tmp_path: Path):
    run_of(tmp_path, BASE)
    with pytest.raises(ConfigError, match=r"method\.koleo_weight: 0\.1 → \(not there\)"):
        run_meant(BASE.override({"method": DINOConfig()}), tmp_path, resume=True)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"name": "y"},
        {"cadence.keep": 9},
        {"method.freeze_last_layer": 0.0},
        {"data.stream_against": ["b"], "data.stream_dedup": True},
    ],
)
def test_changes_since__are_there_when_the_fingerprints_differ(tmp_path: Path, changes: dict):
    before = BASE.override({"method.freeze_last_layer": 0})
    after = before.override(changes)
    same = before.id.rpartition("-")[2] == after.id.rpartition("-")[2]
    assert (not changes_since(run_of(tmp_path, before), after)) == same


def test_run_meant__fewer_steps_than_are_done(tmp_path: Path):
    run_of(tmp_path, BASE, steps=500)
    assert "has 500 steps behind it" in refusal(tmp_path, {"steps": 400}, allow="steps")


def test_run_meant__other_names_and_finished_runs_do_not_stand_in_the_way(tmp_path: Path):
    run_of(tmp_path, BASE.override({"name": "x-y"}))
    run_of(tmp_path, BASE.override({"seed": 9}), finished=True)
    assert meant(tmp_path, {"steps": 2000}) == Meant(tmp_path / BASE.override({"steps": 2000}).id)


def test_run_meant__a_finished_run_is_trained_longer_when_that_is_asked_for(tmp_path: Path):
    run_dir = run_of(tmp_path, BASE, steps=1000, finished=True)
    assert meant(tmp_path, {"steps": 2000}, allow="steps").run_dir == run_dir
    assert meant(tmp_path, {"steps": 2000, "seed": 1}, allow="steps").run_dir != run_dir


def test_run_meant__of_several_the_one_that_differs_least(tmp_path: Path):
    run_of(tmp_path, BASE.override({"seed": 9, "lanes": 4}))
    near = run_of(tmp_path, BASE.override({"lanes": 4}))
    text = refusal(tmp_path, {})
    assert str(near) in text and "lanes: 4 → 8" in text and "seed" not in text


def test_run_meant__a_damaged_recipe_beside_is_passed_over(tmp_path: Path):
    run_of(tmp_path, BASE.override({"seed": 9})).joinpath(RECIPE_FILE).write_text("steps: [")
    assert meant(tmp_path, {}) == Meant(tmp_path / BASE.id)
    run_of(tmp_path, BASE).joinpath(RECIPE_FILE).write_text("")
    assert meant(tmp_path, {}).run_dir == tmp_path / BASE.id


def test_run_meant__a_misspelt_permission_is_refused_with_the_nearest_name(tmp_path: Path):
    assert "did you mean 'optim.warmup'" in refusal(tmp_path, {}, allow="optim.warmupp")


def test_data_change__other_images_are_refused_unless_allowed(tmp_path: Path):
    run_dir = run_of(tmp_path, BASE)
    assert data_change(run_dir, "a" * 64, allow=()) == ()
    assert data_change(tmp_path / "new", "b" * 64, allow=()) == ()
    with pytest.raises(ConfigError) as error:
        data_change(run_dir, "b" * 64, allow=("steps",))
    assert all(word in str(error.value) for word in ("aaaa", "bbbb", "--allow-change data", "twice or not at all"))
    (change,) = data_change(run_dir, "b" * 64, allow=("data",))
    [entry] = history(read_run(run_dir), (change,), step=7)
    assert (entry["step"], entry["data_digest"], list(entry["changes"])) == (7, "a" * 64, [DATA])


def test_read_run__a_torn_file_costs_the_record_and_not_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    run_dir = run_of(tmp_path, BASE)
    (run_dir / RUN_FILE).write_text('{"run_id": "x-')
    assert read_run(run_dir) == {}
    assert RUN_FILE in caplog.text


def test_steps_done__counts_what_was_committed(tmp_path: Path):
    run_dir = run_of(tmp_path, BASE, steps=40)
    (run_dir / "checkpoints" / "step-00000050").mkdir()
    assert steps_done(run_dir) == 40
    assert steps_done(tmp_path / "none") == 0


def test_resume__the_command_line_says_the_same_before_anything_is_started(
    recipe_here: Callable[..., tuple[int, str]], storage: Path, tiny: Path, small_images: Path
):
    base = DINOV2["laptop"].override(read_yaml_file(tiny))
    recipe = base.override({"name": "drift", "data.path": str(small_images)})
    run_dir = run_of(storage, recipe)
    status, said = recipe_here("--name", "drift", "--resume", "auto", "--steps", "20")
    assert status == 2 and "steps: 12 → 20" in said and "--allow-change steps" in said
    words = ("--name", "drift", "--resume", "auto", "--steps", "20", "--allow-change", "steps")
    status, said = recipe_here(*words)
    assert status == 2 and f"{run_dir}: its images have changed" in said and "--allow-change data" in said
    status, said = recipe_here(*words[:-1], "steps,data", "--dry-run")
    assert status == 0 and run_dir.name in said
    assert "changed on resume  steps: 12 → 20" in said and "changed on resume  data.digest" in said
    status, said = recipe_here("--name", "drift", "--allow-change", "steps")
    assert status == 2 and "--resume auto" in said
    assert len(list(storage.glob("drift-*"))) == 1
