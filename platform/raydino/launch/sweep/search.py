"""Who chooses the configurations of a sweep, and the list of what was chosen.

The recipe as it is comes first, whoever chooses, and is never stopped: what is better is better at the same length. A combination
that recipe or machine refuses is drawn again before it costs anything. What is chosen is written down before it runs: a driver
that goes on with a sweep runs the same trials.
"""

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from raydino.config import ConfigError
from raydino.keyed import uniform
from raydino.launch.resume import write
from raydino.launch.sweep.space import Choice, Range, Space, apply, current
from raydino.launch.trials.trial import Trial, TrialResult
from raydino.recipe import Recipe

PLAN = "sweep.json"
"""File in the sweep's folder: what it is, and its trials."""
ATTEMPTS = 100  # draws for one configuration until the space is called impossible


@dataclass(frozen=True)
class Planned:
    """A configuration that was chosen."""

    name: str
    group: str
    seed: int
    params: dict[str, Any]
    """Values by key of the space; empty for the recipe as it is."""


class Plan:
    """sweep.json: the settings that make the sweep, and its trials in order."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self._path, self.settings = folder / PLAN, dict(settings)
        self.trials: list[Planned] = []
        self.finished = False
        self.recorded = True
        """Whether the tracker has all of what it came to; without, a finished sweep is recorded again when it is called."""

    @classmethod
    def load(cls, folder: Path) -> "Plan | None":
        """The plan in a folder; None without one. Raises ConfigError for one that cannot be read."""
        path = folder / PLAN
        if not path.exists():
            return None
        try:
            data = json.loads(path.read_text())
            plan = cls(folder, data["settings"])
            plan.trials = [Planned(**each) for each in data["trials"]]
            plan.finished, plan.recorded = bool(data["finished"]), bool(data.get("recorded", True))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}: cannot be read ({error}); restore it, or give another --name.") from None
        return plan

    def add(self, planned: Planned) -> None:
        """Put a trial on the list, which is on disk when this returns."""
        self.trials.append(planned)
        self.save()

    def save(self) -> None:
        """Write it down."""
        state = {"finished": self.finished, "recorded": self.recorded}
        data = {"settings": self.settings, **state, "trials": [asdict(each) for each in self.trials]}
        write(self._path, json.dumps(data, indent=1))


class Chooser(Protocol):
    """Makes points of a space."""

    def draw(self, number: int, attempt: int) -> dict[str, Any] | None:
        """A point for configuration `number`; a later attempt after a refusal. None when there are no more."""
        ...

    def keep(self, number: int, params: Mapping[str, Any]) -> None:
        """This point is tried as `number`, whoever has drawn it."""
        ...

    def tell(self, number: int, result: TrialResult, objective: str) -> None:
        """What came of it."""
        ...


class Random:
    """Draws keyed by seed, configuration and attempt."""

    def __init__(self, space: Space, *, seed: int) -> None:
        self._space, self._seed = space, seed

    def draw(self, number: int, attempt: int) -> dict[str, Any] | None:
        """A point of the space."""
        units = uniform(len(self._space), self._seed, "sweep", number, attempt)
        return {key: each.at(unit) for (key, each), unit in zip(self._space.items(), units, strict=True)}

    def keep(self, number: int, params: Mapping[str, Any]) -> None:
        """Nothing depends on it."""

    def tell(self, number: int, result: TrialResult, objective: str) -> None:
        """Nothing depends on it."""


class Grid(Random):
    """All combinations in order."""

    def __init__(self, space: Space, *, seed: int) -> None:
        super().__init__(space, seed=seed)
        self._points: Iterator[tuple[Any, ...]] = itertools.product(*(each.grid() for each in space.values()))

    def draw(self, number: int, attempt: int) -> dict[str, Any] | None:
        """The next combination."""
        point = next(self._points, None)
        return None if point is None else dict(zip(self._space, point, strict=True))


class TPE(Random):
    """Optuna's tree-structured Parzen estimator (Bergstra et al. 2011); the first third of the trials are drawn at random.

    Choices are told to Optuna by their number, since it takes no lists or mappings as values.
    """

    def __init__(self, space: Space, *, seed: int, trials: int) -> None:
        super().__init__(space, seed=seed)
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna = optuna
        start = max(4, math.ceil(trials / 3))
        self._study = optuna.create_study(
            direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=start)
        )
        self._distributions = {key: self._as_optuna(each) for key, each in space.items()}
        self._asked: dict[int, Any] = {}

    def draw(self, number: int, attempt: int) -> dict[str, Any]:
        """A point of the space."""
        if number in self._asked:  # the attempt before was refused
            self._study.tell(self._asked.pop(number), state=self._optuna.trial.TrialState.FAIL)
        trial = self._study.ask(self._distributions)
        self._asked[number] = trial
        return {
            key: each.values[trial.params[key]] if isinstance(each, Choice) else trial.params[key]
            for key, each in self._space.items()
        }

    def keep(self, number: int, params: Mapping[str, Any]) -> None:
        """Tell Optuna of a point that it has not drawn: the recipe as it is, or one of before a restart."""
        if number in self._asked:
            return
        known = {key: self._number(key, params.get(key)) for key in self._space}
        if None not in known.values():
            self._study.enqueue_trial(known)
            self._asked[number] = self._study.ask(self._distributions)

    def tell(self, number: int, result: TrialResult, objective: str) -> None:
        """What came of it; one that was stopped counts by how far it came."""
        trial = self._asked.pop(number, None)
        if trial is None:
            return
        states, value = self._optuna.trial.TrialState, result.value(objective)
        if result.status == "failed" or value is None or not math.isfinite(value):
            self._study.tell(trial, state=states.FAIL)
        elif result.status == "stopped":
            for evaluation in result.history:
                if objective in evaluation.metrics:
                    trial.report(evaluation.metrics[objective], evaluation.images)
            self._study.tell(trial, state=states.PRUNED)
        else:
            self._study.tell(trial, value)

    def _number(self, key: str, value: Any) -> Any:
        each = self._space[key]
        if each.place(value) is None:
            return None
        return each.values.index(value) if isinstance(each, Choice) else value

    def _as_optuna(self, each: Any) -> Any:
        kinds = self._optuna.distributions
        if isinstance(each, Choice):
            return kinds.CategoricalDistribution(tuple(range(len(each.values))))
        assert isinstance(each, Range)
        if each.whole:
            return kinds.IntDistribution(int(each.low), int(each.high))
        return kinds.FloatDistribution(each.low, each.high, log=each.log)


class Search:
    """The configurations of a sweep one by one, for `run_trials`: those on the plan, then new ones up to `count` (None: all)."""

    def __init__(
        self,
        plan: Plan,
        chooser: Chooser,
        *,
        recipe: Recipe,
        space: Space,
        count: int | None,
        objective: str,
        vet: Callable[[Recipe], None],
    ) -> None:
        self._plan, self._chooser, self._recipe, self._space = plan, chooser, recipe, space
        self._count, self._objective, self._vet = count, objective, vet
        self._given = 0
        self._own = {key: current(recipe, key) for key in space}
        self._numbers: dict[str, int] = {}
        self.refused: list[str] = []
        """What was drawn in vain, and why."""

    def ask(self) -> Trial | None:
        """The next configuration; None when there are no more. Raises ConfigError if no draw will do."""
        first = [each for each in self._plan.trials if each.seed == self._recipe.seed]
        number = self._given
        if number < len(first):
            planned = first[number]
        elif self._count is not None and number >= self._count:
            return None
        else:
            params = {} if number == 0 else self._drawn(number)
            if params is None:
                return None
            name = f"{number:03}"
            planned = Planned(name, name, self._recipe.seed, params)
            self._plan.add(planned)
        self._given += 1
        self._numbers[planned.name] = number
        self._chooser.keep(number, planned.params or self._own)
        return trial_of(planned, self._recipe)

    def known(self) -> list[Trial]:
        """Those on the plan."""
        return [trial_of(each, self._recipe) for each in self._plan.trials if each.seed == self._recipe.seed]

    def tell(self, result: TrialResult) -> None:
        """What became of one."""
        self._chooser.tell(self._numbers[result.trial.name], result, self._objective)

    def _drawn(self, number: int) -> dict[str, Any] | None:
        known, why = [each.params or self._own for each in self._plan.trials], ""
        for attempt in range(ATTEMPTS):
            params = self._chooser.draw(number, attempt)
            if params is None or (params in known and attempt == ATTEMPTS - 1):
                return None
            if params in known:
                continue
            try:
                self._vet(apply(self._recipe, params))
            except ConfigError as error:
                why = " ".join(str(error).split())
                self.refused.append(f"{params}: {why}")
                continue
            return params
        if why:
            raise ConfigError(
                f"space: {ATTEMPTS} draws gave no recipe that can be run, the last: {why}; narrow the space."
            )
        return None  # it has no more different points


def trial_of(planned: Planned, recipe: Recipe) -> Trial:
    """A planned trial as it is run."""
    changed = apply(recipe, planned.params).override({"seed": planned.seed})
    return Trial(planned.name, changed, planned.group, spared=not planned.params)
