"""Steps that must change nothing: on one rank or all, once or in a row, by loss, gradient or input; and loss spikes."""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from raydino import faults
from raydino.methods.config import DINOConfig, DINOv2Config, MethodConfig
from raydino.nn.config import BackboneConfig
from raydino.schedule import constant
from raydino.train import checkpoint as cp
from raydino.train.config import Guards, OptimConfig
from raydino.train.guard import LEAST_SEEN, Guard, LossSpikeError, NonFiniteError
from raydino.train.optim import build_optimizer
from raydino.train.parallel import replicate
from raydino.train.steps import Loop, StepReport, training_steps
from raydino.views import Batch, Normalisation

STEPS, IMAGES = 8, 8
METHODS = {"dino": DINOConfig(freeze_last_layer=2), "sinkhorn": DINOv2Config(centering="sinkhorn_knopp")}
VIT = BackboneConfig(name="vit_tiny_patch16_224", patch_size=8, width=32, depth=2, heads=2, drop_path=0.2)


def make_loop(config: MethodConfig, guards: Guards | None = None, backbone: BackboneConfig = VIT) -> Loop:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    small = {
        "global_crops.size": 32,
        "local_crops": {"size": 16, "count": 2},
        "head": {"prototypes": 64, "hidden": 32, "bottleneck": 16},
    }
    method = config.override(small).build(backbone, steps=STEPS)
    optim = OptimConfig(lr=1e-3, warmup=2, weight_decay=constant(0.04))
    return Loop(
        method=method,
        module=replicate(method, torch.device("cpu")),
        optimizer=build_optimizer(method.student, optim),
        optim=optim,
        peak_lr=1e-3,
        seed=5,
        steps=STEPS,
        device=torch.device("cpu"),
        normalise=Normalisation(),
        guard=Guard(guards),
    )


def make_batches(steps: Iterable[int] = range(STEPS), *, rank: int = 0, world: int = 1) -> Iterator[Batch]:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        crops = {
            name: torch.randint(0, 256, (2, IMAGES, 3, side, side), generator=generator, dtype=torch.uint8)
            for name, side in (("global", 32), ("local", 16))
        }
        masks = torch.zeros(2, IMAGES, 16, dtype=torch.bool)
        masks[0, ::2, 2:7] = True
        mine = slice(rank, None, world)
        ids = tuple(bytes([step, i]) for i in range(IMAGES))[mine]
        yield Batch({name: crop[:, mine] for name, crop in crops.items()}, masks[:, mine], ids, step)


