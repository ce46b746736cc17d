"""What is made of accuracies under shift: corruption errors relative to a baseline, and what accuracy alone does not explain.

Errors are shares, 0 to 1. Corruption errors after Hendrycks & Dietterich (2019, section 4.2), where the baseline is AlexNet; here
it is the group that a study names first. Effective robustness after Taori et al. (2020, section 2).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import logit

LEAST_POINTS, LEAST_RANGE = 5, 0.05
"""A line through fewer networks, or through networks of clean accuracies as close as this, says nothing of others."""
_EDGE = 1e-3  # accuracies are kept this far from 0 and 1, whose logits are infinite

Errors = Mapping[str, Sequence[float]]
"""By kind of corruption, the error at each level."""


def corruption_error(errors: Errors, baseline: Errors) -> dict[str, float | None]:
    """Sum of the errors over levels as a share of the baseline's, by kind; None where the baseline makes no error."""
    return {kind: _ratio(sum(found), sum(baseline[kind])) for kind, found in errors.items()}


def relative_corruption_error(
    errors: Errors, baseline: Errors, *, clean: float, baseline_clean: float
) -> dict[str, float | None]:
    """The same of what errors rise above the clean ones; None where the baseline's do not rise at all."""
    return {
        kind: _ratio(sum(e - clean for e in found), sum(e - baseline_clean for e in baseline[kind]))
        for kind, found in errors.items()
    }


def mean_of(values: Mapping[str, float | None]) -> float | None:
    """The mean over kinds (mCE, of corruption errors); None where one is None, as a mean of the others is another figure."""
    known = [value for value in values.values() if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


@dataclass(frozen=True)
class Line:
    """What accuracy under shift to expect of a clean accuracy: a line between their logits, through networks of the baseline."""

    slope: float
    intercept: float
    least: float
    most: float
    """Clean accuracies it was fitted on lie between these."""
    points: int

    def expected(self, clean: float) -> float | None:
        """The accuracy under shift; None outside what the line was fitted on."""
        if not self.least <= clean <= self.most:
            return None
        return float(1 / (1 + np.exp(-(self.slope * _logit(clean) + self.intercept))))


def fit_line(clean: Sequence[float], shifted: Sequence[float]) -> Line | str:
    """The line of least squares, or in words why there is none."""
    if len(clean) < LEAST_POINTS:
        return f"{len(clean)} networks of the baseline, and a line wants {LEAST_POINTS}"
    least, most = min(clean), max(clean)
    if most - least < LEAST_RANGE:
        return f"clean accuracies of the baseline's networks from {least:.3f} to {most:.3f}, too close for a line"
    slope, intercept = np.polyfit([_logit(a) for a in clean], [_logit(a) for a in shifted], 1)
    return Line(float(slope), float(intercept), least, most, len(clean))


def effective_robustness(line: Line, *, clean: float, shifted: float) -> float | None:
    """Accuracy under shift above what the line expects; None where the line says nothing of so clean an accuracy."""
    expected = line.expected(clean)
    return None if expected is None else shifted - expected


def _logit(accuracy: float) -> float:
    return float(logit(min(max(accuracy, _EDGE), 1 - _EDGE)))


def _ratio(above: float, below: float) -> float | None:
    return above / below if below > 1e-12 else None
