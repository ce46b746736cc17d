"""A sweep as its command means it: recipe, space, cluster and settings that fit each other, checked before anything starts."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydino.config import ConfigError
from raydino.launch.cluster import ClusterConfig
from raydino.launch.init import settled
from raydino.launch.sweep.config import TRIALS, SweepConfig, default_space
from raydino.launch.sweep.space import Space, check_space, label, read_space, written
from raydino.launch.terminal.command import Command
from raydino.recipe import Recipe
from raydino.tracking.run import EVAL_FEATURE_STD, RANKME, TEACHER_DISTANCE

if TYPE_CHECKING:
    from raydino.launch.sweep.search import Plan
    from raydino.launch.trials.halving import Halving

LABEL_FREE = (RANKME, EVAL_FEATURE_STD, TEACHER_DISTANCE)
"""What every evaluation finds, with labels or without. Uniformity is better when it is lower, so it is none of them."""
PREFIX = "sweep-"
"""Of a sweep's folder in the storage, before the name."""


@dataclass(frozen=True)
class Sweep:
    """A sweep that has been checked."""

    recipe: Recipe
    """With evaluations and checkpoints where trials are compared."""
    base: Recipe
    """As it was given."""
    cluster: ClusterConfig
    config: SweepConfig
    space: Space
    folder: Path
    vet: Callable[[Recipe], None]
    """Raises ConfigError for a recipe that cannot be run on this cluster."""

    @property
    def halving(self) -> "Halving | None":
        """Where trials are compared; None without early stopping."""
        from raydino.launch.trials.halving import Halving

        if self.config.scheduler != "asha":
            return None
        batch = self.recipe.global_batch
        return Halving(_grace(self.base, self.config) * batch, self.recipe.steps * batch, self.config.reduction)

    @property
    def count(self) -> int | None:
        """Configurations; None for all of a grid."""
        return self.config.trials or (None if self.config.searcher == "grid" else TRIALS)


def checked(command: Command) -> Sweep:
    """Recipe, space, images and machine, checked. Raises ConfigError."""
    config = command.more
    assert isinstance(config, SweepConfig)
    recipe, cluster = settled(command.recipe), command.cluster
    space = read_space(Path(config.space)) if config.space else default_space(recipe)
    check_space(space, recipe)
    if config.scheduler == "pbt":
        from raydino.launch.sweep.population import check_population

        check_population(space, recipe)
        if config.repeats > 1 or config.searcher == "grid":
            raise ConfigError(
                "scheduler = pbt: members differ from the start and change on the way; leave out repeats and grid."
            )
    step = _grace(recipe, config)
    every = {"cadence.evaluate": step, "cadence.checkpoint": step, "cadence.pictures": False}
    return Sweep(
        recipe=recipe.override(every),
        base=recipe,
        cluster=cluster,
        config=config,
        space=space,
        folder=cluster.folder / f"{PREFIX}{recipe.name}",
        vet=_vet(recipe, cluster, config.objective),
    )


def _grace(recipe: Recipe, config: SweepConfig) -> int:
    """Steps between two evaluations, the first comparison being after as many: later ones, `reduction` times as many, fall on one
    if that is a whole number."""
    if config.scheduler == "pbt":
        return math.ceil(recipe.steps / config.segments)
    return max(1, math.ceil(config.grace * recipe.steps))


def _vet(recipe: Recipe, cluster: ClusterConfig, objective: str) -> Callable[[Recipe], None]:
    """What preflight asks of a run, as a question about each recipe; asked of `recipe` at once. Raises ConfigError."""
    from raydino.launch.checks.facts import run_facts
    from raydino.launch.checks.machine import this_machine
    from raydino.launch.checks.preflight import check
    from raydino.launch.inputs import open_inputs, resolve

    machine = this_machine()

    def vet(changed: Recipe) -> None:
        inputs = open_inputs(changed, resolve(changed, cluster.folder))
        _check_objective(objective, changed, labelled=inputs.labelled is not None)
        check(changed, cluster, facts=run_facts(changed, cluster, inputs, machine=machine), machine=machine)

    vet(recipe)
    return vet


def _check_objective(objective: str, recipe: Recipe, *, labelled: bool) -> None:
    """Refuse what no evaluation of the recipe finds: no trial would ever be compared. Raises ConfigError."""
    known = ", ".join([*(f"{name}/…" for name in recipe.evals), *LABEL_FREE])
    evaluation = objective.split("/")[0]
    if evaluation in recipe.evals and not labelled:
        raise ConfigError(
            f"objective = {objective}: the images of data.path = {recipe.data.path} have no labels; use {RANKME}."
        )
    if evaluation not in recipe.evals and objective not in LABEL_FREE:
        raise ConfigError(f"objective = {objective}: no evaluation finds it; use one of {known}.")


def settings_of_sweep(sweep: Sweep) -> dict[str, Any]:
    """What makes this sweep this sweep: with anything else, its trials would not compare."""
    kept = {name: value for name, value in sweep.config.dump().items() if name not in ("trials", "repeats", "space")}
    return {**kept, "space": written(sweep.space), "base": sweep.recipe.dump()}


def refuse_another(known: "Plan", sweep: Sweep) -> None:
    """Raise ConfigError where the plan in the folder is of another sweep."""
    from raydino.launch.resume import flat

    was, now = flat(known.settings), flat(json.loads(json.dumps(settings_of_sweep(sweep))))
    changed = [name for name in {**was, **now} if was.get(name) != now.get(name)]
    if changed:
        first = "; ".join(f"{name}: {was.get(name)} → {now.get(name)}" for name in changed[:4])
        raise ConfigError(
            f"{sweep.folder} is another sweep ({first}): its trials would not compare with new ones; take that back, or give "
            "another --name. Only --trials and --repeats may grow."
        )


def plan_text(sweep: Sweep) -> str:
    """The sweep in some lines."""
    recipe, halving = sweep.recipe, sweep.halving
    count = "all combinations" if sweep.count is None else f"{sweep.count} configurations"
    lines = [
        f"sweep      {sweep.folder}",
        f"recipe     {sweep.base.name}, {recipe.steps:,} steps of {recipe.global_batch} images",
        f"trials     {count} by {sweep.config.searcher}, the recipe as it is first; {sweep.config.repeats} seed(s)",
        *(f"           {label(key)}: {written({key: each})[key]}" for key, each in sweep.space.items()),
    ]
    if halving:
        rungs = ", ".join(f"{rung:,.0f}" for rung in halving.rungs)
        lines.append(
            f"stopping   ASHA on {sweep.config.objective} after {rungs} images; one in {halving.reduction:g} goes on"
        )
    elif sweep.config.scheduler == "pbt":
        lines.append(f"population {sweep.config.segments} segments on {sweep.config.objective}")
    return "\n".join(lines)
