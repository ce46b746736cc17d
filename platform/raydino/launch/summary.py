"""summary.json: what a run came to, computed from its record, so that it is right after any number of restarts."""

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from raydino.recipe import NOT_IN_FINGERPRINT, Recipe
from raydino.tracking.run import DATA_WAIT, LOSS_TOTAL, PIXELS_TOP1, RANKME, STEP_SECONDS
from raydino.tracking.spool import METRICS_FILE, read_metrics

SUMMARY = "summary.json"


def finished(run_dir: Path) -> dict[str, Any] | None:
    """The summary of a run that reached its last step, or None."""
    path = run_dir / SUMMARY
    summary = json.loads(path.read_text()) if path.exists() else {}
    return summary if summary.get("status") == "finished" else None


def summarise(run_dir: Path, recipe: Recipe, *, mlflow_run_id: str | None) -> dict[str, Any]:
    """Write and return the summary of the run in `run_dir`."""
    rows = read_metrics(run_dir / METRICS_FILE)
    summary = {
        "run_id": run_dir.name,
        "mlflow_run_id": mlflow_run_id,
        "fingerprint": recipe.fingerprint(exclude=NOT_IN_FINGERPRINT),
        **figures(rows, steps=recipe.steps, global_batch=recipe.global_batch, evals=recipe.evals),
    }
    text = json.dumps(summary, indent=1)
    temporary = run_dir / f".{SUMMARY}.tmp"
    temporary.write_text(text)
    temporary.rename(run_dir / SUMMARY)
    return summary


def figures(
    rows: Mapping[int, Mapping[str, float]], *, steps: int, global_batch: int, evals: Collection[str]
) -> dict[str, Any]:
    """What a record of a run of `steps` steps comes to; `evals` are the names of its evaluations."""
    trained = {step: row for step, row in rows.items() if LOSS_TOTAL in row}
    last, seconds, waited, before = 0, 0.0, 0.0, 0
    for step, row in trained.items():
        took = row.get(STEP_SECONDS, 0.0) * (step - before)
        seconds, waited, before, last = seconds + took, waited + took * row.get(DATA_WAIT, 0.0), step, step
    judged = {name for row in rows.values() for name in row if is_judgement(name, evals)}
    return {
        "status": "finished" if last >= steps else "unfinished",
        "steps": last,
        "images_seen": last * global_batch,
        "images_per_second": last * global_batch / seconds if seconds else 0.0,
        "data_wait": waited / seconds if seconds else 0.0,
        "seconds": seconds,
        "metrics": {name: _history(name, rows) for name in sorted(judged)},
    }


def is_judgement(name: str, evals: Collection[str]) -> bool:
    """Whether a metric judges the teacher: what an evaluation of the recipe found, RankMe, raw pixels."""
    return name.split("/")[0] in evals or name in (RANKME, PIXELS_TOP1)


def _history(name: str, rows: Mapping[int, Mapping[str, float]]) -> dict[str, float | int | None]:
    """Untrained (step 0), last and best (highest) value of an evaluation metric."""
    values = {step: row[name] for step, row in rows.items() if name in row and math.isfinite(row[name])}
    best = max(values, key=lambda step: values[step], default=None)
    return {
        "untrained": values.get(0),
        "last": values[max(values)] if values else None,
        "best": values[best] if best is not None else None,
        "best_step": best,
    }
