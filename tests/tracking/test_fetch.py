"""What a tracker has of a run becomes a folder that says the same as the run's own."""

import json
import math
from pathlib import Path

import pytest
from PIL import Image

from raydino.launch.report.page import page
from raydino.launch.report.record import read
from raydino.recipe import Recipe
from raydino.tracking.fetch import fetch
from raydino.tracking.mlflow_run import MLflowRun, add_to_run, create_run
from raydino.tracking.opening import Opening, TrackerUnavailable
from raydino.tracking.spool import Spool, read_metrics

NAME = "small-0123456789ab"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A run's folder, its tracker and its id there."""
    folder = tmp_path_factory.mktemp("store") / "runs" / NAME
    folder.mkdir(parents=True)
    uri = f"sqlite:///{folder.parent}/mlflow.db"
    recipe = Recipe().override({"name": "small", "steps": 4, "global_batch": 16})
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    opening = Opening.of(
        experiment="fetched", run_name="small", params={}, tags={"run_id": NAME, "data_digest": "d"}, dataset=None,
        recipe_yaml=recipe.to_yaml(), cluster_yaml="workers: 2\n", run_dir=folder,
    )  # fmt: skip
    run_id = create_run(opening, tracking_uri=uri)
    (folder / "cluster.yaml").write_text("workers: 2\n")
    run = MLflowRun(Spool(folder), tracking_uri=uri, run_id=run_id)
    run.log({"knn/top1": 0.25, "health/rankme": 3.0}, 0)
    for step in (1, 2, 3, 4):
        loss = math.nan if step == 2 else 1.0 / step
        run.log({"loss/total": loss, "throughput/step_seconds": 0.5, "throughput/data_wait": 0.0}, step)
    run.log({"knn/top1": 0.5, "health/rankme": 7.0}, 4)
    for step in (0, 4):
        run.picture("patch_pca", Image.new("RGB", (6, 4), (step, 0, 9)), step)
    (folder / "quarantine.jsonl").write_text(json.dumps({"id": "1", "path": "a", "reason": "empty"}) + "\n")
    run.artifact(folder / "quarantine.jsonl")
    run.close("FINISHED")
    stage = {"name": "validate", "rows_in": 5, "rows_out": 4, "by_reason": {"empty": 1}}
    card = {"path": "images", "digest": "d", "rows": 4, "kept": 4, "classes": 0, "labelled": False, "stages": [stage]}
    (folder / "data.json").write_text(json.dumps(card))
    add_to_run(tracking_uri=uri, run_id=run_id, metrics={}, step=0, files=[folder / "data.json"])
    return folder, uri, run_id


@pytest.mark.parametrize("by", ["id", "folder", "name"])
def test_fetch__makes_a_folder_that_says_what_the_runs_own_says(
    recorded: tuple[Path, str, str], tmp_path: Path, by: str
):
    folder, uri, run_id = recorded
    asked = {"id": run_id, "folder": NAME, "name": "small"}[by]
    found = fetch(asked, tracking_uri=uri, experiment="fetched", into=tmp_path)
    assert found == tmp_path / NAME
    own, theirs = read_metrics(folder / "metrics.jsonl"), read_metrics(found / "metrics.jsonl")
    for step, row in own.items():
        kept = {name: value for name, value in theirs[step].items() if not name.startswith("system/")}
        assert kept.keys() == row.keys()
        assert all(kept[name] == value or (math.isnan(value) and math.isnan(kept[name])) for name, value in row.items())
    assert sorted(path.name for path in (found / "pictures").iterdir()) == [
        "patch_pca-step-0000000.png", "patch_pca-step-0000004.png",
    ]  # fmt: skip
    with Image.open(found / "pictures" / "patch_pca-step-0000004.png") as picture:
        assert picture.convert("RGB").getpixel((0, 0)) == (4, 0, 9)
    run = read(found)
    assert (run.state, run.figures["metrics"], run.quarantined) == (
        "finished",
        read(folder).figures["metrics"],
        {"empty": 1},
    )
    assert run.mlflow_run_id == run_id and run.cluster == {"workers": 2}
    assert "Curation by stage" in page([run], command="")


@pytest.mark.parametrize(
    ("name", "experiment", "said"),
    [
        ("nobody", "fetched", "has no run of that id or name"),
        ("small", "elsewhere", "none of that name; give --experiment"),
    ],
)
def test_fetch__says_what_is_not_there(
    recorded: tuple[Path, str, str], tmp_path: Path, name: str, experiment: str, said: str
):
    with pytest.raises(TrackerUnavailable, match=said):
        fetch(name, tracking_uri=recorded[1], experiment=experiment, into=tmp_path)


def test_fetch__no_answer_is_told_without_the_password(tmp_path: Path):
    with pytest.raises(TrackerUnavailable, match="could not be read") as error:
        fetch("x", tracking_uri="http://anna:hunter2@127.0.0.1:9", experiment="e", into=tmp_path)
    assert "hunter2" not in str(error.value)


def test_fetch__a_name_is_never_asked_for_as_an_id_and_never_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A server with passwords answers 403 to an id that it does not have."""
    from types import SimpleNamespace

    from raydino.tracking import fetch as door

    def refuses(name: str) -> None:
        raise PermissionError(f"403: {name}")

    run = SimpleNamespace(
        info=SimpleNamespace(run_id="f" * 32, run_name="../up"),
        data=SimpleNamespace(tags={"run_id": "../up"}, metrics={}),
    )
    client = SimpleNamespace(
        get_run=refuses,
        get_experiment_by_name=lambda name: SimpleNamespace(experiment_id="1"),
        search_runs=lambda experiments, asked, max_results: [run],
        list_artifacts=lambda run_id: [],
    )
    monkeypatch.setattr(door, "client_of", lambda uri: client)
    assert fetch("small", tracking_uri="http://host", experiment="e", into=tmp_path / "in") == tmp_path / "in" / (
        "f" * 32
    )
    with pytest.raises(TrackerUnavailable, match="403"):
        fetch("a" * 32, tracking_uri="http://host", experiment="e", into=tmp_path)
