"""The only door to MLflow: opens runs, and says to MLflow what the outbox has to say.

The driver makes the run (`create_run`), so that a sqlite store is migrated once and by one process; the worker of rank
0 records it (`MLflowRun`); all always name the tracking address, because the default of a Ray worker is a file in its
own session folder that disappears. Everything that goes in as text is redacted first. Importing mlflow takes seconds,
so it happens inside functions, behind `mlflow_module`, which sets the client's environment before.
Considered instead: ray's setup_mlflow and MLflowLoggerCallback (need the server up at start, block for minutes in an
outage).
"""

import json
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from raydino.tracking.opening import (
    KEY_TAG,
    DatasetRecord,
    Opening,
    TrackerUnavailable,
    absolute_uri,
    clean_params,
)
from raydino.tracking.outbox import Outbox, Point, Tracker, drain
from raydino.tracking.redact import redact_text
from raydino.tracking.run import SYSTEM_GROUP, Status
from raydino.tracking.spool import Spool

if TYPE_CHECKING:
    from types import ModuleType

    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput

_PARAMS, _DIGEST_LENGTH, _NAME_LENGTH = 100, 36, 250  # MLflow's limits; those of texts are kept in opening.py
_SQLITE = "sqlite:///"
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # not one of language models
_LOCAL_PAGE = "http://127.0.0.1:5000"  # where `make ui` serves a local store
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # 7 retries block for 4 minutes; the outbox retries better
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",  # MLflow ships true: a model it loads could run code here
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
_logger = logging.getLogger(__name__)


class MLflowRun(Outbox):
    """A `Run` recorded in `spool` and in MLflow. See Outbox for what happens in an outage."""

    def __init__(
        self,
        spool: Spool,
        *,
        tracking_uri: str,
        run_id: str | None,
        patience: float = 30.0,
        retry: tuple[float, float] = (1.0, 30.0),
    ) -> None:
        """Go on recording the MLflow run `run_id`; nothing is imported or sent before the thread does it.

        A run that the server does not have (None, or one that a new database has forgotten) is made by the thread as soon as
        it can be, from the opening that `create_run` left in the folder, and gets the whole record.
        """
        uri = absolute_uri(tracking_uri)
        connect = partial(connected, uri, run_id, spool.run_dir)
        super().__init__(spool, connect=connect, retry=retry, patience=patience)


def create_run(opening: Opening, *, tracking_uri: str, run_id: str | None = None) -> str:
    """Create the MLflow run, or reopen `run_id` if the server has it; returns its id.

    Values over MLflow's limits are trimmed, secrets hidden; the full text of the parameters is the artifact
    recipe.yaml, with cluster.yaml beside it. Parameters cannot change in MLflow, so of a reopened run only new ones are
    recorded, and new tags. A sqlite store is made with its folder. To nest the run, give the tag `mlflow.parentRunId`.

    Raises:
        TrackerUnavailable: If the server does not answer or refuses.
    """
    uri = absolute_uri(tracking_uri)
    try:
        return _opened(client_of(uri), uri, opening, run_id)
    except Exception as error:
        remedy = "no run could be opened; start the server, give another address, or train with the spool alone"
        raise unavailable(uri, error, remedy) from None  # the cause holds the address with its password


def record_files(
    *,
    tracking_uri: str,
    experiment: str,
    run_name: str,
    params: Mapping[str, object],
    metrics: Mapping[str, float],
    files: Sequence[Path],
) -> str:
    """Record work that is done already, such as a curation, as a finished run with its files; returns the run's id.

    Raises:
        TrackerUnavailable: If the server does not answer or refuses.
    """
    uri = absolute_uri(tracking_uri)
    try:
        client = client_of(uri)
        run = client.create_run(experiment_id(client, uri, experiment), run_name=redact_text(run_name)).info.run_id
        _log_params(client, run, clean_params(params), known=set())
        for name, value in metrics.items():
            client.log_metric(run, name, value)
        for path in files:
            client.log_artifact(run, str(path))
        client.set_terminated(run, status="FINISHED")
    except Exception as error:
        raise unavailable(uri, error, "nothing was recorded") from None
    return run


