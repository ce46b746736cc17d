"""What a sweep leaves: the best recipe as YAML, a ranking, pictures, a page, and its run in MLflow with the trials below it."""

import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydino.config import read_yaml_file
from raydino.launch.job import PAGE, TRIALS
from raydino.launch.resume import RECIPE_FILE, flat, write
from raydino.launch.sweep.importance import RELIABLE_TRIALS, importances, seen_equally
from raydino.launch.sweep.page import Told, how_it_ended, page, settings_of, shown
from raydino.launch.sweep.pictures import parallel_coordinates, response_curves
from raydino.launch.sweep.population import Exploit
from raydino.launch.sweep.ranking import Row, device_hours, no_gain, rank
from raydino.launch.sweep.space import apply, current, label, written
from raydino.launch.sweep.told import BEST, PICTURES, RANKING, as_json, curves, told_in
from raydino.launch.trials.outcome import Ending, result_of
from raydino.launch.trials.prepare import close_parent
from raydino.launch.trials.trial import Trial, TrialResult
from raydino.recipe import Recipe
from raydino.tracking.mlflow_run import run_page
from raydino.tracking.outbox import recorded_run
from raydino.tracking.run import (
    SWEEP_BEST,
    SWEEP_CONFIGURATIONS,
    SWEEP_DEVICE_HOURS,
    SWEEP_FAILED,
    SWEEP_FINISHED,
    SWEEP_RUNNING,
    SWEEP_STOPPED,
)

if TYPE_CHECKING:
    from raydino.launch.sweep.search import Plan
    from raydino.launch.sweep.setting import Sweep

NOT_RECORDED = "the tracker did not take everything; the same command with --resume auto sends it again"


def parameters(sweep: "Sweep") -> dict[str, object]:
    """What MLflow shows of a sweep beside its trials."""
    return {
        **{f"sweep.{name}": value for name, value in sweep.config.dump().items()},
        **{f"space.{key}": json.dumps(value) for key, value in written(sweep.space).items()},
        **flat(sweep.recipe.dump()),
    }


def leave(
    sweep: "Sweep",
    plan: "Plan",
    results: Sequence[TrialResult],
    *,
    exploits: Sequence[Exploit],
    refused: Sequence[str],
    on_gpu: bool,
    began: float,
    complete: bool,
) -> str:
    """Write everything, end the MLflow run, and return what to say."""
    objective, folder, cluster = sweep.config.objective, sweep.folder, sweep.cluster
    each, device = _devices(sweep, on_gpu=on_gpu), "GPU" if on_gpu else "core"
    params = {planned.group: planned.params for planned in plan.trials if planned.seed == sweep.recipe.seed}
    params |= {exploit.loser: exploit.after for exploit in exploits}
    own = {key: current(sweep.base, key) for key in sweep.space}
    rows = rank(results, params, objective)
    filled = {group: {**own, **values} for group, values in params.items()}
    once = [result for result in results if result.trial.recipe.seed == sweep.recipe.seed]
    seen = seen_equally(once, filled, sweep.space, objective)
    mattered = importances(seen, list(sweep.space), seed=sweep.recipe.seed)
    pictures = _pictures(sweep, rows, results, filled, own, images=seen.images)
    best = _best(sweep, rows, exploits)
    if best is not None:
        write(folder / BEST, best)
    told = Told(
        title=f"Sweep {sweep.base.name}",
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        command=f"python recipes/sweep.py {shlex.join(sys.argv[1:])}".strip(),
        objective=objective,
        rows=rows,
        own=own,
        mattered=mattered,
        compared=(len(seen.values), seen.images),
        pictures=pictures,
        device_hours=device_hours(results, workers=cluster.workers, each=each),
        device=device,
        minutes=(time.time() - began) / 60,
        refused=refused,
        exploits=exploits,
        settings=plan.settings,
        best=best or "",
    )
    write(folder / RANKING, as_json(told))
    write(folder / PAGE, page(told, curves=curves(plan, folder)))
    plan.recorded = _record(sweep, told, results, complete=complete)
    plan.save()
    return _summary(sweep, told) + ("" if plan.recorded else f"\n{NOT_RECORDED}")


def record_again(sweep: "Sweep", plan: "Plan") -> str:
    """Send the tracker what it did not take of a finished sweep; returns what to say. Raises ConfigError."""
    told = told_in(sweep.folder, plan)
    if told is None:
        return NOT_RECORDED
    results = []
    for planned in plan.trials:
        run_dir = sweep.folder / TRIALS / planned.name
        recipe = sweep.recipe.override(read_yaml_file(run_dir / RECIPE_FILE))
        trial = Trial(planned.name, recipe, planned.group)
        results.append(result_of(trial, run_dir, otherwise=Ending("failed", "its end is not in its folder", 0)))
    plan.recorded = _record(sweep, told, results, complete=True)
    plan.save()
    return "its record in MLflow is complete now" if plan.recorded else NOT_RECORDED


