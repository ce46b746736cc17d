"""A run's record out of MLflow into a folder laid out as those of runs, so that what reads a folder reads a tracker too."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raydino.tracking.mlflow_run import client_of, unavailable
from raydino.tracking.opening import TrackerUnavailable, absolute_uri
from raydino.tracking.spool import METRICS_FILE, PICTURES_FOLDER

WANTED = ("recipe.yaml", "cluster.yaml", "data.json", "quarantine.jsonl", "skipped.jsonl")
"""Artifacts that are copied as they are, where a run has them."""
EVALUATIONS = ("evaluation.json", "evaluations")
"""An artifact, and the folder it goes to."""
IMAGES = "images"  # MLflow's own folder of pictures, whose names hold key, step and time


def fetch(name: str, *, tracking_uri: str, experiment: str, into: Path) -> Path:
    """Write the record of a run into a new folder inside `into`; returns that folder, named as the run's own was.

    Args:
        name: the run's id at the tracker, or its name or that of its folder in `experiment`; of several the newest.
        tracking_uri: server or database.
        experiment: where names are looked for.
        into: is made if it is not there.

    Raises:
        TrackerUnavailable: the tracker does not answer, refuses, or has no such run.
    """
    uri = absolute_uri(tracking_uri)
    try:
        client = client_of(uri)
        run = _found(client, name, experiment)
        folder = into / _folder_name(run)
        folder.mkdir(parents=True, exist_ok=True)
        there = {file.path for file in client.list_artifacts(run.info.run_id)}
        for wanted in there.intersection(WANTED):
            client.download_artifacts(run.info.run_id, wanted, str(folder))
        if EVALUATIONS[0] in there:
            (folder / EVALUATIONS[1]).mkdir(exist_ok=True)
            client.download_artifacts(run.info.run_id, EVALUATIONS[0], str(folder / EVALUATIONS[1]))
        if IMAGES in there:
            _pictures(client, run.info.run_id, folder / PICTURES_FOLDER)
        _metrics(client, run, folder / METRICS_FILE)
    except TrackerUnavailable:
        raise
    except Exception as error:
        raise unavailable(uri, error, f"run {name!r} could not be read") from None
    known = {"run_id": folder.name, "mlflow_run_id": run.info.run_id, "data_digest": run.data.tags.get("data_digest")}
    (folder / "run.json").write_text(json.dumps(known, indent=1))
    return folder


def _found(client: Any, name: str, experiment: str) -> Any:
    if re.fullmatch(r"[0-9a-f]{32}", name):  # a server with passwords refuses to say of a name that it is no id
        return client.get_run(name)
    place = client.get_experiment_by_name(experiment)
    if place is None:
        raise TrackerUnavailable(f"experiment = {experiment!r}: the tracker has none of that name; give --experiment.")
    quoted = name.replace("'", "")
    for asked in (f"tags.run_id = '{quoted}'", f"attributes.run_name = '{quoted}'"):
        if found := client.search_runs([place.experiment_id], asked, max_results=1):
            return found[0]
    raise TrackerUnavailable(f"run = {name!r}: experiment {experiment!r} has no run of that id or name.")


def _folder_name(run: Any) -> str:
    """The name of the run's own folder; never a path."""
    name = str(run.data.tags.get("run_id") or run.info.run_name)
    return name if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) else run.info.run_id


def _pictures(client: Any, run_id: str, folder: Path) -> None:
    """The pictures, of which MLflow keeps `NAME+step+N+timestamp+T+UUID.png` (and a smaller copy, which is left)."""
    folder.mkdir(exist_ok=True)
    for file in client.list_artifacts(run_id, IMAGES):
        named = re.fullmatch(r"(.+)\+step\+(\d+)\+timestamp\+.+\.png", Path(file.path).name)
        if named is None:
            continue
        fetched = Path(client.download_artifacts(run_id, file.path, str(folder)))
        fetched.replace(folder / f"{re.sub('[~#]', '-', named[1])}-step-{int(named[2]):07d}.png")


def _metrics(client: Any, run: Any, path: Path) -> None:
    """All values of all metrics as lines of a spool, by step and time."""
    lines: dict[tuple[int, int], dict[str, float]] = {}
    for name in run.data.metrics:
        for point in client.get_metric_history(run.info.run_id, name):
            lines.setdefault((point.timestamp, point.step), {})[name] = point.value
    with path.open("w") as file:
        for (moment, step), metrics in sorted(lines.items()):
            file.write(json.dumps(_line(step, moment / 1000, metrics)) + "\n")


def _line(step: int, moment: float, metrics: Mapping[str, float]) -> dict[str, Any]:
    odd = {
        name: str(value) for name, value in metrics.items() if value in (float("inf"), float("-inf")) or value != value
    }
    line: dict[str, Any] = {"step": step, "time": moment, **{k: None if k in odd else v for k, v in metrics.items()}}
    return {**line, "non_finite": odd} if odd else line
