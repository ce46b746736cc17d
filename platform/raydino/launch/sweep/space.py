"""Search spaces: dotted keys of a recipe and where their values come from, checked against the recipe before anything runs.

In Python a mapping of keys to distributions, in YAML the same:

    optim.lr: {loguniform: [1.0e-4, 1.0e-2]}
    method.local_crops.count: {choice: [0, 2, 4]}
    method.head.prototypes: {int: [64, 1024]}
    method.teacher_temperature.start,method.teacher_temperature.end: {uniform: [0.03, 0.07]}

Fields that must change together stand in one key, joined by commas; a choice may also be of mappings, whose fields are then set
together. Every value is made of one number in [0, 1), so a draw is keyed by seed and number of the trial and nothing else.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from raydino.config import Config, ConfigError, read_yaml_file
from raydino.recipe import Recipe

GRID_POINTS = 3  # of a range in a grid


class Distribution(Protocol):
    """Where a value comes from."""

    def at(self, unit: float) -> Any:
        """The value at a place in [0, 1)."""
        ...

    def place(self, value: Any) -> float | None:
        """Where a value stands, 0 to 1; None if it is none of these."""
        ...

    def grid(self) -> tuple[Any, ...]:
        """Values for a grid."""
        ...

    def near(self, value: Any, *, up: bool) -> Any:
        """A value beside this one: a fifth more or less, or the next choice; never outside."""
        ...


@dataclass(frozen=True)
class Choice:
    """One of some values."""

    values: tuple[Any, ...]

    def at(self, unit: float) -> Any:
        """The value at a place in [0, 1)."""
        return self.values[min(int(unit * len(self.values)), len(self.values) - 1)]

    def place(self, value: Any) -> float | None:
        """The middle of its share."""
        return (self.values.index(value) + 0.5) / len(self.values) if value in self.values else None

    def grid(self) -> tuple[Any, ...]:
        """All of them."""
        return self.values

    def near(self, value: Any, *, up: bool) -> Any:
        """The next choice."""
        index = self.values.index(value) if value in self.values else 0
        return self.values[min(max(index + (1 if up else -1), 0), len(self.values) - 1)]


@dataclass(frozen=True)
class Range:
    """A number between two, both included; `log` spreads its logarithm evenly, `whole` makes it an integer."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def at(self, unit: float) -> Any:
        """The value at a place in [0, 1)."""
        if self.whole:
            return int(self.low) + min(int(unit * (self.high - self.low + 1)), int(self.high - self.low))
        if self.log:
            return self._bounded(math.exp(math.log(self.low) + unit * (math.log(self.high) - math.log(self.low))))
        return self._bounded(self.low + unit * (self.high - self.low))

    def place(self, value: Any) -> float | None:
        """0 at the lower end, 1 at the upper."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return None
        if self.log:
            return (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return (value - self.low) / (self.high - self.low)

    def grid(self) -> tuple[Any, ...]:
        """Both ends and the middle; all of a few whole numbers."""
        count = int(self.high - self.low) + 1 if self.whole and self.high - self.low < GRID_POINTS else GRID_POINTS
        ends = [index / (count - 1) for index in range(count)]
        return tuple(dict.fromkeys(self.high if end == 1 and not self.whole else self.at(end) for end in ends))

    def near(self, value: Any, *, up: bool) -> Any:
        """A fifth more or less; at least one for whole numbers."""
        moved = value * (1.2 if up else 0.8)
        if self.whole:
            moved = round(moved) if round(moved) != value else value + (1 if up else -1)
        return self._bounded(moved)

    def _bounded(self, value: float) -> Any:
        value = min(max(value, self.low), self.high)
        return int(value) if self.whole else value


Space = Mapping[str, Distribution]


def choice(*values: Any) -> Choice:
    """One of `values`."""
    return Choice(values)


def uniform(low: float, high: float) -> Range:
    """Evenly between two numbers."""
    return Range(low, high)


def loguniform(low: float, high: float) -> Range:
    """Between two positive numbers, evenly in the logarithm."""
    return Range(low, high, log=True)


def integer(low: int, high: int) -> Range:
    """Whole numbers from `low` to `high`."""
    return Range(low, high, whole=True)


def read_space(path: Path) -> dict[str, Distribution]:
    """A space in YAML. Raises ConfigError naming file, key, value and remedy."""
    found = read_yaml_file(path)
    if not found:
        raise ConfigError(f"{path}: it is empty; give keys of the recipe with a distribution each.")
    return {str(key): _distribution(f"{path}: {key}", given) for key, given in found.items()}


def written(space: Space) -> dict[str, Any]:
    """A space as YAML has it."""
    kinds = {(False, False): "uniform", (True, False): "loguniform", (False, True): "int"}
    return {
        key: {"choice": list(each.values)}
        if isinstance(each, Choice)
        else {kinds[each.log, each.whole]: [each.low, each.high]}
        for key, each in space.items()
        if isinstance(each, Choice | Range)
    }


def changes(params: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that a point of the space sets, for `Recipe.override`."""
    return {field: value for key, value in params.items() for field in fields(key)}


