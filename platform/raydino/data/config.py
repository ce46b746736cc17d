"""Settings of the data side that change the result of a run. Where the work is done belongs to the cluster file."""

from typing import Annotated

from pydantic import Field

from raydino.config import Config
from raydino.views import Normalisation, Positive


class DataConfig(Config):
    """Which images, in which order, and how bad ones are met."""

    path: str = "builtin"
    """A curated folder, a Hugging Face style Parquet folder (local or s3:// gs:// …), or `builtin` for generated images."""
    split: str = "train"
    """Split to train on, where the folder names splits."""
    eval_split: str | None = None
    """Labelled split to evaluate on; None takes test, validation or val, and else holds back `holdout` of the training split."""
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of a labelled training split held back for evaluation when there is no other labelled split."""
    window: Positive = 1024
    """Rows shuffled together inside a lane; rounded up to whole row groups."""
    max_bad: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Largest share of undecodable images before the run stops."""
    normalisation: Normalisation = Normalisation()
    """Mean and standard deviation of the input."""
