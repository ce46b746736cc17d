"""What a tracker has to be told to open a run, kept in the run's folder so that the run can be opened at any time.

A server may be away at the start, or come back with an empty database in the middle. The `key` is a tag of the run: whoever
opens it looks for the key first, so an answer that was lost on the way, a restarted worker or a resumed run never makes a
second one. Everything is redacted before it is kept.
"""

import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from raydino.tracking.redact import redact, redact_text

OPENING_FILE = "opening.json"
KEY_TAG = "raydino.key"
_PARAM_LENGTH, _TAG_LENGTH, _NAME_LENGTH = 6000, 8000, 250  # MLflow's limits
_SQLITE = "sqlite:///"


class TrackerUnavailable(ConnectionError):
    """The tracking server does not answer. Training can go on: the spool keeps the record, and it is sent later."""


@dataclass(frozen=True)
class DatasetRecord:
    """What a run was trained on."""

    name: str
    """Name of the data set."""
    digest: str
    """Digest of its manifest."""
    source: str
    """Where it lies: a path or an address."""
    rows: int
    """Images in it."""


@dataclass(frozen=True)
class Opening:
    """A run as it is made, without secrets and within MLflow's limits."""

    experiment: str
    run_name: str
    params: dict[str, str]
    tags: dict[str, str]
    dataset: DatasetRecord | None
    recipe_yaml: str
    """The full text of the parameters, whatever was trimmed of them."""
    cluster_yaml: str | None
    key: str
    """What tells this run from all others, whatever id a server gives it."""

    @classmethod
    def of(
        cls,
        *,
        experiment: str,
        run_name: str,
        params: Mapping[str, object],
        tags: Mapping[str, str],
        dataset: DatasetRecord | None,
        recipe_yaml: str,
        cluster_yaml: str | None = None,
        run_dir: Path | None = None,
    ) -> "Opening":
        """Redact and trim; in a `run_dir` the opening is kept, under the key of an earlier one that is there."""
        before = None if run_dir is None else Opening.load(run_dir)
        source = (
            None
            if dataset is None
            else DatasetRecord(redact_text(dataset.name), dataset.digest, redact_text(dataset.source), dataset.rows)
        )
        opening = cls(
            experiment=experiment,
            run_name=redact_text(run_name),
            params=clean_params(params),
            tags={_key(name): redact_text(value)[:_TAG_LENGTH] for name, value in tags.items()},
            dataset=source,
            recipe_yaml=redact_text(recipe_yaml),
            cluster_yaml=None if cluster_yaml is None else redact_text(cluster_yaml),
            key=before.key if before else uuid.uuid4().hex,
        )
        if run_dir is not None:
            temporary = run_dir / f".{OPENING_FILE}.tmp"
            temporary.write_text(json.dumps(asdict(opening), indent=1))
            temporary.replace(run_dir / OPENING_FILE)
        return opening

    @classmethod
    def load(cls, run_dir: Path) -> "Opening | None":
        """The opening kept in a run's folder; None where there is none that can be read."""
        try:
            data = json.loads((run_dir / OPENING_FILE).read_text())
            dataset = None if data["dataset"] is None else DatasetRecord(**data.pop("dataset"))
            return cls(**{**data, "dataset": dataset})
        except (OSError, ValueError, KeyError, TypeError):
            return None


def clean_params(params: Mapping[str, object]) -> dict[str, str]:
    """Parameters as MLflow takes them: letters it allows, its lengths, no secret."""
    return {_key(name): _trimmed(value) for name, value in redact(params).items()}


def absolute_uri(tracking_uri: str) -> str:
    """The address with a relative sqlite path made absolute: driver and workers have different working directories."""
    path = tracking_uri.removeprefix(_SQLITE)
    if not tracking_uri.startswith(_SQLITE) or path in ("", ":memory:"):
        return tracking_uri
    return _SQLITE + str(Path(path).resolve())


def _key(name: str) -> str:
    """The nearest name that MLflow takes: it reads names as paths, so none may be absolute, empty or lead upwards."""
    clean = re.sub(r"[^A-Za-z0-9_. :/-]", "_", name)
    parts = (re.sub(r"^\.+$", "_", part) for part in clean.split("/") if part)
    return "/".join(parts)[:_NAME_LENGTH].rstrip("/") or "_"


def _trimmed(text: str) -> str:
    return text if len(text) <= _PARAM_LENGTH else text[: _PARAM_LENGTH - 1] + "…"
