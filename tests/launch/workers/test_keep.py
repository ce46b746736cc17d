"""What a worker keeps of a run in trouble, what it writes down of it, and how it answers a notice of preemption."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from raydino import collectives
from raydino.config import ConfigError
from raydino.launch.cluster import ClusterConfig
from raydino.launch.job import SKIPPED, Job
from raydino.launch.workers import wishes
from raydino.launch.workers.keep import FOLDER, Keeper, choose
from raydino.launch.workers.record import Record
from raydino.launch.workers.wishes import SAVE, STOP, Wish, Wishes
from raydino.launch.workers.worker import build_loop
from raydino.methods.config import DINOv2Config
from raydino.nn.config import BackboneConfig
from raydino.recipe import Recipe
from raydino.tracking.run import LOSS_SPIKES, LOSS_TOTAL, NOT_FINITE, SLOWEST_RANK, SLOWEST_RATIO
from raydino.tracking.spool import METRICS_FILE, read_metrics
from raydino.train import checkpoint as cp
from raydino.train.guard import NonFiniteError, Skip
from raydino.train.steps import Loop, StepReport

CPU = torch.device("cpu")


def a_job(folder: Path, **changes: object) -> Job:
    recipe = Recipe(
        steps=20,
        global_batch=8,
        backbone=BackboneConfig(name="vit_tiny_patch16_224", patch_size=8, width=32, depth=1, heads=2),
        method=DINOv2Config().override(
            {
                "global_crops.size": 16,
                "local_crops": {"size": 8, "count": 1},
                "head": {"prototypes": 16, "hidden": 16, "bottleneck": 8},
            }
        ),
    ).override(changes)
    return Job(recipe, ClusterConfig(threads=1), folder, "", "digest", "", None)


def a_loop(job: Job) -> Loop:
    return build_loop(job.recipe, job.cluster, CPU)


def in_trouble(loop: Loop, steps: int, *, error: bool = False) -> None:
    """As if the last `steps` steps had been skipped."""
    loop.guard.in_a_row = steps
    loop.guard.error = NonFiniteError("", 0) if error else None


def test_keeper__a_state_saved_among_skipped_steps_is_the_one_from_before_the_first(tmp_path: Path):
    job = a_job(tmp_path)
    loop = a_loop(job)
    keeper = Keeper(job, loop, None)
    assert keeper.restore(choose(job, CPU)) == 0
    keeper.save(7)
    in_trouble(loop, 2)
    keeper.save(12)
    in_trouble(loop, 3, error=True)
    keeper.save(20, wait=True)  # the last step, but the run ends in an error
    keeper.finish()
    assert [path.name[-2:] for path in cp.committed(tmp_path / FOLDER)] == ["17", "10", "07"]


def test_keeper__the_last_step_of_a_run_that_ends_well_is_saved_as_that(tmp_path: Path):
    job = a_job(tmp_path)
    loop = a_loop(job)
    in_trouble(loop, 1)
    Keeper(job, loop, None).save(20, wait=True)
    assert cp.committed(tmp_path / FOLDER)[0].name == "step-00000020"


def test_keeper__restores_weights_and_the_losses_that_spikes_are_measured_by(tmp_path: Path):
    job = a_job(tmp_path)
    loop, other = a_loop(job), a_loop(job)
    with torch.no_grad():
        for parameter in loop.method.parameters():
            parameter.add_(1.0)
    loop.guard.losses.extend([1 / 3, 0.1])
    Keeper(job, loop, None).save(5, wait=True)
    assert Keeper(job, other, None).restore(choose(job, CPU)) == 5
    state = other.method.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in loop.method.state_dict().items())
    assert list(other.guard.losses) == [1 / 3, 0.1]


def test_keeper__another_architecture_is_refused_with_the_tensors_that_differ(tmp_path: Path):
    job = a_job(tmp_path)
    Keeper(job, a_loop(job), None).save(5, wait=True)
    wider = a_job(tmp_path, **{"backbone.width": 64})
    with pytest.raises(
        cp.CheckpointError, match=r"another architecture: .*\(64, .*here, .*\(32, .* more \(\d+ in all\)"
    ):
        Keeper(wider, a_loop(wider), None).restore(choose(wider, CPU))


def test_keeper__the_step_is_known_before_there_is_a_model_and_a_folder_that_tells_another_is_refused(tmp_path: Path):
    job = a_job(tmp_path)
    assert choose(job, CPU) is None
    Keeper(job, a_loop(job), None).save(5, wait=True)
    path = choose(job, CPU)
    assert path is not None and cp.step_of(path) == 5
    moved = path.rename(cp.path_of(tmp_path / FOLDER, 6))
    assert choose(job, CPU) == moved
    with pytest.raises(cp.CheckpointError, match="step-00000006: holds the state after step 5"):
        Keeper(job, a_loop(job), None).restore(moved)


def test_guards__are_no_part_of_the_fingerprint(tmp_path: Path):
    changed = {"guards": {"not_finite": 9, "spike": "skip", "spike_factor": 2.0, "save_failures": 9}}
    assert a_job(tmp_path).recipe.id == a_job(tmp_path, **changed).recipe.id


def a_report(step: int, loss: float, skipped: Skip | None = None, *, spike: bool = False) -> StepReport:
    return StepReport(step, {LOSS_TOTAL: torch.tensor(loss)}, 8, 0.0, 0.1, 0.1, skipped, spike)


def test_record__skipped_steps_are_counted_and_named_and_spoil_no_mean(tmp_path: Path):
    record = Record(a_job(tmp_path), 0, CPU)
    mine = Skip("not finite", math.nan, 2.0, True, (b"\x01", b"\x02"))
    record.step(a_report(0, 3.0), now=False)
    record.step(a_report(1, math.nan, mine), now=False)
    record.step(a_report(2, math.nan, Skip("not finite", 1.0, 2.0, False, (b"\x03",))), now=False)
    record.step(a_report(3, 5.0, spike=True), now=True)
    record.step(a_report(4, 7.0), now=True)
    rows = read_metrics(tmp_path / METRICS_FILE)
    assert (rows[4][LOSS_TOTAL], rows[4][NOT_FINITE], rows[4][LOSS_SPIKES]) == (4.0, 2, 1)
    assert (rows[5][LOSS_TOTAL], rows[5][NOT_FINITE], rows[5][LOSS_SPIKES]) == (7.0, 0, 0)
    (line,) = map(json.loads, (tmp_path / SKIPPED).read_text().splitlines())
    assert line == {
        "reason": "not finite",
        "loss": "nan",
        "grad_norm": "2.0",
        "suspect": True,
        "ids": ["01", "02"],
        "step": 1,
        "rank": 0,
    }


def test_record__names_the_slowest_rank_and_by_how_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    others = torch.tensor([0.1, 0.0, 0.2, 0.1])  # this is rank 1
    monkeypatch.setattr(collectives, "world_size", lambda: 4)
    monkeypatch.setattr(collectives, "all_sum", lambda mine: mine + others.to(mine.dtype))
    record = Record(a_job(tmp_path), 1, CPU)
    for own, expected in ((0.5, (1.0, 5.0)), (0.1, (2.0, 2.0))):
        record._own = [own, own]
        found = record._slowest()
        assert (found[SLOWEST_RANK], found[SLOWEST_RATIO]) == (expected[0], pytest.approx(expected[1]))


def test_wishes__the_drivers_file_stops_and_a_notice_is_answered_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Ray's notice is replaced by a stand-in; a real one comes from a draining node only."""
    notice = SimpleNamespace(preempted_node_ids=["a"], deadline_ms=1_700_000_030_000)
    told: list[SimpleNamespace | None] = [
        None,
        notice,
        notice,
        SimpleNamespace(preempted_node_ids=["a", "b"], deadline_ms=None),
    ]
    monkeypatch.setattr(wishes.ray.train, "get_preemption_info", lambda: told.pop(0))
    asked = Wishes(tmp_path, CPU)
    assert asked.after_step() == Wish() and len(told) == 4  # not with every step
    monkeypatch.setattr(wishes, "ASK", 0.0)
    found = [asked.after_step() for _ in range(4)]
    assert found == [Wish(), Wish(save=True, deadline=1_700_000_030.0), Wish(), Wish(save=True)]
    told.append(None)
    (tmp_path / STOP).touch()
    assert asked.after_step() == Wish(stop=True)


