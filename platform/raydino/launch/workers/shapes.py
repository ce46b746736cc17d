"""Batches whose tensors have the same shapes in every step (`cluster.fixed_shapes`)."""

from dataclasses import replace

from raydino.data.masks import most_masked
from raydino.recipe import Recipe
from raydino.views import Batch


def with_fixed_shapes(recipe: Recipe, batch: Batch, *, workers: int, micro_batch: int) -> Batch:
    """A batch of one of `workers` workers, each of its micro-batches of `micro_batch` images with `most_masked` patches of the
    recipe's masks; one without masks as it is."""
    if batch.masks is None or (masks := recipe.views.masks) is None:
        return batch
    views, _, patches = batch.masks.shape
    most = most_masked(
        masks,
        patches=patches,
        lanes=len(range(0, recipe.lanes, workers)),
        images=recipe.global_batch // recipe.lanes,
        views=views,
        micro_batch=micro_batch,
    )
    return replace(batch, most_masked=most)
