"""The estimate against the allocations that torch's profiler counts in the real step, on one worker and on several."""

import gc
from bisect import bisect_right, insort
from operator import itemgetter

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from raydino import collectives
from raydino.data.masks import block_masks
from raydino.methods.config import DINOConfig, DINOv2Config, MethodConfig, SelfDistillationConfig, SupervisedConfig
from raydino.nn.config import BackboneConfig, HeadConfig
from raydino.schedule import constant
from raydino.train.config import OptimConfig
from raydino.train.memory import Memory, estimate
from raydino.train.optim import build_optimizer
from raydino.train.parallel import distribute, recompute_blocks
from raydino.train.steps import Loop, train_step
from raydino.views import Batch, Normalisation

WEIGHTS = {"width": 512, "images": 2}  # weights outweigh activations, so the optimiser's step is the worst moment
CASES: dict[str, tuple[MethodConfig, dict[str, object]]] = {
    "dinov2": (DINOv2Config(ibot_head=HeadConfig(prototypes=512, hidden=64, bottleneck=32)), {}),
    "dinov2_shared_head": (DINOv2Config(centering="sinkhorn_knopp"), {}),
    "dino": (DINOConfig(), {}),
    "supervised": (SupervisedConfig(classes=10), {}),
    "subsets": (DINOv2Config(), {"drop_path": 0.4}),
    "recomputed": (DINOv2Config(), {"recompute": True}),
    "recomputed_subsets": (DINOConfig(), {"recompute": True, "drop_path": 0.4}),
    "accumulated": (DINOv2Config(), {"accumulate": 2}),
    "fixed_shapes": (DINOv2Config(centering="sinkhorn_knopp"), {"most_masked": 1500}),  # of 2048, where 300 are masked
    "weights": (DINOConfig(), WEIGHTS),
    "weights_sgd": (DINOConfig(), {**WEIGHTS, "optimizer": "sgd"}),
    "weights_lars": (DINOConfig(), {**WEIGHTS, "optimizer": "lars"}),
    "many_prototypes": (DINOv2Config(), {"prototypes": 8192}),
}


def loop_of(config: MethodConfig, device: str, parallel: str = "ddp", **settings) -> Loop:
    backbone = BackboneConfig(
        name="vit_tiny_patch16_224",
        patch_size=8,
        width=settings.get("width", 64),
        depth=4,
        heads=4,
        drop_path=settings.get("drop_path", 0.0),
        stochastic_depth="batch_subset",
    )
    small = {"global_crops.size": 64, "local_crops": {"size": 32, "count": 4}}
    if isinstance(config, SelfDistillationConfig):
        small["head"] = {"prototypes": settings.get("prototypes", 512), "hidden": 64, "bottleneck": 32}
    with torch.device(device):
        method = config.override(small).build(backbone, steps=10)
        if settings.get("recompute"):
            recompute_blocks(method.student.backbone)
        place = torch.device(device)
        module = distribute(method, place, parallel=parallel, compute="fp32", reduce="fp32")
        optim = OptimConfig(optimizer=settings.get("optimizer", "adamw"), weight_decay=constant(0.04))
        return Loop(
            method=method,
            module=module,
            optimizer=build_optimizer(method.student, optim),
            optim=optim,
            peak_lr=1e-3,
            seed=0,
            steps=10,
            device=place,
            normalise=Normalisation(),
            accumulate=settings.get("accumulate", 1),
        )


def batch_of(config: MethodConfig, step: int, images: int = 16, most_masked: int | None = None) -> Batch:
    crops = {
        "global": torch.randint(0, 256, (2, images, 3, 64, 64), dtype=torch.uint8),
        "local": torch.randint(0, 256, (4, images, 3, 32, 32), dtype=torch.uint8),
    }
    views = config.override({"global_crops.size": 64}).views(BackboneConfig(patch_size=8))
    masks = None
    if views.masks is not None:
        masks = torch.from_numpy(
            block_masks(views.masks, grid=(8, 8), seed=0, step=step, lane=0, images=images, views=2)
        )
    labels = torch.zeros(images, dtype=torch.int64)
    return Batch(crops, masks, (b"",) * images, step, labels, most_masked=most_masked)


class Given:
    """Blocks of memory that are in use. What a new one lies over was free: the profiler does not see what gloo's threads free."""

    def __init__(self) -> None:
        self.total = 0
        self._starts: list[int] = []
        self._sizes: dict[int, int] = {}

    def note(self, start: int, size: int) -> None:
        """A block was given, or with a negative size taken back."""
        if size > 0:
            at = max(0, bisect_right(self._starts, start) - 1)
            while at < len(self._starts) and self._starts[at] < start + size:
                own = self._starts[at]
                if own + self._sizes[own] > start:
                    self._drop(at)
                else:
                    at += 1
            insort(self._starts, start)
            self._sizes[start] = size
            self.total += size
        elif start in self._sizes:
            self._drop(bisect_right(self._starts, start) - 1)

    def _drop(self, at: int) -> None:
        self.total -= self._sizes.pop(self._starts.pop(at))