def add_to_run(
    *,
    tracking_uri: str,
    run_id: str,
    metrics: Mapping[str, float],
    step: int,
    files: Sequence[Path],
    pictures: Mapping[str, Path] | None = None,
) -> None:
    """Add to a run that may be finished what was found out about it later; its status stays. `pictures` are PNGs by name.

    Raises:
        TrackerUnavailable: If the server does not answer, refuses, or does not have the run.
    """
    uri = absolute_uri(tracking_uri)
    try:
        tracker, now = open_tracker(uri, run_id), time.time()
        tracker.points([Point(name, value, step, now) for name, value in metrics.items()])
        for path in files:
            tracker.artifact(path)
        for name, path in (pictures or {}).items():
            tracker.picture(name, path, step)
    except Exception as error:
        raise unavailable(uri, error, f"nothing was added to run {run_id}") from None


def unavailable(tracking_uri: str, error: Exception, what: str) -> TrackerUnavailable:
    """What to raise when a server failed with `error`, without its secrets."""
    text = redact_text(f"{type(error).__name__}: {error}").splitlines()[0][:300]
    what += "; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" * ("error code 401" in text)
    return TrackerUnavailable(f"tracking_uri = {redact_text(tracking_uri)}: {what} ({text})")


def run_page(tracking_uri: str, run_id: str) -> str | None:
    """Address of the run's charts; None where the tracker has no page or does not answer.

    MLflow 3 shows every experiment as one of language models until somebody presses "Model training" in that browser; the
    address says it too. Its page reads nothing else for that, not even the experiment's own kind.
    """
    host = re.sub(r"(?<=://)[^/@]*@", "", tracking_uri).rstrip("/")  # without user and password
    if tracking_uri.startswith(_SQLITE):
        host = _LOCAL_PAGE
    elif not tracking_uri.startswith(("http://", "https://")):
        return None
    try:
        experiment = client_of(absolute_uri(tracking_uri)).get_run(run_id).info.experiment_id
    except Exception:  # a line for the reader is no reason to fail a finished run
        return None
    return f"{host}/#/experiments/{experiment}/runs/{run_id}/model-metrics?workflowType=machine_learning"


def finish(tracking_uri: str, run_id: str, status: Status) -> None:
    """Set the status of a run from the driver, for a worker that died without `close`; an outage is only a warning."""
    try:
        open_tracker(absolute_uri(tracking_uri), run_id).status(status)
    except Exception as error:  # the run itself is over, and its record on disk is complete
        _logger.warning("run %s could not be marked %s in MLflow (%s)", run_id, status, type(error).__name__)


def replay(run_dir: Path, *, tracking_uri: str, run_id: str) -> int:
    """Send the metrics that MLflow has not acknowledged, after an outage; returns the number of points sent."""
    return drain(Path(run_dir), open_tracker(absolute_uri(tracking_uri), run_id))


def open_tracker(tracking_uri: str, run_id: str) -> Tracker:
    """The door for one run; no request is made yet."""
    return _MLflowTracker(client_of(tracking_uri), tracking_uri, run_id)


class _MLflowTracker:
    def __init__(self, client: "MlflowClient", tracking_uri: str, run_id: str) -> None:
        self._client, self.run_id = client, run_id
        self._monitor = _system_monitor(tracking_uri, run_id)

    def points(self, points: "Sequence[Point]") -> None:
        from mlflow.entities import Metric

        metrics = [Metric(point.name, point.value, round(point.time * 1000), point.step) for point in points]
        self._client.log_batch(self.run_id, metrics=metrics)

    def picture(self, name: str, path: Path, step: int) -> None:
        from PIL import Image

        with Image.open(path) as image:
            self._client.log_image(self.run_id, image.convert("RGB"), key=name.replace(":", "-"), step=step)

    def artifact(self, path: Path) -> None:
        self._client.log_artifact(self.run_id, str(path))

    def system(self) -> dict[str, float]:
        # The monitor's own thread gives up for good at the first failed request, so only its sensors are used.
        if self._monitor is None:
            return {}
        self._monitor.collect_metrics()
        values = self._monitor.aggregate_metrics()
        for sensor in self._monitor.monitors:
            sensor.clear_metrics()
        return {f"{SYSTEM_GROUP}/{name}": float(value) for name, value in values.items()}

    def tag(self, name: str, value: str) -> None:
        """Set a tag of the run."""
        self._client.set_tag(self.run_id, name, value)

    def status(self, status: str) -> None:
        if status == "RUNNING":
            self._client.update_run(self.run_id, status=status)
        else:
            self._client.set_terminated(self.run_id, status=status)


