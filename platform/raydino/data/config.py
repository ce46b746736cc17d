"""Settings of the data side that change the result of a run. Where the work is done belongs to the cluster file."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from raydino.config import Config
from raydino.views import FastCrops, Normalisation, Positive


class DataConfig(Config):
    """Which images, in which order, and how bad ones are met."""

    path: Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")] = "builtin"
    """A curated folder, a Hugging Face style Parquet folder (local or s3:// gs:// …), or `builtin` for generated images."""
    split: str = "train"
    """Split to train on, where the folder names splits."""
    keep: str = ""
    """Screening whose keep-mask is followed, one made with `curate.py --name`; empty for the folder's own, `all` for none."""
    eval_split: str | None = None
    """Labelled split to evaluate on; None takes test, validation or val, and else holds back `holdout` of the training split."""
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of a labelled training split held back for evaluation when there is no other labelled split."""
    window: Positive = 1024
    """Rows shuffled together inside a lane; rounded up to whole row groups."""
    fast_crops: FastCrops = False
    """Cut views with less arithmetic: halved copies instead of antialiasing, one colour map; with `device`, for GPUs short of
    cores, halved copies too, and colours changed on the device. docs/performance.md compares them."""
    max_bad: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Largest share of undecodable images before the run stops."""
    stream_dedup: bool = False
    """Refuse byte-identical copies, and evaluation images, while training streams; for folders that were not curated."""
    stream_against: tuple[str, ...] = ()
    """With stream_dedup: folders of evaluation images, none of which may be trained on."""
    normalisation: Normalisation = Normalisation()
    """Mean and standard deviation of the input."""

    @model_validator(mode="before")
    @classmethod
    def _no_password(cls, given: Any) -> Any:
        """A recipe is written down and recorded; before the fields, so that no error repeats what is refused."""
        paths = [given.get("path"), *(given.get("stream_against") or ())] if isinstance(given, Mapping) else []
        if any(re.search(r"://[^/@]*:[^/]*@", str(path)) for path in paths):
            raise ValueError(
                "path or stream_against holds credentials, and a recipe is written down; leave them out of the address and give "
                "them in the environment (for s3://, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
            )
        return given

    @model_validator(mode="after")
    def _refused_only_with_claims(self) -> Self:
        if self.stream_against and not self.stream_dedup:
            raise ValueError(f"stream_against = {list(self.stream_against)} needs stream_dedup = true; set that too")
        return self
