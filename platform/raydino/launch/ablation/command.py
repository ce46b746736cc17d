"""`python recipes/ablate.py`: from a command line to the table of an ablation.

A run for each variant and seed, and as many of the full recipe, all through `run_trials`. The ablation's folder is named by the
recipe whatever its seed: more seeds or other variants join those that are there, and what is finished is not run again.
"""

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydino.config import ConfigError
from raydino.launch.ablation.table import Outcome, Row, as_csv, as_json, markdown, rows
from raydino.launch.ablation.variants import FULL, LeftOut, Variant, applied, chosen
from raydino.launch.resume import flat, write
from raydino.launch.sweep.trial import Trial, TrialResult
from raydino.launch.sweep.trials import run_trials
from raydino.launch.terminal.command import Command, Leaf, fail, parse, say
from raydino.recipe import NOT_IN_FINGERPRINT, Recipe
from raydino.tracking.run import COLLAPSED, KNN_TOP1, RANKME
from raydino.tracking.spool import METRICS_FILE, read_metrics

if TYPE_CHECKING:
    from raydino.launch.sweep.board import Board

TABLE, PICTURE = "ablation", "ablation.png"
"""The table's files in the ablation's folder (with .md, .json and .csv), and its picture."""

FLAGS = (
    Leaf("seeds", int, 3, "Runs of each variant, from `--seed` on; with one, no difference can be told."),
    Leaf("only", str | None, None, "NAME[,NAME]: these variants alone; --dry-run lists them."),
)


@dataclass(frozen=True)
class Ablation:
    """What is to be run."""

    recipe: Recipe
    variants: tuple[Variant, ...]
    left_out: tuple[LeftOut, ...]
    seeds: range
    trials: tuple[Trial, ...]
    """Seed by seed, the full recipe first, so that an ablation that is cut short has whole comparisons."""


def main(recipe: Recipe, presets: Mapping[str, Recipe], *, description: str) -> None:
    """Run an ablation from the command line and leave with its exit status."""
    command = parse(recipe, presets, description=description, more=FLAGS)
    try:
        status = run(command)
    except ConfigError as error:
        fail(str(error))
    raise SystemExit(status)


def run(command: Command, *, trials: Callable[..., list[TrialResult]] = run_trials) -> int:
    """Carry out a command; returns the exit status: 0 if every run got to its last step. Raises ConfigError."""
    recipe, cluster = command.recipe, command.cluster
    if command.allow_change:
        raise ConfigError("--allow-change: runs of an ablation must not change on the way; give another --name.")
    plan = planned(recipe, seeds=command.more["seeds"], only=command.more["only"])
    say(plan_text(plan))
    from raydino.launch.checks.facts import probe_speed  # torch comes with them, so only now
    from raydino.launch.inputs import open_inputs, resolve

    labelled = open_inputs(recipe, resolve(recipe, cluster.folder)).labelled is not None
    objective = KNN_TOP1 if labelled and "knn" in recipe.evals else RANKME
    if command.dry_run:
        seconds = len(plan.trials) * recipe.steps * recipe.global_batch / probe_speed(recipe, cluster)
        say(f"about {seconds / 3600:.1f} h one after another at the full recipe's probed speed, judged by {objective}")
        return 0
    folder = cluster.folder / f"ablation-{recipe.override({'seed': 0}).id}"
    if folder.exists() and command.resume == "no":
        raise ConfigError(
            f"{folder} exists; --resume auto goes on with it and runs only what is not finished, or give another --name."
        )
    folder.mkdir(parents=True, exist_ok=True)
    parent = _open_parent(recipe, command, folder)
    with _Watch(objective, runs=len(plan.trials)) as watch:
        about = {"cluster": cluster, "folder": folder, "objective": objective, "parent": parent}
        results = trials(plan.trials, **about, watch=watch)
    found = rows([outcome(result, objective) for result in results], plan.variants)
    files = write_table(plan, found, folder, objective=objective, seconds=sum(result.seconds for result in results))
    finished = sum(result.status == "finished" for result in results)
    missing = len(plan.trials) - finished
    _close_parent(cluster.tracker(), folder, files, failed=missing > 0)
    say(markdown(found, left_out=plan.left_out, objective=objective))
    say(f"{finished} of {len(plan.trials)} runs finished{'; go on with --resume auto' if missing else ''}\n{folder}")
    return 1 if missing else 0


def planned(recipe: Recipe, *, seeds: int, only: str | None) -> Ablation:
    """What a command asks for. Raises ConfigError for seeds, names or combinations that cannot be."""
    if seeds < 1:
        raise ConfigError(f"--seeds {seeds}: give at least 1, and 2 or more for differences to be told from chance.")
    names = [name.strip().replace("-", "_") for name in (only or "").split(",") if name.strip()]
    there, left_out = chosen(recipe, names)
    over = range(recipe.seed, recipe.seed + seeds)
    arms: tuple[tuple[str, Variant | None], ...] = ((FULL, None), *((variant.name, variant) for variant in there))
    trials = [Trial(f"{name}-seed{seed}", applied(recipe, arm, seed=seed), name) for seed in over for name, arm in arms]
    return Ablation(recipe, tuple(there), tuple(left_out), over, tuple(trials))