def mlflow_module() -> "ModuleType":
    """mlflow, with the client's environment set before it is imported."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow

    for name in ("mlflow", "alembic"):  # after the import, which sets them to INFO
        logging.getLogger(name).setLevel(logging.WARNING)
    return mlflow


def client_of(tracking_uri: str) -> "MlflowClient":
    """A client of a store; the folder of one in SQLite is made."""
    mlflow = mlflow_module()
    if tracking_uri.startswith(_SQLITE):
        Path(tracking_uri.removeprefix(_SQLITE)).parent.mkdir(parents=True, exist_ok=True)
    return mlflow.MlflowClient(tracking_uri=tracking_uri)


def _system_monitor(tracking_uri: str, run_id: str) -> Any:
    try:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        return SystemMetricsMonitor(run_id, tracking_uri=tracking_uri)
    except ImportError:  # psutil is optional in MLflow
        return None


def experiment_id(client: "MlflowClient", uri: str, name: str) -> str:
    """The experiment of that name, made if it is not there. Raises ValueError if it was deleted."""
    found = client.get_experiment_by_name(name)
    if found is not None and found.lifecycle_stage == "deleted":
        raise ValueError(f"experiment {name!r} was deleted; restore it in MLflow or choose another name")
    if found is not None:
        return found.experiment_id
    folder = re.sub(r"[^A-Za-z0-9_.-]+", "-", name)
    # Beside the database: MLflow's default would be ./mlruns of whichever directory the process was started in.
    beside = Path(uri.removeprefix(_SQLITE)).parent / "artifacts" / folder if uri.startswith(_SQLITE) else None
    location = beside.as_uri() if beside else None
    return client.create_experiment(name, artifact_location=location, tags=_EXPERIMENT_TAGS)


def _opened(client: "MlflowClient", uri: str, opening: Opening, run_id: str | None) -> str:
    """The id of the run that the server has under `run_id` or the opening's key, else of a new one."""
    run = _reopened(client, run_id) if run_id else None
    if run is None:
        experiment = experiment_id(client, uri, opening.experiment)
        asked = f"tags.`{KEY_TAG}` = '{opening.key}'"
        found = client.search_runs([experiment], filter_string=asked, max_results=1)
        run = _reopened(client, found[0].info.run_id) if found else None
        if run is None:
            run = _made(client, experiment, opening)
    for key in opening.tags.keys() - run.data.tags.keys():
        client.set_tag(run.info.run_id, key, opening.tags[key])
    _log_params(client, run.info.run_id, opening.params, known=set(run.data.params))
    return run.info.run_id


def _made(client: "MlflowClient", experiment: str, opening: Opening) -> Any:
    run = client.create_run(experiment, tags={**opening.tags, KEY_TAG: opening.key}, run_name=opening.run_name)
    if opening.dataset is not None:
        client.log_inputs(run.info.run_id, [_dataset_input(opening.dataset)])
    client.log_text(run.info.run_id, opening.recipe_yaml, "recipe.yaml")
    if opening.cluster_yaml is not None:
        client.log_text(run.info.run_id, opening.cluster_yaml, "cluster.yaml")
    return run


def connected(uri: str, run_id: str | None, run_dir: Path) -> "_MLflowTracker":
    """The door for a run that the server has for certain, made or found again if need be."""
    opening, client = Opening.load(run_dir), client_of(uri)
    if opening is not None:
        run_id = _opened(client, uri, opening, run_id)
    if run_id is None:
        raise LookupError("no run was opened, and the folder does not say how")
    return _MLflowTracker(client, uri, run_id)


def _reopened(client: "MlflowClient", run_id: str) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        run = None
    if run is None or run.info.lifecycle_stage == "deleted":
        _logger.warning("MLflow has no run %s any more; a new one takes its whole record from the spool", run_id)
        return None
    client.update_run(run_id, status="RUNNING")
    return run


def _log_params(client: "MlflowClient", run_id: str, params: Mapping[str, str], *, known: set[str]) -> None:
    from mlflow.entities import Param

    new = [Param(key, value) for key, value in params.items() if key not in known]
    for start in range(0, len(new), _PARAMS):
        client.log_batch(run_id, params=new[start : start + _PARAMS])


def _dataset_input(dataset: DatasetRecord) -> "DatasetInput":
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = dataset.source
    record = Dataset(
        name=dataset.name[:_NAME_LENGTH],
        digest=dataset.digest[:_DIGEST_LENGTH],
        source_type=urlsplit(source).scheme or "local",
        source=json.dumps({"uri": source}),
        profile=json.dumps({"num_rows": dataset.rows}),
    )
    return DatasetInput(record, tags=[InputTag("mlflow.data.context", "training")])
