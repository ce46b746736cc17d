"""Runs that belong together in MLflow: a parent, and children that end with a reason.

Everything is read from the run's folder (its opening, its spool), so that a run which an outage or a kill kept from the tracker,
wholly or in part, is brought up to date by the same call.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from raydino.tracking.mlflow_run import client_of, connected, experiment_id, unavailable
from raydino.tracking.opening import absolute_uri
from raydino.tracking.outbox import drain, recorded_run
from raydino.tracking.redact import redact
from raydino.tracking.run import Status
from raydino.tracking.spool import METRICS_FILE

PARENT_TAG = "mlflow.parentRunId"
"""MLflow's own: its page nests a run with this tag below the one that it names."""


def make_ready(tracking_uri: str, experiment: str) -> None:
    """Make the store and the experiment where they are missing: several workers at once would make them over each other.

    Raises:
        TrackerUnavailable: If the server does not answer or refuses.
    """
    uri = absolute_uri(tracking_uri)
    try:
        experiment_id(client_of(uri), uri, experiment)
    except Exception as error:
        raise unavailable(uri, error, "trials record on disk alone until it answers") from None


def settle(
    run_dir: Path, *, tracking_uri: str, status: Status, tags: Mapping[str, str], files: Sequence[Path] = ()
) -> str:
    """End a run whose opening is in `run_dir`: send what the tracker lacks, set `tags`, add `files`; returns the run's id.

    Raises:
        TrackerUnavailable: If the server does not answer or refuses.
    """
    try:
        tracker = connected(absolute_uri(tracking_uri), recorded_run(run_dir), run_dir)
        if (run_dir / METRICS_FILE).exists():
            drain(run_dir, tracker)
        for name, value in redact(tags).items():
            tracker.tag(name, value)
        for path in files:
            tracker.artifact(path)
        tracker.status(status)
    except Exception as error:
        raise unavailable(tracking_uri, error, "its end is not recorded there, but in its folder") from None
    return tracker.run_id
