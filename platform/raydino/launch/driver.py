"""From a command line to a finished run: plan, check, record, start Ray, watch, sum up.

The way to the loss: `main` here, `train_worker` (workers/worker.py), `training_steps` (train/steps.py), `forward` of the method.
Heavy imports happen after the command line is parsed, so `--help` and typing errors answer at once.
"""

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from raydino.config import ConfigError
from raydino.launch.checks.machine import this_machine
from raydino.launch.checks.preflight import check
from raydino.launch.engine.trainer import Training
from raydino.launch.init import settled
from raydino.launch.job import PAGE
from raydino.launch.lineage import parent_asked
from raydino.launch.lock import Lock, refuse_if_held, run_lock
from raydino.launch.resume import RUN_FILE, Meant, data_change, flat, read_run, run_meant, steps_done, write
from raydino.launch.terminal.announce import plan_text
from raydino.launch.terminal.command import SHORT, Command, fail, parse, say
from raydino.launch.terminal.interrupts import Interrupts
from raydino.recipe import Recipe

if TYPE_CHECKING:
    from raydino.launch.inputs import Inputs
    from raydino.launch.job import Job


def main(recipe: Recipe, presets: Mapping[str, Recipe], *, description: str) -> None:
    """Run a recipe from the command line and leave with its exit status."""
    _leave_after(parse(recipe, presets, description=description))


def main_after(
    field: str, kinds: Mapping[str, Callable[[Recipe | None, str], Recipe]], *, description: str, needs: str
) -> None:
    """`main` of a recipe that begins with another run, which `field` of it names.

    `kinds` make a preset of that run's recipe (None where no run is named) and of what was said; `needs` is the remedy where
    nothing was.
    """
    try:
        parent, spec = parent_asked(field, sys.argv[1:])
        presets = {name: kind(parent, spec) for name, kind in kinds.items()}
    except ConfigError as error:
        fail(str(error))
    command = parse(presets["laptop"], presets, description=description)
    if not flat(command.recipe.dump())[field]:
        fail(f"{SHORT[field]} ({field}) is missing: {needs}")
    _leave_after(command)


def _leave_after(command: Command) -> NoReturn:
    try:
        status = run(command)
    except ConfigError as error:
        fail(str(error))
    raise SystemExit(status)


def run(command: Command) -> int:
    """Carry out a command; returns the exit status. Raises ConfigError for what cannot be run."""
    from raydino.launch.job import PROFILE_NEEDS
    from raydino.launch.summary import finished

    if command.dry_run and command.profile:
        raise ConfigError("--dry-run trains no step that --profile could look at; leave one of them out.")
    command = replace(command, recipe=settled(command.recipe))
    recipe, cluster = command.recipe, command.cluster
    meant = run_meant(recipe, cluster.folder, resume=command.resume == "auto", allow=command.allow_change)
    if not command.dry_run:
        if not meant.changes and (done := finished(meant.run_dir)):
            if command.profile:
                raise ConfigError(
                    f"--profile: {meant.run_dir.name} is finished and has no step left; give another --name."
                )
            say(f"{meant.run_dir.name} is finished: {_headline(done)}\n{meant.run_dir}")
            return 0
        refuse_if_held(meant.run_dir)  # again when the lock is taken; now, because imports and the plan take seconds
        if command.profile and (left := recipe.steps - steps_done(meant.run_dir)) < PROFILE_NEEDS:
            raise ConfigError(f"--profile takes {PROFILE_NEEDS} steps, and the run has {left} to go; raise --steps.")
        if command.resume == "no" and (meant.run_dir / RUN_FILE).exists():
            raise ConfigError(
                f"{meant.run_dir} exists and is not finished; add --resume auto to go on with it, or give another --name."
            )
    from raydino.launch.checks.facts import run_facts  # torch comes with them, so only now
    from raydino.launch.inputs import open_against, open_inputs, resolve

    data_path = resolve(recipe, cluster.folder)
    inputs = open_inputs(recipe, data_path)
    digest = inputs.collection.manifest.digest
    meant = replace(meant, changes=(*meant.changes, *data_change(meant.run_dir, digest, allow=command.allow_change)))
    open_against(recipe)  # whether they are there is better known before Ray starts
    machine = this_machine()
    facts = run_facts(recipe, cluster, inputs, machine=machine, dry_run=command.dry_run)
    warnings = check(recipe, cluster, facts=facts, machine=machine)
    warnings += [f"changed on resume  {change}; {change.effect}" for change in meant.changes]
    done = steps_done(meant.run_dir) if command.resume == "auto" else 0
    say(plan_text(recipe, cluster, facts, warnings=warnings, run_dir=meant.run_dir, done=done))
    if command.dry_run:
        return 0
    store = cluster.store_bytes(gpus=machine.gpus, memory=machine.memory, shared=machine.shared_memory)
    with run_lock(meant.run_dir) as lock:
        job = _prepare(command, meant, data_path, inputs)
        images = inputs.collection.manifest
        mean = sum(file.bytes for file in images.files) // max(1, images.rows)
        return _carry_out(replace(job, store_bytes=facts.store_bytes), lock, store=store, image_bytes=mean)


