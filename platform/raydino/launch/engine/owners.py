"""Owners: the claims of a run, in Ray actors that all its workers ask.

The driver makes them once and hands them to the workers; a worker that made its own would see none of the copies in other
ranks' lanes. Each owns the ids of one residue class, so no two have to agree. They write their claims beside the checkpoints,
before each of them, and begin with what is written there: a resumed run, or an owner whose node was lost, goes on with the
claims of the last checkpoint at least. What was claimed after it is claimed anew: of such an image another copy may be
trained on too, but none is lost, and evaluation images stay refused, since they are written before training begins.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray

from raydino.data.claims import NOBODY, Claims, Ids, ids_of
from raydino.data.plan import Rows
from raydino.launch.inputs import Inputs, open_against, open_inputs
from raydino.launch.job import Job
from raydino.recipe import Recipe

FOLDER = "claims"
"""Folder in the run's folder."""
ROWS_EACH = 50_000_000  # per owner: 1.2 GB of claims, and as much again while new ones join them


class Owners:
    """Handles of all owners. Calling it is a `claims.Claim`; it travels to workers as it is."""

    def __init__(self, actors: Sequence[Any]) -> None:
        self.actors = tuple(actors)

    def __call__(self, ids: Ids, rows: Rows) -> Rows:
        """One call to each owner; see `claims.Claim`."""
        shares = [np.flatnonzero(self._owner(ids) == number) for number in range(len(self.actors))]
        asked = [
            (share, actor.claim.remote(ids[share], rows[share]))
            for share, actor in zip(shares, self.actors, strict=True)
            if len(share)
        ]
        owners = np.full(len(ids), NOBODY, dtype=np.int64)
        for share, answer in asked:
            owners[share] = ray.get(answer)
        return owners

    def forbid(self, ids: Ids) -> None:
        """No row may have these ids; returns when that is written down."""
        owner = self._owner(ids)
        ray.get([actor.forbid.remote(ids[owner == number]) for number, actor in enumerate(self.actors)])

    def save(self) -> None:
        """Write all claims made so far. Raises OSError."""
        ray.get([actor.save.remote() for actor in self.actors])

    def _owner(self, ids: Ids) -> Rows:
        return (np.ascontiguousarray(ids).view("<u8")[1::2] % len(self.actors)).astype(np.int64)


def make_owners(folder: Path, *, count: int, data: str) -> Owners:
    """Start `count` owners that keep their claims in `folder`, for images of digest `data`. Raises what `Claims` raises."""
    # No CPU of their own: a window of 1,024 rows takes one 3 ms. A lost one starts anew on any node and is asked again.
    actor = ray.remote(Claims).options(num_cpus=0, max_restarts=-1, max_task_retries=-1)
    return Owners([actor.remote(folder / f"{number}-of-{count}.npz", data) for number in range(count)])


def start_owners(job: Job) -> Owners:
    """The owners of a run, evaluation images forbidden. Raises ConfigError or ShardError."""
    inputs = open_inputs(job.recipe, job.data_path)
    count = 1 + len(inputs.collection) // ROWS_EACH
    owners = make_owners(job.run_dir / FOLDER, count=count, data=job.data_digest)
    owners.forbid(evaluation_ids(job.recipe, inputs))
    return owners


def evaluation_ids(recipe: Recipe, inputs: Inputs) -> Ids:
    """S16 [N]: the images this run is judged by, its k-NN queries, and all images of the folders `data.stream_against`."""
    found: list[Ids] = [np.array(inputs.labelled.queries.ids() if inputs.labelled else [], dtype="S16")]
    for collection in open_against(recipe):
        found += [ids_of(collection.read(group)) for group in range(len(collection.row_groups))]
    return np.concatenate(found)
