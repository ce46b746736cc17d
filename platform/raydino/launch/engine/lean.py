"""Ray Train without helpers that these runs have no use for: each is a process, which takes seconds of a core at every start.

By name, and through one method of Ray's own class: a Ray that calls them otherwise starts them again, and all works as before.
"""

from typing import Any

from ray.train.torch import TorchTrainer

UNUSED = (
    "DatasetsCallback",
)  # hands out shards of datasets that are given to the trainer; ours are made by the workers
UNUSED_LOCALLY = ("PlacementGroupCleanerCallback",)
"""Frees what a dead controller held. A Ray that this process started ends with it; and without a dashboard the cleaner asks in
vain for the controller's state, so that the end of every run shorter than a minute waited twelve seconds for it."""


class LeanTorchTrainer(TorchTrainer):
    """TorchTrainer with fewer processes; `local` for a Ray that ends with this process."""

    def __init__(self, *arguments: Any, local: bool, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._unused = UNUSED + UNUSED_LOCALLY * local

    def _create_default_callbacks(self) -> list[Any]:
        return [each for each in super()._create_default_callbacks() if type(each).__name__ not in self._unused]