def state_of(loop: Loop) -> dict[str, torch.Tensor]:
    tensors = {**loop.method.state_dict(), **cp.optimizer_tensors(loop.optimizer)}
    return {name: value.clone() for name, value in tensors.items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def plant(folder: Path, monkeypatch: pytest.MonkeyPatch, *planted: dict[str, object]) -> None:
    path = folder / "faults.json"
    path.write_text(json.dumps([{"action": "poison", **fault} for fault in planted]))
    monkeypatch.setattr(faults, "LIST", str(path))


def run(loop: Loop, steps: Iterable[int] = range(STEPS)) -> list[StepReport]:
    return list(training_steps(loop, make_batches(steps)))


@pytest.mark.parametrize("site", ["loss", "gradient", "input"])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("bad", [[0], [2, 3]], ids=str)
def test_training_steps__a_bad_step_is_as_if_its_batch_had_not_come(
    site: str, name: str, bad: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    expected = make_loop(METHODS[name])
    losses = [float(report.metrics["loss/total"]) for report in run(expected, [s for s in range(6) if s not in bad])]
    plant(tmp_path, monkeypatch, *({"site": site, "step": step} for step in bad))
    loop = make_loop(METHODS[name])
    reports = run(loop, range(6))
    assert [report.step for report in reports if report.skipped] == bad
    assert [float(report.metrics["loss/total"]) for report in reports if not report.skipped] == losses
    assert same(state_of(loop), state_of(expected))


def test_training_steps__running_statistics_of_batch_norms_stay_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    backbone = BackboneConfig(name="resnet18", patch_size=32, drop_path=0.0)
    plant(tmp_path, monkeypatch, {"site": "input", "step": 1})
    loop = make_loop(DINOConfig(), backbone=backbone)
    assert any(isinstance(part, nn.BatchNorm2d) for part in loop.method.modules())
    reports = training_steps(loop, make_batches(range(2)))
    next(reports)
    before = state_of(loop)
    assert next(reports).skipped
    assert same(state_of(loop), before)


def test_training_steps__three_in_a_row_end_the_run_after_the_last_report_with_the_state_from_before_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plant(tmp_path, monkeypatch, *({"site": "loss", "step": step} for step in (1, 3, 4, 5)))
    loop, reports, states = make_loop(METHODS["dino"]), [], []
    with pytest.raises(
        NonFiniteError, match=r"steps 3 to 5: loss = nan, .*first image 0500\); nothing was updated"
    ) as error:
        for report in training_steps(loop, make_batches()):
            reports.append(report)
            states.append(state_of(loop))
    assert error.value.first == 3
    assert [bool(report.skipped) for report in reports] == [False, True, False, True, True, True]
    assert same(states[2], states[5])
    skip = reports[4].skipped
    assert (skip.reason, skip.suspect, skip.ids) == ("not finite", True, tuple(bytes([4, i]) for i in range(IMAGES)))
    assert math.isnan(skip.loss) and math.isfinite(skip.grad_norm)


def test_training_steps__the_limit_is_a_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plant(tmp_path, monkeypatch, {"site": "loss", "step": 2})
    with pytest.raises(NonFiniteError, match="^step 2: "):
        run(make_loop(METHODS["dino"], Guards(not_finite=1)))


def _two_ranks(folder: str, site: str) -> Callable[[int], tuple[dict[str, torch.Tensor], list[tuple], float]]:
    def on(rank: int) -> tuple[dict[str, torch.Tensor], list[tuple], float]:
        faults.LIST = f"{folder}/{site}.json"
        loop = make_loop(DINOv2Config(koleo_weight=0.0))
        before, told = None, []
        for report in training_steps(loop, make_batches(range(3), rank=rank, world=2)):
            if report.step == 0:
                before = state_of(loop)
            if report.step == 1:
                told.append(
                    (bool(report.skipped), report.skipped.suspect, report.skipped.ids[0], same(before, state_of(loop)))
                )
        faults.LIST = ""
        return state_of(loop), told, report.own

    return on


@pytest.mark.parametrize("site", ["loss", "gradient", "input"])
def test_training_steps__what_is_bad_on_one_rank_is_skipped_on_all(site: str, gloo, tmp_path: Path):
    fault = {"site": site, "action": "poison", "step": 1, "rank": 1}
    (tmp_path / f"{site}.json").write_text(json.dumps([fault]))
    (state, (first,), _), (other, (second,), _) = gloo(_two_ranks(str(tmp_path), site), 2)
    assert same(state, other) and all(value.isfinite().all() for value in state.values())
    assert first[0] and second[0] and first[3] and second[3]
    # a NaN gradient reaches all ranks with the mean, so it does not tell whose it was
    assert (first[1], second[1]) == ((True, True) if site == "gradient" else (False, True))
    assert second[2] == bytes([1, 1])


def _slow(folder: str) -> Callable[[int], float]:
    def on(rank: int) -> float:
        faults.LIST = f"{folder}/slow.json"
        loop = make_loop(DINOv2Config(koleo_weight=0.0, centering="sinkhorn_knopp"))
        own = sum(report.own for report in training_steps(loop, make_batches(range(3), rank=rank, world=2)))
        faults.LIST = ""
        return own

    return on


def test_training_steps__waiting_for_a_slow_rank_is_not_the_others_own_time(gloo, tmp_path: Path):
    slow = {"site": "step", "action": "sleep", "seconds": 1.5, "rank": 1, "times": 3}
    (tmp_path / "slow.json").write_text(json.dumps([slow]))
    fast, slow = gloo(_slow(str(tmp_path)), 2)
    assert slow > 4.5 and fast < slow / 2  # DistributedDataParallel waits once, in its second forward pass


def judged(guard: Guard, losses: Iterable[float]) -> list[bool]:
    """Whether each loss was skipped."""
    return [
        guard.judge(torch.tensor(loss), torch.tensor(1.0), ids=(b"x",), step=step) is not None
        for step, loss in enumerate(losses)
    ]


CALM = [8.0 + 0.1 * math.sin(step) for step in range(LEAST_SEEN + 4)]


def test_guard__a_spike_is_told_skipped_or_stopped_at():
    for policy, skipped in (("warn", False), ("skip", True), ("stop", True)):
        guard = Guard(Guards(spike=policy))
        assert not any(judged(guard, CALM)) and not guard.spike
        assert judged(guard, [8.0 * 20]) == [skipped]
        assert guard.spike and isinstance(guard.error, LossSpikeError) == (policy == "stop")
        assert judged(guard, [8.0]) == [False] and not guard.spike


def test_guard__a_loss_that_moves_as_losses_do_is_no_spike():
    guard = Guard()
    for loss in [
        0.7,
        *(0.7 + 0.1 * step for step in range(60)),
        *(6.6 - 0.1 * step for step in range(60)),
        *[0.001] * 40,
        0.09,
    ]:
        judged(guard, [loss])
        assert not guard.spike


def test_guard__spikes_in_a_row_end_a_run_that_skips_them():
    guard = Guard(Guards(spike="skip", not_finite=2))
    judged(guard, CALM)
    assert judged(guard, [200.0]) == [True] and guard.error is None
    assert judged(guard, [200.0]) == [True] and isinstance(guard.error, LossSpikeError)


def test_guard__a_resumed_one_that_is_given_the_losses_decides_alike():
    whole, resumed = Guard(Guards(spike="skip")), Guard(Guards(spike="skip"))
    judged(whole, CALM)
    resumed.losses.extend(json.loads(json.dumps(list(whole.losses))))
    threshold = 5.0 * sorted(CALM[-32:])[len(CALM) // 2]
    for loss in (threshold * 0.97, threshold * 1.03):
        assert judged(whole, [loss]) == judged(resumed, [loss])


def test_training_steps__a_skipped_spike_is_as_if_its_batch_had_not_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    expected = make_loop(METHODS["dino"])
    run(expected, (0, 2))
    plant(tmp_path, monkeypatch, {"site": "spike", "step": 1})
    loop = make_loop(METHODS["dino"], Guards(spike="skip"))
    loop.guard.losses.extend([1.0] * LEAST_SEEN)
    reports = run(loop, range(3))
    assert (
        [report.spike for report in reports]
        == [report.skipped is not None for report in reports]
        == [False, True, False]
    )
    assert same(state_of(loop), state_of(expected))