def _allocations(events):
    for event in events:
        if event.tag.name == "Allocation":
            yield event.start_time_ns, event.extra_fields.ptr, event.extra_fields.alloc_size
        yield from _allocations(event.children)


def measured(config: MethodConfig, parallel: str = "ddp", steps: int = 1, **settings) -> int:
    """Bytes of torch's allocator at the worst moment of a step, all since before the networks were made.

    Of several steps, after a first one, the least: gloo's threads let go of what they sent when they are next given a core.
    """
    images, most = settings.get("images", 16), settings.get("most_masked")
    first, *others = (batch_of(config, step, images, most) for step in range(1 + steps))
    gc.collect()  # what a case before left in circles would be freed in this one's account
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        loop = loop_of(config, "cpu", parallel, **settings)
        train_step(loop, first)
        for batch in others:
            with record_function("judged"):
                train_step(loop, batch)
    results = seen.profiler.kineto_results
    begins = sorted(event.start_ns() for event in results.events() if event.name() == "judged")
    most, given = [0] * (1 + steps), Given()
    for when, start, size in sorted(_allocations(results.experimental_event_tree()), key=itemgetter(0)):
        given.note(start, size)
        step = bisect_right(begins, when)
        most[step] = max(most[step], given.total)
    assert len(begins) == steps
    return min(most[1:])


def estimated(config: MethodConfig, parallel: str = "ddp", workers: int = 1, **settings) -> Memory:
    parts = settings.get("accumulate", 1)
    batch = batch_of(config, 1, settings.get("images", 16), settings.get("most_masked"))
    part = max(batch.split(parts), key=lambda part: 0 if part.masks is None else int(part.masks.sum()))
    return estimate(loop_of(config, "meta", **settings), part, workers=workers, parallel=parallel, device="cpu")


@pytest.mark.parametrize("case", CASES)
def test_estimate__is_within_a_tenth_of_what_one_worker_allocates(case: str):
    config, settings = CASES[case]
    assert estimated(config, **settings).total == pytest.approx(measured(config, **settings), rel=0.1)


SHARED = ["dinov2", "weights"]  # activations, and the optimiser's step, as the worst moment


def _several(rank: int) -> dict[tuple[str, str], int]:
    assert collectives.world_size() == 2
    return {
        (case, parallel): measured(CASES[case][0], parallel, steps=3, **CASES[case][1])
        for case in SHARED
        for parallel in ("ddp", "fsdp")
    }


def test_estimate__is_within_a_tenth_of_what_each_of_two_workers_allocates(gloo):
    ranks = gloo(_several, 2)
    for case, parallel in ranks[0]:
        config, settings = CASES[case]
        expected = estimated(config, parallel, 2, **settings).total
        most = min(rank[case, parallel] for rank in ranks)  # they hold equal parts
        assert expected == pytest.approx(most, rel=0.1), (case, parallel)


def test_estimate__says_what_memory_is_for():
    """Float32 numbers counted by hand: 4 bytes each, moments twice."""
    config = CASES["dino"][0]
    found = estimated(config)
    method = loop_of(config, "meta").method
    trained = sum(p.numel() for p in method.student.parameters() if p.requires_grad)
    assert found.gradients == 4 * trained
    assert found.moments == 8 * trained
    assert found.teacher == 4 * sum(p.numel() for p in method.teacher.parameters())
    half = estimated(config, "fsdp", 2)
    assert (half.moments, half.gradients) == (4 * trained, 2 * trained)
    assert half.gathered > 0


def test_estimate__fused_losses_have_no_temporaries():
    config = DINOv2Config().override({"ibot_head": {"prototypes": 8192, "hidden": 64, "bottleneck": 32}})
    plain, fused = (
        estimate(
            loop_of(config, "meta"),
            batch_of(config, 1),
            workers=1,
            parallel="ddp",
            device="cuda",
            fused_losses=fused,
        )
        for fused in (False, True)
    )
    scores = int(batch_of(config, 1).masks.sum()) * 8192  # of all patches at once: their exponentials
    assert 0.9 * 4 * scores < plain.activations - fused.activations <= 4 * scores


def test_estimate__leaves_the_cross_entropy_as_it_was():
    from raydino.nn import cross_entropy

    before = cross_entropy.CACHED
    estimated(CASES["dino"][0])
    assert (before, None) == (cross_entropy.CACHED, cross_entropy.PIECES)