def _pictures(
    sweep: "Sweep",
    rows: Sequence[Row],
    results: Sequence[TrialResult],
    params: Mapping[str, Mapping[str, Any]],
    own: Mapping[str, Any],
    *,
    images: int,
) -> dict[str, Path]:
    if not any(row.value is not None for row in rows):
        return {}
    folder, objective = sweep.folder / PICTURES, sweep.config.objective
    folder.mkdir(exist_ok=True)
    return {
        "Every configuration as a line": parallel_coordinates(
            rows, sweep.space, own, objective, folder / "parallel_coordinates.png"
        ),
        "Response to each dimension": response_curves(
            results, params, sweep.space, objective, folder / "response_curves.png", images=images
        ),
    }


def _best(sweep: "Sweep", rows: Sequence[Row], exploits: Sequence[Exploit]) -> str | None:
    """The best recipe as a file for `--config`, with how it was found; None if no trial was judged."""
    if not rows or rows[0].value is None:
        return None
    row, name = rows[0], sweep.config.recipe
    found = best_recipe(sweep.base, row)
    words = [
        f"The best of {sweep.folder.name}: {settings_of(row)}.",
        f"{sweep.config.objective} {shown(row.value, row.spread)} after {row.images:,} images, {len(row.values)} seed(s).",
        f"python recipes/{name}.py --config {shlex.quote(str(sweep.folder / BEST))}",
    ]
    if any(exploit.loser == row.group for exploit in exploits):
        words.append(
            "A population's schedule: other values before its last exploit, which report.html lists; no single recipe."
        )
    return "".join(f"# {line}\n" for line in words) + found.to_yaml()


def best_recipe(base: Recipe, row: Row) -> Recipe:
    """A row as the recipe that was given would be with its values."""
    return apply(base, row.params)


def figures(rows: Sequence[Row], *, hours: float) -> dict[str, float]:
    """A sweep in numbers, by metric name; `hours` of devices."""
    found = {SWEEP_DEVICE_HOURS: hours, SWEEP_CONFIGURATIONS: float(len(rows))}
    for name, status in ((SWEEP_FINISHED, "finished"), (SWEEP_STOPPED, "stopped"), (SWEEP_FAILED, "failed")):
        found[name] = float(sum(row.status == status for row in rows))
    best = rows[0].value if rows else None
    return found if best is None else {**found, SWEEP_BEST: best}


def live_figures(
    sweep: "Sweep", plan: "Plan", over: Sequence[TrialResult], *, running: int, on_gpu: bool
) -> dict[str, float]:
    """The same while trials run: of those that are over, and of how many there are."""
    hours = device_hours(over, workers=sweep.cluster.workers, each=_devices(sweep, on_gpu=on_gpu))
    planned = {planned.group for planned in plan.trials}
    found = figures(rank(over, {}, sweep.config.objective), hours=hours)
    return {**found, SWEEP_CONFIGURATIONS: float(len(planned)), SWEEP_RUNNING: float(running)}


def _devices(sweep: "Sweep", *, on_gpu: bool) -> float:
    """GPUs, or cores, of each worker of a trial."""
    return sweep.cluster.gpus_per_worker if on_gpu else sweep.cluster.cpus_per_worker


def _record(sweep: "Sweep", told: Told, results: Sequence[TrialResult], *, complete: bool) -> bool:
    """End the sweep's run in MLflow with its files; whether the tracker took it all."""
    names = (BEST, PAGE, RANKING)
    files = [p for p in (*(sweep.folder / name for name in names), *told.pictures.values()) if p.exists()]
    return close_parent(
        *(sweep.folder, sweep.cluster, results),
        metrics=figures(told.rows, hours=told.device_hours),
        tags={"best": settings_of(told.rows[0]) if told.rows else "none"},
        files=files,
        status="FINISHED" if complete else "KILLED",
    )


def _summary(sweep: "Sweep", told: Told) -> str:
    """The end of a sweep, for the terminal."""
    wide = max((len(settings_of(row)) for row in told.rows), default=0)
    lines = [
        f"{row.group}  {settings_of(row):<{wide}}  {shown(row.value, row.spread):>15}  {row.images:>9,} images  "
        f"{how_it_ended(row)}"
        for row in told.rows
    ]
    if told.rows and told.rows[0].untrained is not None:
        lines.append(f"untrained, {told.objective} is {told.rows[0].untrained:.4f}")
    if nothing := no_gain(told.rows):
        lines.append(f"warning: {nothing}")
    mattered = ", ".join(f"{label(each.key)} {each.share:.0%} ± {each.spread:.0%}" for each in told.mattered)
    few = f" ({told.compared[0]} trials: mostly chance)" if told.compared[0] < RELIABLE_TRIALS else ""
    lines.append(
        f"what mattered after {told.compared[1]:,} images: {mattered or 'too few trials to say'}{few * bool(mattered)}"
    )
    lines.append(f"{told.device_hours:.3g} {told.device}-hours in {told.minutes:.1f} minutes")
    lines.append(f"best    {sweep.folder / BEST}\nreport  {sweep.folder / PAGE}")
    uri, recorded = sweep.cluster.tracker(), recorded_run(sweep.folder)
    if recorded and (address := run_page(uri, recorded)):
        lines.append(("make ui, then " if uri.startswith("sqlite:") else "") + address)
    return "\n".join(lines)
