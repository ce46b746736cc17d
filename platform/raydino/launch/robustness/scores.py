"""What was measured of one network with one head, and the figures that are made of it beside the baseline's."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean

from raydino.evals.shift import (
    Line,
    corruption_error,
    effective_robustness,
    fit_line,
    mean_of,
    relative_corruption_error,
)

Lines = Mapping[str, Line | str]
"""By "corrupted" and "shift": what the baseline's networks make one expect, or why there is no line."""


@dataclass(frozen=True)
class Scores:
    """Accuracies (shares, 0 to 1) of one network with one head."""

    group: str
    seed: int
    model: str
    head: str
    clean: float
    kinds: Mapping[str, Sequence[float]]
    """By kind of corruption, the accuracy at each level."""
    shift: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """By name of a shifted set: mean accuracy over its classes on clean images, and on its own."""
    calibration: Mapping[str, float] = field(default_factory=dict)
    """Of heads with probabilities: temperature, errors before and after it."""
    domains: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """By domain that the head learned from, mean accuracy over the classes in each domain."""

    @property
    def own_domain(self) -> float:
        """Mean accuracy on the domain learned from."""
        return mean(row[source] for source, row in self.domains.items())

    @property
    def other_domains(self) -> float:
        """Mean accuracy on the others."""
        return mean(elsewhere(row, source) for source, row in self.domains.items())

    @property
    def corrupted(self) -> float:
        """Mean accuracy over all kinds and levels."""
        return mean(mean(levels) for levels in self.kinds.values())

    def at_level(self, level: int) -> float:
        """Mean accuracy over kinds at a level; level 0 is clean."""
        return self.clean if level == 0 else mean(levels[level - 1] for levels in self.kinds.values())

    @property
    def errors(self) -> dict[str, list[float]]:
        """By kind, the error at each level."""
        return {kind: [1 - accuracy for accuracy in levels] for kind, levels in self.kinds.items()}


def elsewhere(row: Mapping[str, float], source: str) -> float:
    """Mean of a row of `Scores.domains` over the domains other than `source`."""
    return mean(accuracy for target, accuracy in row.items() if target != source)


def lines(baseline: Sequence[Scores], shifts: Iterable[str]) -> dict[str, Line | str]:
    """Lines through networks of the baseline: untrained, at every kept step, at the end, all seeds."""
    found = {"corrupted": fit_line([s.clean for s in baseline], [s.corrupted for s in baseline])}
    for name in shifts:
        found[name] = fit_line([s.shift[name][0] for s in baseline], [s.shift[name][1] for s in baseline])
    return found


def figures(scores: Scores, baseline: Scores, expected: Lines) -> dict[str, float | None]:
    """The figures of a network beside the baseline's of the same seed; None where one does not exist."""
    found: dict[str, float | None] = {
        "clean": scores.clean,
        "corrupted": scores.corrupted,
        "drop": scores.clean - scores.corrupted,
        "mCE": mean_of(corruption_error(scores.errors, baseline.errors)),
        "relative mCE": mean_of(
            relative_corruption_error(
                scores.errors, baseline.errors, clean=1 - scores.clean, baseline_clean=1 - baseline.clean
            )
        ),
        "effective, corrupted": _effective(expected["corrupted"], scores.clean, scores.corrupted),
    }
    for name, (clean, shifted) in scores.shift.items():
        found |= {f"clean, classes of {name}": clean, name: shifted, f"drop, {name}": clean - shifted}
        found[f"effective, {name}"] = _effective(expected[name], clean, shifted)
    if scores.domains:
        own, other = scores.own_domain, scores.other_domains
        found |= {"own domain": own, "other domains": other, "drop, other domains": own - other}
    return found | dict(scores.calibration)


def _effective(line: Line | str, clean: float, shifted: float) -> float | None:
    return None if isinstance(line, str) else effective_robustness(line, clean=clean, shifted=shifted)
