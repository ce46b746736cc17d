"""Settings of a sweep: what is tried and how it is judged; the recipe and the cluster have configs of their own."""

from typing import Annotated, Literal

from pydantic import Field

from raydino.config import Config
from raydino.launch.sweep.space import Distribution, choice, uniform
from raydino.recipe import Recipe
from raydino.tracking.run import KNN_TOP1
from raydino.views import Positive

TRIALS = 6  # of a sweep that does not say how many


class SweepConfig(Config):
    """A sweep over a recipe."""

    recipe: Literal["dinov2", "dino"] = "dinov2"
    """Recipe to sweep over; `--preset` and every field of it as for its own command."""
    trials: Positive | None = None
    """Configurations to try, the recipe as it is being the first; None: 6, or all of a grid."""
    space: str | None = None
    """YAML with the search space; None: teacher momentum, teacher temperature and number of local crops."""
    searcher: Literal["tpe", "random", "grid"] = "tpe"
    """Who chooses: Optuna's TPE from what was seen so far, draws keyed by the seed, or all combinations."""
    scheduler: Literal["asha", "none", "pbt"] = "asha"
    """asha stops the worse trials early; pbt trains a population in segments, the worse going on from copies of the better."""
    objective: Annotated[str, Field(min_length=1)] = KNN_TOP1
    """Metric to maximise, as it is called in the record; without labels, health/rankme."""
    grace: Annotated[float, Field(gt=0, le=1)] = 0.25
    """asha: share of a trial's images before the first comparison."""
    reduction: Annotated[float, Field(gt=1)] = 3.0
    """asha: one in so many goes on."""
    repeats: Positive = 1
    """Seeds of a configuration; further ones are run for those that reached their last step."""
    segments: Annotated[int, Field(ge=2)] = 4
    """pbt: parts of a run, after each of which the worst quarter is replaced."""


def default_space(recipe: Recipe) -> dict[str, Distribution]:
    """Teacher momentum, teacher temperature and number of local crops, around what the recipe has.

    A momentum m is a memory of 1 / (1 - m) steps: from a third to three times the recipe's, never above where its schedule ends.
    Temperatures go up to 0.07, above which training is unstable without a warm-up (DINO, appendix D).
    """
    momentum, temperature = recipe.method.teacher_momentum, getattr(recipe.method, "teacher_temperature", None)
    high = min(1 - (1 - momentum.start) / 3, max(momentum.start, momentum.end))
    found: dict[str, Distribution] = {
        "method.teacher_momentum.start": uniform(round(1 - 3 * (1 - momentum.start), 5), round(high, 5)),
        "method.local_crops.count": choice(*sorted({0, 2, 4, recipe.method.local_crops.count})),
    }
    if temperature is not None:
        keys = ["start", "end"] if temperature.shape == "constant" else ["end"]
        found[",".join(f"method.teacher_temperature.{key}" for key in keys)] = uniform(0.025, 0.07)
    return found
