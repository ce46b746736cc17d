"""`python recipes/ablate.py`: from a command line to the table of an ablation.

A run for each variant and seed, and as many of the full recipe, all through `run_trials`. The ablation's folder is named by the
recipe whatever its seed: more seeds or other variants join those that are there, and what is finished is not run again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydino.config import ConfigError
from raydino.launch.ablation.config import AblationConfig
from raydino.launch.ablation.table import PICTURE, TABLE, Outcome, Row, as_csv, as_json, markdown, rows
from raydino.launch.ablation.variants import FULL, LeftOut, Variant, applied, chosen
from raydino.launch.init import settled
from raydino.launch.job import PAGE
from raydino.launch.lock import Lock, run_lock
from raydino.launch.resume import flat, write
from raydino.launch.sweep.driver import SAVING, from_command_line
from raydino.launch.terminal.command import Command, say
from raydino.launch.terminal.interrupts import Interrupts
from raydino.launch.trials.run import run_trials
from raydino.launch.trials.trial import Trial, TrialResult
from raydino.recipe import NOT_IN_FINGERPRINT, Recipe
from raydino.tracking.run import ABLATION_GROUP, COLLAPSED, RANKME
from raydino.tracking.spool import METRICS_FILE, read_metrics

if TYPE_CHECKING:
    from raydino.launch.trials.board import Board

Run = Callable[..., list[TrialResult]]


@dataclass(frozen=True)
class Ablation:
    """What is to be run."""

    recipe: Recipe
    objective: str
    variants: tuple[Variant, ...]
    left_out: tuple[LeftOut, ...]
    seeds: range
    trials: tuple[Trial, ...]
    """Seed by seed, the full recipe first, so that an ablation that is cut short has whole comparisons."""


def main(groups: Mapping[str, Mapping[str, Recipe]], *, description: str) -> None:
    """Run an ablation from the command line and leave with its exit status. `groups` are the presets of each recipe by name."""
    from_command_line(groups, AblationConfig(), run, description=description)


def run(command: Command, *, trials: Run = run_trials) -> int:
    """Carry out a command; returns the exit status: 0 if every run got to its last step. Raises ConfigError."""
    assert isinstance(command.more, AblationConfig)
    if command.allow_change:
        raise ConfigError("--allow-change: runs of an ablation must not change on the way; give another --name.")
    recipe, cluster = settled(command.recipe), command.cluster
    plan = planned(recipe, command.more)
    say(plan_text(plan))
    if command.dry_run:
        from raydino.launch.checks.facts import probe_speed  # torch comes with it, so only now

        seconds = len(plan.trials) * recipe.steps * recipe.global_batch / probe_speed(recipe, cluster)
        say(f"about {seconds / 3600:.1f} h of training one after another at the full recipe's probed speed")
        return 0
    folder = cluster.folder / f"ablation-{recipe.override({'seed': 0}).id}"
    if folder.exists() and command.resume == "no":
        raise ConfigError(
            f"{folder} exists; --resume auto goes on with it and runs only what is not finished, or give another --name."
        )
    with run_lock(folder) as lock:
        return _carry_out(command, plan, folder, lock, trials)


def planned(recipe: Recipe, settings: AblationConfig) -> Ablation:
    """What a command asks for. Raises ConfigError for names or combinations that cannot be, before anything is run."""
    names = [name.strip().replace("-", "_") for name in (settings.only or "").split(",") if name.strip()]
    there, left_out = chosen(recipe, names)
    over = range(recipe.seed, recipe.seed + settings.seeds)
    arms: tuple[tuple[str, Variant | None], ...] = ((FULL, None), *((variant.name, variant) for variant in there))
    trials = [Trial(f"{name}-seed{seed}", applied(recipe, arm, seed=seed), name) for seed in over for name, arm in arms]
    return Ablation(recipe, settings.objective, tuple(there), tuple(left_out), over, tuple(trials))


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


def _carry_out(command: Command, plan: Ablation, folder: Path, lock: Lock, trials: Run) -> int:
    """Run the trials and leave what came of them; returns the exit status."""
    from raydino.launch.terminal.trials import TrialsTable
    from raydino.launch.trials.prepare import close_parent, open_parent

    cluster = command.cluster
    parent = open_parent(folder, cluster, params=flat(plan.recipe.dump()), recipe=plan.recipe)
    changes = {variant.name: variant.change for variant in plan.variants}
    interrupts = Interrupts(SAVING)
    with interrupts, TrialsTable({t.name: changes.get(t.group, "") for t in plan.trials}, plan.objective) as shown:

        def watch(board: "Board") -> bool:
            shown.update(board)
            return not (interrupts.status or lock.lost)

        about = {"cluster": cluster, "folder": folder, "objective": plan.objective, "parent": parent}
        results = trials(plan.trials, **about, watch=watch)
    if lock.lost:
        say(f"error: another driver has taken over {folder} while this one was held up; leaving it alone.")
        return 1
    found = rows([outcome(result, plan.objective) for result in results], plan.variants)
    files = write_table(plan, found, folder, seconds=sum(result.seconds for result in results))
    finished = sum(result.status == "finished" for result in results)
    complete = finished == len(plan.trials)
    metrics = {f"{ABLATION_GROUP}/{row.variant}": row.mean for row in found if row.mean is not None}
    status = "FINISHED" if complete else "KILLED"
    close_parent(*(folder, cluster, results), metrics=metrics, tags={}, files=files, status=status)
    say(markdown(found, left_out=plan.left_out, objective=plan.objective))
    advice = "" if complete else "; go on with --resume auto"
    say(f"{finished} of {len(plan.trials)} runs finished{advice}\n{folder}")
    say(f"report  {folder / PAGE}")
    return interrupts.status or (0 if complete else 1)


def outcome(result: TrialResult, objective: str) -> Outcome:
    """A trial's result as the table takes it; when the alarm rang stands in the trial's record."""
    record = read_metrics(result.run_dir / METRICS_FILE)
    verdicts = {step: row[COLLAPSED] for step, row in record.items() if COLLAPSED in row}
    done, score = result.status == "finished", result.value(objective)
    failure = "" if done else f"{result.status}: {result.reason}"
    if done and score is None:
        failure = f"its record has no {objective}; images without labels are judged by --objective {RANKME}"
    return Outcome(
        variant=result.trial.group,
        seed=result.trial.recipe.seed,
        score=score if done else None,
        first_alarm=min((step for step, verdict in verdicts.items() if verdict), default=None),
        watched=bool(verdicts),
        seconds=result.seconds,
        failure=failure,
    )


def write_table(plan: Ablation, found: Sequence[Row], folder: Path, *, seconds: float) -> list[Path]:
    """The table as Markdown, JSON and CSV, its picture and its page; returns the files. `seconds`: of all runs together."""
    from raydino.launch.ablation.page import ablation_page
    from raydino.launch.ablation.picture import draw

    recipe, objective = plan.recipe, plan.objective
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
    write(folder / PAGE, ablation_page(folder) or "")
    return [folder / PAGE, *(folder / f"{TABLE}{suffix}" for suffix in texts), folder / PICTURE]