def fields(key: str) -> list[str]:
    """The dotted fields of a key."""
    return [field.strip() for field in key.split(",")]


def label(key: str) -> str:
    """A key for people: joined fields by what they have in common."""
    names = [field.split(".") for field in fields(key)]
    common = names[0]
    for name in names[1:]:
        common = [a for a, b in zip(common, name, strict=False) if a == b]
    return ".".join(part for part in (common or names[0]) if part != "method") or key


def apply(recipe: Recipe, params: Mapping[str, Any]) -> Recipe:
    """The recipe at a point of the space, at as many images seen: steps, and those between evaluations, follow another batch.

    Raises ConfigError for a combination that cannot be.
    """
    changed = recipe.override(changes(params))
    before, now = recipe.global_batch, changed.global_batch
    if before == now or changed.steps != recipe.steps:
        return changed
    lengths = {f"cadence.{name}": getattr(recipe.cadence, name) for name in ("evaluate", "checkpoint")}
    counted = {name: -(-length * before // now) for name, length in lengths.items() if isinstance(length, int)}
    return changed.override({"steps": max(1, round(recipe.steps * before / now)), **counted})


def current(recipe: Recipe, key: str) -> Any:
    """What a recipe has at a key, of the first of its fields. Raises ConfigError for a field that is not there."""
    node: Any = recipe
    field = fields(key)[0]
    for part in field.split("."):
        if isinstance(node, Config) and part in type(node).model_fields:
            node = getattr(node, part)
        elif isinstance(node, Mapping) and part in node:
            node = node[part]
        else:
            raise ConfigError(
                f"space: {key}: {type(node).__name__} has no field '{part}' here; see --help for all fields."
            )
    return node


def check_space(space: Space, recipe: Recipe) -> None:
    """Refuse a space that the recipe cannot take: every choice, and ends and inside of every range, set alone.

    Raises:
        ConfigError: one line per fault, naming key, value and remedy.
    """
    faults = [] if space else ["space: it is empty; give at least one key."]
    owners: dict[str, str] = {}
    for key, distribution in space.items():
        for field in fields(key):
            if (owner := owners.setdefault(field, key)) != key:
                faults.append(f"space: {field} stands in two keys, '{owner}' and '{key}'; keep one.")
        values = distribution.values if isinstance(distribution, Choice) else _probes(distribution)
        for value in values:
            try:
                recipe.override(changes({key: value}))
            except ConfigError as error:
                kind = " (a whole number? then use int)" if isinstance(value, float) and "integer" in str(error) else ""
                faults.append(f"space: {key} = {value!r} cannot be: {' '.join(str(error).split())}{kind}")
                break
    if faults:
        raise ConfigError("\n".join(faults))


def _probes(distribution: Distribution) -> Sequence[Any]:
    return tuple(dict.fromkeys((*distribution.grid(), distribution.at(1 / 3), distribution.at(1 / math.e))))


def _distribution(where: str, given: Any) -> Distribution:
    kinds = {"choice": choice, "uniform": uniform, "loguniform": loguniform, "int": integer}
    if not isinstance(given, Mapping) or len(given) != 1 or next(iter(given)) not in kinds:
        raise ConfigError(
            f"{where} = {given!r}: give one of {{choice: [...]}}, {{uniform: [low, high]}}, {{loguniform: …}}, "
            "{int: …}."
        )
    kind, values = next(iter(given.items()))
    if not isinstance(values, list) or not values or (kind != "choice" and len(values) != 2):
        raise ConfigError(
            f"{where}: {kind} = {values!r}; give a list of {'values' if kind == 'choice' else 'two numbers'}."
        )
    if kind == "choice":
        return Choice(tuple(tuple(value) if isinstance(value, list) else value for value in values))
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in values) or values[0] >= values[1]:
        raise ConfigError(f"{where}: {kind} = {values}; give two numbers, the lower first.")
    if kind == "loguniform" and values[0] <= 0:
        raise ConfigError(f"{where}: loguniform = {values}; a logarithm needs numbers above 0.")
    if kind == "int" and any(value != int(value) for value in values):
        raise ConfigError(f"{where}: int = {values}; give whole numbers, or use uniform.")
    return kinds[kind](*values)