def _prepare(command: Command, meant: Meant, data_path: str, inputs: "Inputs") -> "Job":
    """Fill the run's folder and make its MLflow run."""
    from raydino.launch.job import PROFILE
    from raydino.launch.prepare import prepare
    from raydino.tracking.mlflow_run import create_run
    from raydino.tracking.opening import Opening, TrackerUnavailable

    if command.profile:
        shutil.rmtree(meant.run_dir / PROFILE, ignore_errors=True)  # of an earlier attempt
    job = prepare(command.recipe, command.cluster, meant.run_dir, data_path, inputs, changes=meant.changes)
    job = replace(job, profile=command.profile)
    opening = Opening.load(meant.run_dir)
    try:
        assert opening is not None, "it was just written"
        mlflow_run_id = create_run(opening, tracking_uri=job.tracking_uri, run_id=job.mlflow_run_id)
    except TrackerUnavailable as error:
        say(f"warning  {error}")
        return job
    write(meant.run_dir / RUN_FILE, json.dumps({**read_run(meant.run_dir), "mlflow_run_id": mlflow_run_id}, indent=1))
    return replace(job, mlflow_run_id=mlflow_run_id)


def _carry_out(job: "Job", lock: Lock, *, store: int, image_bytes: int) -> int:
    """Train on Ray (with an object store of `store` bytes if it is started here) on images of `image_bytes` on average, watching;
    returns the exit status."""
    from raydino.launch.engine.connect import start_ray
    from raydino.launch.summary import summarise
    from raydino.launch.terminal.bottleneck import place_of, remedies
    from raydino.launch.terminal.progress import Watch
    from raydino.tracking.mlflow_run import finish, run_page
    from raydino.tracking.outbox import recorded_run

    with start_ray(job.cluster, store=store):
        place = place_of(job.cluster, store_needed=job.store_bytes, image_bytes=image_bytes)
        device = "GPU" if job.cluster.use_gpu(place.gpus) else "core"
        write(job.run_dir / RUN_FILE, json.dumps({**read_run(job.run_dir), "device": device}, indent=1))
        advise = partial(remedies, recipe=job.recipe, cluster=job.cluster, place=place)
        stop, training = stop_by_signal(job.run_dir), Training(job)
        with stop, Watch(job.run_dir, steps=job.recipe.steps, advise=advise) as watch:
            while not training.ended(timeout=0.5) and not lock.lost:
                watch.update()
        if lock.lost:  # nothing may be written any more: the folder is another's
            say(f"error: another driver has taken over {job.run_dir} while this one was held up; leaving it alone.")
            return 1
        error = training.error()
        # The tracker may have come back, or come back empty, and then knows the run under another id.
        job = replace(job, mlflow_run_id=recorded_run(job.run_dir) or job.mlflow_run_id)
        # Said before Ray goes: after a failure its own thread may still use it, and Ray then ends the process on the spot.
        summary = summarise(job.run_dir, job.recipe, mlflow_run_id=job.mlflow_run_id)
        if error is not None:
            if job.mlflow_run_id:
                finish(job.tracking_uri, job.mlflow_run_id, "FAILED")
            say(f"error: {error}\nThe run's folder: {job.run_dir}. Mend the cause and go on with --resume auto.")
            sys.stdout.flush()
            sys.stderr.flush()
            say(_leave_page(job, error))
    if error is not None:
        return 1
    _say_profile(job)
    page = run_page(job.tracking_uri, job.mlflow_run_id) if job.mlflow_run_id else None
    first = "make ui, then " if job.tracking_uri.startswith("sqlite:") else ""
    report = _leave_page(job, "")
    say(f"{_headline(summary)}\n{job.run_dir}\n{report}" + (f"\n{first}{page}" if page else ""))
    if summary["status"] == "finished":
        return 0
    say(f"stopped at step {summary['steps']:,} of {job.recipe.steps:,}; the same command with --resume auto goes on.")
    return stop.status


def _leave_page(job: "Job", over: str) -> str:
    """Write the run's page and record it, with what else tells of a run that is over; returns the line that says where it is."""
    from raydino.launch.report.leave import add_files, leave_page

    files = leave_page(job.run_dir, over=over)
    if job.mlflow_run_id:
        add_files(files, tracking_uri=job.tracking_uri, run_id=job.mlflow_run_id)
    return f"report  {job.run_dir / PAGE}"


def _say_profile(job: "Job") -> None:
    """Where the profile lies, and what it found first."""
    from raydino.launch.job import PROFILE

    summary = job.run_dir / PROFILE / "summary.json"
    if job.profile and summary.exists():
        say(f"profile  {json.loads(summary.read_text())['bottleneck']}\n{summary.with_suffix('.md')}")


def stop_by_signal(run_dir: Path) -> Interrupts:
    """A signal leaves the wish to stop in the run's folder, where the workers find it after their step."""
    from raydino.launch.workers.wishes import STOP

    return Interrupts("a checkpoint is saved after this step", (run_dir / STOP).touch)


def _headline(summary: Mapping[str, Any]) -> str:
    """The result in a line."""
    parts = [f"{summary['steps']:,} steps, {summary['images_seen']:,} images in {summary['seconds']:.0f} s"]
    parts.append(f"{summary['images_per_second']:.0f} img/s, {summary['data_wait']:.0%} waiting for data")
    for name, value in summary["metrics"].items():
        if value["last"] is not None:
            start = (
                ""
                if value["untrained"] is None or value["untrained"] == value["last"]
                else f" (untrained {value['untrained']:.3f})"
            )
            parts.append(f"{name} {value['last']:.3f}{start}")
    return "; ".join(parts)