def test_wishes__a_file_asks_for_a_save_until_it_is_answered(tmp_path: Path):
    asked = Wishes(tmp_path, CPU)
    (tmp_path / SAVE).touch()
    assert [asked.after_step() for _ in range(2)] == [Wish(save=True)] * 2
    asked.saved()
    assert asked.after_step() == Wish() and not (tmp_path / SAVE).exists()


def test_keeper__a_checkpoint_of_other_images_is_taken_up_where_the_change_was_allowed(tmp_path: Path):
    job = a_job(tmp_path)
    Keeper(job, a_loop(job), None).save(7, wait=True)
    changed = replace(job, data_digest="another")
    with pytest.raises(ConfigError, match="data: the checkpoint at step 7"):
        Keeper(changed, a_loop(job), None).restore(choose(job, CPU))
    assert Keeper(replace(changed, data_before=("digest",)), a_loop(job), None).restore(choose(job, CPU)) == 7


def _asks(folder: str):
    def on(rank: int) -> list[tuple[bool, bool]]:
        from raydino.launch.workers import wishes

        calls = []
        notice = SimpleNamespace(preempted_node_ids=["a"], deadline_ms=None)
        wishes.ray.train.get_preemption_info = lambda: calls.append(1) or notice
        asked = wishes.Wishes(Path(folder), torch.device("cpu"))
        if rank == 1:
            asked._asked = -1e9  # its clock alone says so; rank 0's counts
        found = [asked.after_step()]
        asked._asked = -1e9 if rank == 0 else asked._asked
        found += [asked.after_step() for _ in range(2)]
        return [*((wish.stop, wish.save) for wish in found), len(calls)]

    return on


