"""The real MLflow in a sqlite store, and an address where nobody answers."""

import logging
import math
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from raydino.tracking.mlflow_run import (
    DatasetRecord,
    MLflowRun,
    TrackerUnavailable,
    create_run,
    finish,
    replay,
    run_page,
)
from raydino.tracking.opening import Opening, absolute_uri
from raydino.tracking.redact import HIDDEN
from raydino.tracking.spool import Spool

if TYPE_CHECKING:
    from mlflow import MlflowClient

DEAD = "http://anna:hunter2@127.0.0.1:9"  # the discard port: refused at once
SECRETS = ("hunter2", "AKIAIOSFODNN7EXAMPLE", "hf_abcdefghijklmnopqrstuvwxyz")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all tests here, since its first use takes seconds of migrations."""
    return tmp_path_factory.mktemp("store") / "runs"


def default_uri(store: Path) -> str:
    return f"sqlite:///{store}/mlflow.db"


def create(store: Path, *, tracking_uri: str | None = None, run_id: str | None = None, **changes: object) -> str:
    arguments: dict[str, object] = {
        "experiment": "raydino",
        "run_name": "test",
        "params": {"seed": 3, "method.head.prototypes": 64},
        "tags": {"fingerprint": "abc"},
        "dataset": DatasetRecord(name="cifar", digest="f" * 64, source="s3://id:hunter2@bucket/x", rows=50_000),
        "recipe_yaml": "seed: 3\ntoken: hf_abcdefghijklmnopqrstuvwxyz\n",
        "cluster_yaml": "workers: 2\n",
    }
    opening = Opening.of(**{**arguments, **changes})  # type: ignore[arg-type]
    return create_run(opening, tracking_uri=tracking_uri or default_uri(store), run_id=run_id)


def client(store: Path) -> "MlflowClient":
    from mlflow import MlflowClient

    return MlflowClient(default_uri(store))


def test_create_run__records_params_tags_dataset_and_recipe(store: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run_id = create(store)
    run = client(store).get_run(run_id)
    assert run.data.params == {"seed": "3", "method.head.prototypes": "64"}
    assert run.data.tags["fingerprint"] == "abc" and run.info.run_name == "test" and run.info.status == "RUNNING"
    [given] = run.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("cifar", "f" * 36)
    assert "50000" in given.dataset.profile and given.dataset.source_type == "s3"
    folder = Path(run.info.artifact_uri.removeprefix("file://"))
    assert "workers: 2" in (folder / "cluster.yaml").read_text()
    assert folder.is_relative_to(store / "artifacts") and "seed: 3" in (folder / "recipe.yaml").read_text()
    assert capfd.readouterr() == ("", "")  # making the store is no reason for a wall of messages


def test_create_run__the_experiment_opens_as_model_training(store: Path) -> None:
    """The words are those of MLflow's own page, shipped with the server."""
    run = client(store).get_run(create(store))
    kind = client(store).get_experiment(run.info.experiment_id).tags["mlflow.experimentKind"]
    assert f'CUSTOM_MODEL_DEVELOPMENT="{kind}"' in _page_scripts()


def test_run_page__opens_as_model_training_and_tells_no_password(store: Path) -> None:
    run_id = create(store)
    experiment = client(store).get_run(run_id).info.experiment_id
    page = run_page(default_uri(store), run_id)
    assert page is not None
    assert page.startswith(f"http://127.0.0.1:5000/#/experiments/{experiment}/runs/{run_id}/model-metrics?")
    # The word that the page's own switch puts into its address, shipped with the server.
    assert f'MACHINE_LEARNING="{page.rpartition("workflowType=")[2]}"' in _page_scripts()
    assert run_page(DEAD, run_id) is None
    assert run_page("postgresql://user:hunter2@host/db", run_id) is None


def _page_scripts() -> str:
    import mlflow

    folder = Path(mlflow.__file__).parent / "server" / "js" / "build" / "static" / "js"
    return "".join(script.read_text() for script in folder.glob("main.*.js"))


def test_create_run__trims_long_values_and_cleans_keys(store: Path) -> None:
    params = {f"p{i}": i for i in range(230)} | {"long": "x" * 9000, "evals.ünique": 1, "k" * 300: 2}
    run = client(store).get_run(create(store, params=params, tags={"note": "y" * 9000}))
    assert len(run.data.params) == 233 and len(run.data.params["long"]) == 6000
    assert run.data.params["evals._nique"] == "1" and len(run.data.tags["note"]) == 8000


def test_create_run__no_secret_reaches_the_store(store: Path) -> None:
    params = {"aws": "AKIAIOSFODNN7EXAMPLE", "password": "hunter2", "url": "https://a:hunter2@host"}
    run = client(store).get_run(create(store, params=params, tags={"remote": "https://a:hunter2@host/r.git"}))
    assert run.data.params == {"aws": HIDDEN, "password": HIDDEN, "url": f"https://{HIDDEN}@host"}
    sqlite3.connect(store / "mlflow.db").execute("PRAGMA wal_checkpoint")
    for path in store.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [secret for secret in SECRETS if secret.encode() in content], path


