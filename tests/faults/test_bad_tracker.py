"""Rows 60 to 65 of the matrix of bad input (docs/reliability.md): trackers that fail in every way, before the real MLflow client.

The order of events is what counts, nothing is timed; benchmarks/tracker_outage.py measures what a call costs.
"""

import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from outages.server import Server
from raydino.tracking import mlflow_run, outbox
from raydino.tracking.mlflow_run import MLflowRun, TrackerUnavailable, create_run
from raydino.tracking.opening import Opening, clean_params
from raydino.tracking.outbox import recorded_run
from raydino.tracking.redact import HIDDEN
from raydino.tracking.spool import Spool, read_metrics

LONG = 20.0  # seconds until a test gives up waiting


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # the thread tries again anyway
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setattr(mlflow_run, "_system_monitor", lambda *_: None)  # its points are not the run's
    stub = Server(tmp_path / "artifacts")
    yield stub
    stub.gate.set()
    stub.stop()


def opened(server: Server, folder: Path, *, run_id: str | None = None, **changes: object) -> str | None:
    """What the driver does: the run's id, or None where the tracker is away."""
    arguments: dict[str, object] = {
        "experiment": "raydino",
        "run_name": "test",
        "params": {"seed": 3},
        "tags": {"fingerprint": "abc"},
        "dataset": None,
        "recipe_yaml": "seed: 3\n",
    }
    try:
        opening = Opening.of(run_dir=folder, **{**arguments, **changes})  # type: ignore[arg-type]
        return create_run(opening, tracking_uri=server.uri, run_id=run_id)
    except TrackerUnavailable:
        return None


def recording(server: Server, folder: Path, run_id: str | None, *, patience: float = LONG) -> MLflowRun:
    """What the worker of rank 0 does."""
    return MLflowRun(Spool(folder), tracking_uri=server.uri, run_id=run_id, patience=patience, retry=(0.001, 0.01))


def lost_answer(server: Server) -> None:
    server.lose = "log-batch"