def test_wishes__all_ranks_ask_together_when_rank_0_says_so(gloo, tmp_path: Path):
    assert gloo(_asks(str(tmp_path)), 2) == [[(False, False), (False, True), (False, False), 1]] * 2


def _kept_sharded(rank: int, folder: Path) -> tuple[int, dict[str, torch.Tensor], int]:
    """Two ranks go on from what one process saved, and save what they made of it."""
    job = a_job(folder)
    job = replace(job, cluster=job.cluster.override({"parallel": "fsdp", "workers": 2}))
    loop = a_loop(job)
    keeper = Keeper(job, loop, None)
    step = keeper.restore(choose(job, CPU))
    with torch.no_grad():
        for parameter in loop.method.parameters():
            collectives.shard(parameter).add_(1.0)
    keeper.save(step + 1, wait=True)
    keeper.finish()
    mine = sum(collectives.shard(parameter).numel() for parameter in loop.method.parameters())
    return step, {name: collectives.whole(value) for name, value in loop.method.state_dict().items()}, mine


def test_keeper__a_sharded_model_takes_up_and_leaves_whole_tensors(tmp_path: Path, gloo):
    job = a_job(tmp_path)
    alone = a_loop(job)
    for parameter in alone.method.student.parameters():
        parameter.grad = torch.rand_like(parameter)
    alone.optimizer.step()
    Keeper(job, alone, None).save(5, wait=True)
    expected = {
        name: value + 1.0 if name in dict(alone.method.named_parameters()) else value
        for name, value in alone.method.state_dict().items()
    }
    (step, state, mine), (_, _, other) = gloo(lambda rank: _kept_sharded(rank, tmp_path), 2)
    assert step == 5
    assert mine + other == sum(parameter.numel() for parameter in alone.method.parameters())
    again = a_loop(job)
    assert Keeper(job, again, None).restore(choose(job, CPU)) == 6
    for name, value in again.method.state_dict().items():
        assert torch.equal(value, expected[name]) and torch.equal(value, state[name])
    moments = cp.optimizer_tensors(alone.optimizer)
    restored = cp.optimizer_tensors(again.optimizer)
    assert restored.keys() == moments.keys() and len(moments) > 0
    assert all(torch.equal(value, moments[name]) for name, value in restored.items())