def plan_text(plan: Ablation) -> str:
    """What will be run: a line for each variant, then for what is left out and why."""
    recipe, runs = plan.recipe, len(plan.trials)
    images = runs * recipe.steps * recipe.global_batch
    width = max(len(variant.name) for variant in plan.variants)
    lines = [
        f"{recipe.name}: {len(plan.variants)} variants and the full recipe, seeds {plan.seeds.start} to {plan.seeds.stop - 1}: "
        f"{runs} runs of {recipe.steps:,} steps, {images:,} images"
    ]
    for variant in plan.variants:
        expected = f"expected: {variant.expected}" if variant.expected else "nothing published"
        lines.append(f"{variant.name:<{width}}  {variant.component}: {variant.change} ({expected})")
    return "\n".join([*lines, *(f"left out  {part.name}: {part.reason}" for part in plan.left_out)])


def outcome(result: TrialResult, objective: str) -> Outcome:
    """A trial's result as the table takes it; when the alarm rang stands in the trial's record."""
    rang = [step for step, row in read_metrics(result.run_dir / METRICS_FILE).items() if row.get(COLLAPSED)]
    done = result.status == "finished"
    return Outcome(
        variant=result.trial.group,
        seed=result.trial.recipe.seed,
        score=result.value(objective) if done else None,
        first_alarm=min(rang, default=None),
        seconds=result.seconds,
        failure="" if done else f"{result.status}: {result.reason}",
    )


def write_table(plan: Ablation, found: Sequence[Row], folder: Path, *, objective: str, seconds: float) -> list[Path]:
    """The table as Markdown, JSON and CSV, and its picture; returns the files. `seconds`: of all runs together."""
    from raydino.launch.ablation.picture import draw

    recipe = plan.recipe
    about: dict[str, Any] = {
        "recipe": recipe.name,
        "fingerprint": recipe.fingerprint(exclude=NOT_IN_FINGERPRINT),
        "objective": objective,
        "steps": recipe.steps,
        "images_per_run": recipe.steps * recipe.global_batch,
        "seeds": list(plan.seeds),
        "trial_hours": seconds / 3600,
    }
    texts = {
        ".md": markdown(found, left_out=plan.left_out, objective=objective),
        ".json": as_json(found, left_out=plan.left_out, about=about),
        ".csv": as_csv(found),
    }
    for suffix, text in texts.items():
        write(folder / f"{TABLE}{suffix}", text)
    draw(found, folder / PICTURE, objective=objective)
    return [*(folder / f"{TABLE}{suffix}" for suffix in texts), folder / PICTURE]


class _Watch:
    """Says when a run ends. Ctrl-C or SIGTERM lets those that run save and leave, and begins no more; twice leaves at once."""

    def __init__(self, objective: str, *, runs: int) -> None:
        self._objective, self._runs = objective, runs
        self._said: set[str] = set()
        self._before: dict[int, Any] = {}
        self._asked = False

    def __enter__(self) -> "_Watch":
        for kind in (signal.SIGTERM, signal.SIGINT):
            self._before[kind] = signal.signal(kind, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for kind, handler in self._before.items():
            signal.signal(kind, handler)

    def __call__(self, board: "Board") -> bool:
        """Whether to go on."""
        for name, result in list(board.results.items()):
            if name not in self._said:
                self._said.add(name)
                value = result.value(self._objective)
                shown = f", {self._objective} {value:.3f}" if value is not None else ""
                say(f"{len(self._said)} of {self._runs}  {name} {result.status}{shown} {result.reason}".rstrip())
        return not self._asked

    def _receive(self, number: int, _frame: object) -> None:
        if self._asked:
            os._exit(128 + number)
        self._asked = True
        say("stopping: runs save and leave; once more to leave at once")


def _open_parent(recipe: Recipe, command: Command, folder: Path) -> str | None:
    """The MLflow run that the trials' runs are children of; None where the tracker does not answer."""
    from raydino.launch.prepare import code_tags
    from raydino.tracking.mlflow_run import create_run
    from raydino.tracking.opening import Opening, TrackerUnavailable

    opening = Opening.of(  # the same again for an ablation that is taken up again
        experiment=command.cluster.experiment,
        run_name=folder.name,
        params=flat(recipe.dump()),
        tags={**code_tags(), "run_id": folder.name},
        dataset=None,
        recipe_yaml=recipe.to_yaml(),
        run_dir=folder,
    )
    try:
        return create_run(opening, tracking_uri=command.cluster.tracker())
    except TrackerUnavailable as error:
        say(f"warning  {error}")
        return None


def _close_parent(tracking_uri: str, folder: Path, files: Sequence[Path], *, failed: bool) -> None:
    """Hand the table to MLflow and end the run; during an outage the folder has it all the same."""
    from raydino.tracking.opening import TrackerUnavailable
    from raydino.tracking.tree import settle

    try:
        settle(folder, tracking_uri=tracking_uri, status="FAILED" if failed else "FINISHED", tags={}, files=files)
    except TrackerUnavailable as error:
        say(f"warning  {error}")
