"""Job: what the driver hands to every worker of a run."""

from dataclasses import dataclass
from pathlib import Path

from raydino.launch.cluster import ClusterConfig
from raydino.recipe import Recipe

TRIALS = "trials"
"""Folder of the trials in that of their sweep."""
PROFILE = "profile"
"""Folder in the run's: what `--profile` leaves."""
QUARANTINE = "quarantine.jsonl"
"""File in the run's folder: the images that could not be decoded."""
SKIPPED = "skipped.jsonl"
"""File in the run's folder: the steps that changed nothing, and the images they were of."""
PAGE = "report.html"
"""File in the folder of a run, a sweep or an ablation: the page for people."""
SETTLING_STEPS, PROFILED_STEPS = 3, 5
PROFILE_NEEDS = SETTLING_STEPS + 2 * PROFILED_STEPS + 1
"""Steps of a profile: those let go by, those only timed, the profiler's own warm-up, those profiled."""


@dataclass(frozen=True)
class Job:
    """What the driver hands to every worker."""

    recipe: Recipe
    cluster: ClusterConfig
    run_dir: Path
    """Absolute, on storage that all workers share."""
    data_path: str
    data_digest: str
    tracking_uri: str
    mlflow_run_id: str | None
    """None where the tracker could not be reached at the start: the run is opened there when it answers."""
    data_before: tuple[str, ...] = ()
    """Digests of images that the run was trained on before, where `--allow-change data` replaced them."""
    store_bytes: int = 0
    """Bytes of Ray's object store that the run fills if images are decoded in the cluster."""
    profile: bool = False
    """Whether rank 0 profiles some steps."""
    alone: bool = False
    """Whether the one worker lives in the actor of a trial, without Ray Train around it."""
    judged: bool = False
    """Whether the run waits after every evaluation until it is told to go on, as a trial of a sweep does."""
    until: int | None = None
    """Step after which to save and leave; None for the recipe's last."""
    ancestors: tuple[str, ...] = ()
    """Runs of which a checkpoint was put into this one's folder, which began there anew."""

    @property
    def last_step(self) -> int:
        """Steps after which the workers are done."""
        return self.recipe.steps if self.until is None else min(self.until, self.recipe.steps)
