"""From a command line to a finished sweep: check the space, plan, run the trials, rank, and leave recipe, page and record.

Heavy imports happen after the command line is parsed, so `--help` and typing errors answer at once.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from raydino.config import ConfigError
from raydino.launch.job import PAGE
from raydino.launch.lock import Lock, refuse_if_held, run_lock
from raydino.launch.sweep.config import SweepConfig
from raydino.launch.sweep.space import label
from raydino.launch.terminal.command import Command, fail, parse, say
from raydino.launch.terminal.interrupts import Interrupts
from raydino.recipe import Recipe

if TYPE_CHECKING:
    from raydino.launch.ablation.config import AblationConfig
    from raydino.launch.sweep.search import Plan
    from raydino.launch.sweep.setting import Sweep

SAVING = "trials save and leave after their step"
"""What an interrupted sweep says."""


def main(groups: Mapping[str, Mapping[str, Recipe]], *, description: str) -> None:
    """Run a sweep from the command line and leave with its exit status. `groups` are the presets of each recipe by name."""
    from_command_line(groups, SweepConfig(), run, description=description)


def from_command_line(
    groups: Mapping[str, Mapping[str, Recipe]],
    settings: "SweepConfig | AblationConfig",
    run: Callable[[Command], int],
    *,
    description: str,
) -> None:
    """Parse a command over one of several recipes with `settings` of its own, run it, and leave with its exit status."""
    name = asked_recipe(sys.argv[1:], settings.recipe)
    presets = groups.get(name) or fail(f"--recipe {name}: there is no such recipe; give one of {', '.join(groups)}.")
    command = parse(presets["laptop"], presets, description=description, more=settings)
    try:
        status = run(command)
    except ConfigError as error:
        fail(str(error))
    raise SystemExit(status)


def asked_recipe(words: Sequence[str], default: str) -> str:
    """The value of `--recipe`, which decides what other flags there are."""
    for word, after in pairwise([*words, ""]):
        if word == "--recipe":
            return after
        if word.startswith("--recipe="):
            return word.partition("=")[2]
    return default


def run(command: Command) -> int:
    """Carry out a sweep's command; returns the exit status. Raises ConfigError for what cannot be run."""
    from raydino.launch.sweep.search import Plan
    from raydino.launch.sweep.setting import checked, plan_text, refuse_another, settings_of_sweep

    sweep = checked(command)
    known = Plan.load(sweep.folder)
    if known is not None and not command.dry_run:
        refuse_another(known, sweep)
        refuse_if_held(sweep.folder)
        if known.finished and len(known.trials) >= (sweep.count or 0):
            say(f"{sweep.folder.name} is finished: {sweep.folder / PAGE}")
            if not known.recorded:
                from raydino.launch.sweep.record import record_again

                say(record_again(sweep, known))
            return 0
        if command.resume == "no":
            raise ConfigError(
                f"{sweep.folder} exists and is not finished; add --resume auto to go on with it, or give another --name."
            )
    say(plan_text(sweep))
    if command.dry_run:
        return 0
    with run_lock(sweep.folder) as lock:
        plan = known or Plan(sweep.folder, settings_of_sweep(sweep))
        plan.finished = False
        plan.save()
        return _carry_out(sweep, plan, lock)


def _carry_out(sweep: "Sweep", plan: "Plan", lock: Lock) -> int:
    """Run the trials and leave what came of them; returns the exit status."""
    import ray

    from raydino.launch.gauges import Gauges
    from raydino.launch.sweep.record import leave, live_figures, parameters
    from raydino.launch.sweep.rounds import Rounds
    from raydino.launch.terminal.trials import TrialsTable
    from raydino.launch.trials.prepare import open_parent
    from raydino.launch.trials.run import trial_ray

    began = time.time()
    parent = open_parent(sweep.folder, sweep.cluster, params=parameters(sweep), recipe=sweep.base)
    interrupts, over = Interrupts(SAVING), {}
    table, gauges = TrialsTable({}, sweep.config.objective), Gauges(sweep.folder.name)
    with trial_ray(sweep.cluster), interrupts, table, gauges:
        on_gpu = sweep.cluster.use_gpu(int(ray.cluster_resources().get("GPU", 0)))

        def watch(board: Any) -> bool:
            over.update(board.results)
            running = len(board.snapshot())
            gauges.set(live_figures(sweep, plan, list(over.values()), running=running, on_gpu=on_gpu))
            for planned in plan.trials:
                table.name(planned.name, _words(planned.params))
            table.update(board)
            return not (interrupts.status or lock.lost)

        results, exploits, refused = Rounds(sweep, plan, parent, watch).all()
    if lock.lost:
        say(f"error: another driver has taken over {sweep.folder} while this one was held up; leaving it alone.")
        return 1
    complete = not any(result.status == "interrupted" for result in results) and not interrupts.status
    plan.finished = complete and not any(result.status == "failed" for result in results)
    plan.save()
    more = {"exploits": exploits, "refused": refused, "on_gpu": on_gpu, "began": began, "complete": complete}
    say(leave(sweep, plan, results, **more))
    if interrupts.status:
        say(f"interrupted: go on with --resume auto. {sweep.folder}")
        return interrupts.status
    return 0 if plan.finished else 1


def _words(params: Mapping[str, Any]) -> str:
    parts = {label(key): f"{value:.4g}" if isinstance(value, float) else value for key, value in params.items()}
    return ", ".join(f"{name} {value}" for name, value in parts.items()) or "the recipe as it is"