FAULTS: dict[str, tuple[Callable[[Server], object], Callable[[Server], object]]] = {
    "dies": (Server.stop, Server.start),
    "503": (lambda server: setattr(server, "status", 503), lambda server: setattr(server, "status", 200)),
    "429": (lambda server: setattr(server, "status", 429), lambda server: setattr(server, "status", 200)),
    "disk full": (lambda server: setattr(server, "status", 507), lambda server: setattr(server, "status", 200)),
    "hangs": (lambda server: server.gate.clear(), lambda server: server.gate.set()),
    "slow": (lambda server: setattr(server, "delay", 0.2), lambda server: setattr(server, "delay", 0.0)),
    "answers are lost": (lost_answer, lambda server: setattr(server, "lose", "")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_row_60__what_was_logged_in_an_outage_arrives_whole_and_once(
    fault: str, server: Server, tmp_path: Path
) -> None:
    fails, heals = FAULTS[fault]
    run = recording(server, tmp_path, opened(server, tmp_path))
    for step in range(5):
        run.log({"loss/total": float(step)}, step)
    fails(server)
    server.asked.clear()
    for step in range(5, 40):  # returns whatever the server does: the heal comes after it
        run.log({"loss/total": float(step)}, step)
    run.picture("crops", Image.new("RGB", (2, 2)), 7)
    if fault != "dies":
        assert server.asked.wait(LONG)
    heals(server)
    run.close("FINISHED")
    assert server.of("loss/total") == [(step, float(step)) for step in range(40)]
    (found,) = server.runs.values()
    assert found["info"]["status"] == "FINISHED"
    assert list((tmp_path / "artifacts").rglob("*crops*.png"))


@pytest.mark.parametrize("fault", ["dies", "503", "hangs"])
def test_row_60__down_at_the_start_the_run_is_opened_when_the_tracker_comes(
    fault: str, server: Server, tmp_path: Path
) -> None:
    fails, heals = FAULTS[fault]
    fails(server)
    run_id = opened(server, tmp_path)
    assert run_id is None and not server.runs
    run = recording(server, tmp_path, run_id)
    for step in range(10):
        run.log({"loss/total": float(step)}, step)
    heals(server)
    run.close("FINISHED")
    (found,) = server.runs.values()
    assert server.of("loss/total") == [(step, float(step)) for step in range(10)]
    assert recorded_run(tmp_path) == found["info"]["run_id"]
    assert {"key": "seed", "value": "3"} in found["data"]["params"]
    assert list((tmp_path / "artifacts").rglob("recipe.yaml"))


def test_row_60__one_that_never_comes_back_is_told_with_the_spools_name(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.stop()
    with caplog.at_level(logging.WARNING):
        run = recording(server, tmp_path, opened(server, tmp_path), patience=0.2)
        for step in range(10):
            run.log({"loss/total": float(step)}, step)
        run.close("FINISHED")
    assert str(tmp_path / "metrics.jsonl") in caplog.records[-1].getMessage()
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 10
    run._thread.join(LONG)  # in another process it would have ended with it
    server.start()
    run = recording(server, tmp_path, opened(server, tmp_path))  # the next start of the run sends it
    run.close("FINISHED")
    assert server.of("loss/total") == [(step, float(step)) for step in range(10)]


@pytest.mark.parametrize("again", ["same worker", "restarted worker", "resumed run"])
def test_f15__a_server_with_an_empty_database_gets_the_run_and_the_whole_record_again(
    again: str, server: Server, tmp_path: Path
) -> None:
    first = opened(server, tmp_path)
    run = recording(server, tmp_path, first)
    run.log({"loss/total": 0.0}, 0)
    run.picture("attention", Image.new("RGB", (2, 2)), 0)
    if again != "same worker":
        run.close("FAILED")
    while server.of("loss/total") != [(0, 0.0)]:
        assert server.asked.wait(LONG)
    server.stop()
    server.forget()
    for picture in (tmp_path / "artifacts").rglob("*attention*"):
        picture.unlink()
    server.start()
    if again != "same worker":
        run = recording(server, tmp_path, opened(server, tmp_path, run_id=first) if again == "resumed run" else first)
    for step in range(1, 10):
        run.log({"loss/total": float(step)}, step)
    run.close("FINISHED")
    (found,) = server.runs.values()
    assert found["info"]["run_id"] not in (None, first)
    assert server.of("loss/total") == [(step, float(step)) for step in range(10)]
    assert list((tmp_path / "artifacts").rglob("*attention*.png"))


def test_row_60__an_opening_whose_answer_was_lost_makes_no_second_run(server: Server, tmp_path: Path) -> None:
    server.lose = "runs/create"
    assert opened(server, tmp_path) is None and len(server.runs) == 1
    server.lose = ""
    run = recording(server, tmp_path, None)
    run.log({"loss/total": 1.0}, 1)
    run.close("FINISHED")
    assert len(server.runs) == 1 and server.of("loss/total") == [(1, 1.0)]


def test_row_60__a_full_disk_here_holds_the_record_in_memory_until_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(tmp_path)
    real, room = spool._file, [30]  # bytes that still fit: less than a line

    class Full:
        def write(self, data: bytes) -> int:
            if not room[0]:
                raise OSError(28, "No space left on device")
            taken, room[0] = min(len(data), room[0]), max(0, room[0] - len(data))
            return real.write(data[:taken])

        def close(self) -> None:
            real.close()

    monkeypatch.setattr(spool, "_file", Full())
    with caplog.at_level(logging.WARNING):
        for step in range(5):
            spool.log({"a": float(step)}, step)
    assert len(caplog.records) == 1 and "training goes on" in caplog.text
    assert read_metrics(spool.path) == {}
    room[0] = 10_000
    spool.log({"a": 5.0}, 5)
    spool.close("FINISHED")
    assert read_metrics(spool.path) == {step: {"a": float(step)} for step in range(6)}


ODD_KEYS = ["a" * 300, "ünïcode", "a,b;c", "", "/abs", "../up", "a//b", "a/./b", "a/..", ".", "trail/", "new\nline"]


@pytest.mark.fault  # seconds of one core
def test_row_61__over_mlflows_limits_is_trimmed_and_the_full_text_is_an_artifact(tmp_path: Path) -> None:
    """In a real MLflow store, which refuses whatever is over its limits."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    params = {
        "long": "x" * 9000,
        **{f"p{i}": i for i in range(230)},
        **{key: number for number, key in enumerate(ODD_KEYS)},
    }
    yaml = "long: " + "x" * 9000
    opening = Opening.of(
        experiment="raydino",
        run_name="n" * 2000,
        params=params,
        tags={"long": "y" * 9000, "../odd": "z"},
        dataset=None,
        recipe_yaml=yaml,
    )
    run_id = create_run(opening, tracking_uri=uri)
    run = MlflowClient(uri).get_run(run_id)
    assert len(run.data.params) == len(clean_params(params)) >= 231 + 6
    assert run.data.params["long"] == "x" * 5999 + "…" and len(run.data.tags["long"]) == 8000
    assert next(tmp_path.rglob("recipe.yaml")).read_text() == yaml


def test_row_61__at_most_a_thousand_points_in_a_call(server: Server, tmp_path: Path) -> None:
    run = recording(server, tmp_path, opened(server, tmp_path))
    run.log({f"m{number}": 1.0 for number in range(2500)}, 1)
    run.close("FINISHED")
    assert sum(len(found) for found in server.points.values()) == 2500
    assert outbox.MAX_POINTS == 1000


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_row_62__nan_and_infinities_are_sent_as_such_and_flagged(value: float, server: Server, tmp_path: Path) -> None:
    run = recording(server, tmp_path, opened(server, tmp_path))
    run.log({"loss/total": value, "knn/top1": 0.5}, 3)
    run.close("FINISHED")
    assert '"non_finite": {"loss/total": "' in (tmp_path / "metrics.jsonl").read_text()
    ((_, sent),) = server.of("loss/total")
    assert sent == value or math.isnan(sent) == math.isnan(value)
    assert server.of("knn/top1") == [(3, 0.5)]


def test_row_63__a_deleted_experiment_is_named_and_the_run_opened_once_it_is_restored(
    server: Server, tmp_path: Path
) -> None:
    opened(server, tmp_path / "..")
    server.experiments["raydino"]["lifecycle_stage"] = "deleted"
    with pytest.raises(TrackerUnavailable, match="'raydino' was deleted; restore it in MLflow or choose another name"):
        opening = Opening.of(
            experiment="raydino", run_name="x", params={}, tags={}, dataset=None, recipe_yaml="", run_dir=tmp_path
        )
        create_run(opening, tracking_uri=server.uri)
    run = recording(server, tmp_path, None)
    run.log({"loss/total": 1.0}, 1)
    server.experiments["raydino"]["lifecycle_stage"] = "active"
    run.close("FINISHED")
    assert server.of("loss/total") == [(1, 1.0)]


def test_row_64__what_looks_like_a_secret_is_hidden_where_a_run_is_kept_to_be_opened_later(tmp_path: Path) -> None:
    opening = Opening.of(
        experiment="e",
        run_name="https://a:hunter2@host",
        params={"password": "hunter2", "url": "s3://key:hunter2@bucket", "tokens": 196},
        tags={"remote": "https://ghp_16C7e42F292c6912E7710c838347Ae178B4a@host/r.git"},
        dataset=None,
        recipe_yaml="data: {path: 's3://key:hunter2@bucket'}",
        cluster_yaml="tracking_uri: https://a:hunter2@host",
        run_dir=tmp_path,
    )
    assert opening.params == {"password": HIDDEN, "url": f"s3://{HIDDEN}@bucket", "tokens": "196"}
    text = (tmp_path / "opening.json").read_text()
    assert "hunter2" not in text and "ghp_" not in text
    assert Opening.load(tmp_path) == opening


def test_row_65__a_clock_that_jumps_back_changes_no_step(server: Server, tmp_path: Path) -> None:
    times = iter([1_700_000_000.0, 1_700_000_010.0, 1_699_996_400.0, 1_699_996_410.0])  # an hour back in the middle
    spool = Spool(tmp_path, clock=lambda: next(times))
    for step in range(4):
        spool.log({"loss/total": float(step)}, step)
    assert list(read_metrics(spool.path)) == [0, 1, 2, 3]
    run = MLflowRun(spool, tracking_uri=server.uri, run_id=opened(server, tmp_path), retry=(0.001, 0.01))
    run.close("FINISHED")
    assert server.of("loss/total") == [(step, float(step)) for step in range(4)]
