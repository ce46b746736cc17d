"""The trials of a sweep, in rounds: the configurations, then further seeds of the best; or a population, segment by segment."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from raydino.launch.sweep.config import TRIALS
from raydino.launch.sweep.population import Exploit, evolve
from raydino.launch.sweep.search import TPE, Grid, Plan, Planned, Random, Search, trial_of
from raydino.launch.sweep.setting import Sweep
from raydino.launch.trials.halving import Halving
from raydino.launch.trials.run import run_trials
from raydino.launch.trials.trial import Trial, TrialResult


@dataclass(frozen=True)
class Rounds:
    """The trials of a sweep: the configurations, then further seeds of those that reached their last step."""

    sweep: Sweep
    plan: Plan
    parent: str | None
    watch: Callable[[Any], bool]

    def all(self) -> tuple[list[TrialResult], list[Exploit], list[str]]:
        """Results, exploits of a population, and what was drawn in vain."""
        sweep = self.sweep
        search = search_of(sweep, self.plan)
        if sweep.config.scheduler == "pbt":
            results, exploits = self._population(search)
            return results, exploits, search.refused
        results = self._run(search, sweep.halving)
        seeds = range(sweep.recipe.seed + 1, sweep.recipe.seed + sweep.config.repeats)
        ended = [result for result in results if result.status == "finished"]
        if len(seeds) and not any(result.status == "interrupted" for result in results):
            results += self._run([self._repeat(result, seed) for seed in seeds for result in ended], None)
        return results, [], search.refused

    def _run(self, trials: Any, halving: Halving | None) -> list[TrialResult]:
        return run_trials(
            trials,
            cluster=self.sweep.cluster,
            folder=self.sweep.folder,
            scheduler=halving,
            objective=self.sweep.config.objective,
            parent=self.parent,
            watch=self.watch,
        )

    def _repeat(self, result: TrialResult, seed: int) -> Trial:
        params = next(each.params for each in self.plan.trials if each.name == result.trial.group)
        name = f"{result.trial.group}-seed{seed}"
        if not any(each.name == name for each in self.plan.trials):
            self.plan.add(Planned(name, result.trial.group, seed, params))
        return trial_of(Planned(name, result.trial.group, seed, params), self.sweep.recipe)

    def _population(self, search: Search) -> tuple[list[TrialResult], list[Exploit]]:
        sweep = self.sweep
        while search.ask() is not None:
            pass
        return evolve(
            {each.name: each.params for each in self.plan.trials},
            recipe=sweep.recipe,
            space=sweep.space,
            segments=sweep.config.segments,
            folder=sweep.folder,
            objective=sweep.config.objective,
            run=lambda trials: self._run(trials, None),
            vet=sweep.vet,
        )


def search_of(sweep: Sweep, plan: Plan) -> Search:
    """Who chooses this sweep's configurations."""
    seed = sweep.recipe.seed
    chooser = {
        "random": lambda: Random(sweep.space, seed=seed),
        "grid": lambda: Grid(sweep.space, seed=seed),
        "tpe": lambda: TPE(sweep.space, seed=seed, trials=sweep.count or TRIALS),
    }[sweep.config.searcher]()
    return Search(
        plan,
        chooser,
        recipe=sweep.recipe,
        space=sweep.space,
        count=sweep.count,
        objective=sweep.config.objective,
        vet=sweep.vet,
    )
