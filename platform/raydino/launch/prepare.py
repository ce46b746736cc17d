"""A run's folder before its workers start: what they are to do, what was changed on the way, how its record is opened."""

import functools
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydino.launch.cluster import ClusterConfig
from raydino.launch.init import keep
from raydino.launch.job import Job
from raydino.launch.report.card import write_card
from raydino.launch.resume import DATA, RECIPE_FILE, RUN_FILE, Change, flat, history, read_run, steps_done, write
from raydino.launch.workers.failure import ERRORS, FAILURE
from raydino.recipe import NOT_IN_FINGERPRINT, Recipe
from raydino.tracking.opening import DatasetRecord, Opening
from raydino.tracking.outbox import recorded_run
from raydino.tracking.redact import redact_text

if TYPE_CHECKING:
    from raydino.launch.inputs import Inputs

ROOT = Path(__file__).resolve().parents[3]


def prepare(
    recipe: Recipe,
    cluster: ClusterConfig,
    run_dir: Path,
    data_path: str,
    inputs: "Inputs",
    *,
    changes: tuple[Change, ...] = (),
    run_name: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> Job:
    """Fill a run's folder, which is there; returns what its workers need. Nothing is said to a tracker yet.

    Args:
        recipe: the experiment.
        cluster: where it is carried out.
        run_dir: the run's folder, absolute; its record may have begun.
        data_path: where the images lie.
        inputs: the images, opened.
        changes: what is changed about a run that is taken up again.
        run_name: the run's name in MLflow; None for the recipe's.
        tags: further tags of the run in MLflow.
    """
    from raydino.launch.workers.wishes import SAVE, STOP  # needs torch

    for leftover in (STOP, SAVE, FAILURE, ERRORS.format("*")):  # of an attempt before: its cause may be mended
        for path in run_dir.glob(leftover):
            path.unlink()
    keep(recipe, run_dir)
    manifest, known = inputs.collection.manifest, read_run(run_dir)
    past = history(known, changes, step=steps_done(run_dir))
    # The history first: a crash before the recipe finds the same change again, and nothing is forgotten.
    record = {"run_id": run_dir.name, "data_digest": manifest.digest, "history": past}
    write(run_dir / RUN_FILE, json.dumps({**record, "mlflow_run_id": known.get("mlflow_run_id")}, indent=1))
    write(run_dir / RECIPE_FILE, recipe.to_yaml())
    write_card(run_dir, inputs, data_path)
    write(run_dir / "cluster.yaml", redact_text(cluster.to_yaml()))  # for people: nothing reads it back
    Opening.of(
        experiment=cluster.experiment,
        run_name=run_name or recipe.name,
        params=flat(recipe.dump()),
        tags={**code_tags(), **_tags(run_dir.name, recipe, manifest.digest), **_changed(past), **(tags or {})},
        dataset=DatasetRecord(recipe.data.path, manifest.digest, data_path, inputs.plan.kept),
        recipe_yaml=recipe.to_yaml(),
        cluster_yaml=cluster.to_yaml(),
        run_dir=run_dir,
    )
    before = recorded_run(run_dir) or known.get("mlflow_run_id")
    replaced = tuple(entry["data_digest"] for entry in past if DATA in entry["changes"])
    return Job(recipe, cluster, run_dir, data_path, manifest.digest, cluster.tracker(), before, data_before=replaced)


@functools.cache
def code_tags() -> dict[str, str]:
    """Which code a result comes from. MLflow's own two make the line "Source" of its page."""
    commit = _git("rev-parse", "HEAD") or "unknown"
    return {
        "mlflow.source.name": Path(sys.argv[0]).name,
        "mlflow.source.git.commit": commit,
        "git_commit": commit,
        "git_dirty": str(bool(_git("status", "--porcelain"))).lower(),
    }


def _tags(run_id: str, recipe: Recipe, digest: str) -> dict[str, str]:
    """Which recipe and data a result comes from."""
    return {
        "fingerprint": recipe.fingerprint(exclude=NOT_IN_FINGERPRINT),
        "run_id": run_id,
        "data_digest": digest,
    }


def _changed(past: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """A tag for every time that a resume changed something; parameters cannot change in MLflow."""
    return {
        f"change_{number}": f"after step {entry['step']}: "
        + "; ".join(f"{name}: {was} → {now}" for name, (was, now) in entry["changes"].items())
        for number, entry in enumerate(past, start=1)
    }


def _git(*words: str) -> str:
    try:
        return subprocess.run(
            ["git", *words], cwd=ROOT, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""  # not a checkout, or no git
