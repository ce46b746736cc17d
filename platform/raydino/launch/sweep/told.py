"""What the page of a sweep says, as a file: written at its end, read back when the page is asked for again."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raydino.config import ConfigError
from raydino.launch.job import TRIALS
from raydino.launch.report.page import trial_curves
from raydino.launch.sweep.importance import Importance
from raydino.launch.sweep.page import Told, settings_of
from raydino.launch.sweep.population import Exploit
from raydino.launch.sweep.ranking import Row
from raydino.launch.sweep.search import Plan
from raydino.tracking.redact import redact_text

BEST, RANKING, PICTURES = "best.yaml", "ranking.json", "pictures"
"""Files and a folder in the sweep's folder."""


def as_json(told: Told) -> str:
    """ranking.json: all that the page says, but for the trials' own records."""
    table = {
        "title": told.title,
        "created": told.created,
        "command": redact_text(told.command),
        "objective": told.objective,
        "own": dict(told.own),
        "rows": [
            {
                "trial": row.group,
                "params": dict(row.params),
                "status": row.status,
                "reason": row.reason,
                "mean": row.value,
                "spread": row.spread,
                "values": list(row.values),
                "images": row.images,
                "seconds": row.seconds,
                "failed": row.failed,
                "untrained": row.untrained,
            }
            for row in told.rows
        ],
        "importance": [{"key": each.key, "share": each.share, "spread": each.spread} for each in told.mattered],
        "compared": {"trials": told.compared[0], "images": told.compared[1]},
        "device_hours": told.device_hours,
        "device": told.device,
        "minutes": told.minutes,
        "refused": list(told.refused),
        "exploits": [asdict(each) for each in told.exploits],
        "pictures": {caption: path.name for caption, path in told.pictures.items()},
    }
    return json.dumps(table, indent=1)


def told_in(folder: Path, plan: Plan) -> Told | None:
    """What `leave` told of the sweep in `folder`, read back; None where it has told nothing yet. Raises ConfigError."""
    path, best = folder / RANKING, folder / BEST
    if not path.exists():
        return None
    try:
        table = json.loads(path.read_text())
        return Told(
            title=table["title"],
            created=table["created"],
            command=table["command"],
            objective=table["objective"],
            rows=[_row_of(each) for each in table["rows"]],
            own=table["own"],
            mattered=[Importance(**each) for each in table["importance"]],
            compared=(table["compared"]["trials"], table["compared"]["images"]),
            pictures={caption: folder / PICTURES / Path(name).name for caption, name in table["pictures"].items()},
            device_hours=table["device_hours"],
            device=table["device"],
            minutes=table["minutes"],
            refused=table["refused"],
            exploits=[Exploit(**{**each, "worth": tuple(each["worth"])}) for each in table["exploits"]],
            settings=plan.settings,
            best=best.read_text() if best.exists() else "",
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({type(error).__name__}: {error}); --resume auto of the sweep writes it anew."
        ) from None


def curves(plan: Plan, folder: Path) -> str:
    """The trials' records over each other, seeds of a configuration as one line; finished, for the page."""
    names = {each.name: f"{each.group}: {settings_of(each)}" for each in plan.trials}
    return trial_curves(folder / TRIALS, names)


def _row_of(each: Mapping[str, Any]) -> Row:
    return Row(
        group=each["trial"],
        params=each["params"],
        status=each["status"],
        value=each["mean"],
        spread=each["spread"],
        values=tuple(each["values"]),
        images=each["images"],
        seconds=each["seconds"],
        reason=each["reason"],
        failed=each["failed"],
        untrained=each.get("untrained"),  # sweeps of before do not know
    )