def test_create_run__reopens_without_touching_what_is_there(store: Path) -> None:
    run_id = create(store)
    finish(default_uri(store), run_id, "FAILED")
    again = create(store, run_id=run_id, params={"seed": 4, "new": 1})
    run = client(store).get_run(run_id)
    assert again == run_id and run.info.status == "RUNNING"
    assert run.data.params == {"seed": "3", "method.head.prototypes": "64", "new": "1"}


def test_create_run__a_run_that_is_gone_becomes_a_new_one(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    gone = "0" * 32
    assert create(store, run_id=gone) != gone and "no run" in caplog.text


def test_create_run__a_deleted_experiment_is_named(store: Path) -> None:
    tracker = client(store)
    create(store, experiment="doomed")
    tracker.delete_experiment(tracker.get_experiment_by_name("doomed").experiment_id)
    with pytest.raises(TrackerUnavailable, match="'doomed' was deleted"):
        create(store, experiment="doomed")


def test_create_run__a_dead_server_is_named_without_its_password(store: Path) -> None:
    with pytest.raises(TrackerUnavailable, match=r"tracking_uri = http://\*\*\*@127\.0\.0\.1:9") as caught:
        create(store, tracking_uri=DEAD)
    assert "hunter2" not in str(caught.value)


def test_mlflow_run__metrics_pictures_artifacts_and_status(store: Path, tmp_path: Path) -> None:
    run_id = create(store)
    run = MLflowRun(Spool(tmp_path, clock=lambda: 1_700_000_000.25), tracking_uri=default_uri(store), run_id=run_id)
    for step in (0, 10, 20):
        run.log({"loss/total": 7.0 - step / 10, "knn/top1": 0.5}, step)
    run.log({"loss/ibot": math.nan}, 20)
    run.picture("pictures/attention", Image.new("RGB", (8, 8), (200, 0, 0)), 20)
    (tmp_path / "summary.json").write_text("{}")
    run.artifact(tmp_path / "summary.json")
    run.close("FINISHED")
    tracker = client(store)
    history = tracker.get_metric_history(run_id, "loss/total")
    assert [(point.step, point.value) for point in history] == [(0, 7.0), (10, 6.0), (20, 5.0)]
    assert {point.timestamp for point in history} == {1_700_000_000_250}
    assert math.isnan(tracker.get_metric_history(run_id, "loss/ibot")[0].value)
    assert tracker.get_run(run_id).info.status == "FINISHED"
    assert any(name.startswith("system/cpu") for name in tracker.get_run(run_id).data.metrics)
    assert {"summary.json", "recipe.yaml", "images"} <= {item.path for item in tracker.list_artifacts(run_id)}
    assert any("pictures~attention" in item.path for item in tracker.list_artifacts(run_id, "images"))


def test_mlflow_run__resending_after_a_crash_doubles_nothing(store: Path, tmp_path: Path) -> None:
    run_id = create(store)
    spool = Spool(tmp_path)
    for step in range(5):
        spool.log({"a/b": float(step)}, step)
    assert replay(tmp_path, tracking_uri=default_uri(store), run_id=run_id) == 5
    (tmp_path / "sent.json").unlink()  # the crash came before the acknowledgement
    assert replay(tmp_path, tracking_uri=default_uri(store), run_id=run_id) == 5
    assert [point.value for point in client(store).get_metric_history(run_id, "a/b")] == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_mlflow_run__a_dead_server_costs_nothing_and_replay_brings_all(
    store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = create(store)
    with caplog.at_level(logging.WARNING):
        run = MLflowRun(Spool(tmp_path), tracking_uri=DEAD, run_id=run_id, patience=2.0)
        for step in range(20):
            run.log({"loss/total": float(step)}, step)
        run.close("FINISHED")
    assert str(tmp_path / "metrics.jsonl") in caplog.text and "hunter2" not in caplog.text
    assert replay(tmp_path, tracking_uri=default_uri(store), run_id=run_id) == 20
    history = client(store).get_metric_history(run_id, "loss/total")
    assert [point.value for point in history] == [float(step) for step in range(20)]


def test_finish__an_outage_is_only_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        finish(DEAD, "0" * 32, "FAILED")
    assert "could not be marked FAILED" in caplog.text


def test_absolute_uri__relative_sqlite_paths_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_uri("sqlite:///runs/mlflow.db") == f"sqlite:///{tmp_path}/runs/mlflow.db"
    for other in (f"sqlite:///{tmp_path}/x.db", "https://tracker.example", "databricks"):
        assert absolute_uri(other) == other


def test_create_run__a_wrong_password_is_said_to_be_one(store: Path) -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    class Refuses(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"You are not authenticated."
            self.send_response(401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Refuses)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(TrackerUnavailable, match="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"):
            create(store, tracking_uri=f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()
