"""Settings of an ablation; the recipe and the cluster have configs of their own."""

from typing import Annotated, Literal

from pydantic import Field

from raydino.config import Config
from raydino.tracking.run import KNN_TOP1
from raydino.views import Positive


class AblationConfig(Config):
    """An ablation of a recipe."""

    recipe: Literal["dinov2", "dino"] = "dinov2"
    """Recipe to take apart; `--preset` and every field of it as for its own command."""
    seeds: Positive = 3
    """Runs of each variant, from `--seed` on; with one, no difference can be told from chance."""
    only: str | None = None
    """NAME[,NAME]: these variants alone; `--dry-run` lists them."""
    objective: Annotated[str, Field(min_length=1)] = KNN_TOP1
    """Metric to compare by, as it is called in the record; without labels, health/rankme."""
