"""The audit log: nothing where it is off, one true line per step where it is on, and what a restart undid does not count."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from raydino.data.plan import Plan
from raydino.launch.workers import audit
from raydino.train.steps import StepReport
from raydino.views import Batch


def a_plan() -> Plan:
    return Plan(np.array([16, 16]), seed=0, global_batch=8, lanes=4, window=8)


def a_batch(plan: Plan, step: int, *, rank: int = 0, world: int = 1) -> Batch:
    """Every image is its row number, in its id and in its pixels."""
    rows = plan.rank_slots(step, rank=rank, world=world)
    pixels = torch.tensor(rows, dtype=torch.uint8).reshape(1, -1, 1, 1, 1).expand(2, -1, 3, 4, 4)
    masks = torch.zeros(2, len(rows), 4, dtype=torch.bool)
    return Batch({"global": pixels}, masks, tuple(bytes([row]) for row in rows), step)


def a_report(step: int, loss: float) -> StepReport:
    return StepReport(step, {"loss/total": torch.tensor(loss)}, 8, 0.0, 0.1)


def test_audit__writes_nothing_where_it_is_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    plan = a_plan()
    log = audit.Audit("", plan, rank=0, world=1, start=0)
    batch = a_batch(plan, 0)
    assert next(log.batches([batch])) is batch
    log.step(a_report(0, 1.0))
    assert not list(tmp_path.iterdir())


def test_audit__a_line_holds_place_ids_pixels_and_the_bits_of_the_loss(tmp_path: Path):
    plan = a_plan()
    log = audit.Audit(tmp_path, plan, rank=1, world=2, start=0)
    for batch in log.batches([a_batch(plan, step, rank=1, world=2) for step in (0, 4)]):
        log.step(a_report(batch.step, 0.1 + batch.step))
    begin, first, second = audit.read(tmp_path, 1)
    assert (begin["begin"], begin["rank"], begin["world"]) == (0, 1, 2)
    assert (first["epoch"], second["epoch"]) == (0, 1)  # 32 rows in batches of 8
    assert first["slots"] == [1, 3, 5, 7]
    assert [int(sample, 16) for sample in first["ids"]] == plan.slots(0)[[1, 3, 5, 7]].tolist()
    assert float.fromhex(first["loss"]) == float(torch.tensor(0.1)) != 0.1


def test_line_of__one_changed_pixel_or_mask_changes_the_hash_of_its_image_alone():
    plan = a_plan()
    batch = a_batch(plan, 0)
    before = audit.line_of(batch, plan, rank=0, world=1)["pixels"]
    pixels, masks = batch.crops["global"].clone(), batch.masks.clone()
    pixels[1, 2, 0, 3, 3] += 1
    masks[0, 5, 1] = True
    after = audit.line_of(Batch({"global": pixels}, masks, batch.ids, 0), plan, rank=0, world=1)["pixels"]
    assert [number for number in range(8) if before[number] != after[number]] == [2, 5]
    colours = torch.zeros(2, 8, 11)
    drawn = audit.line_of(replace(batch, colours={"global": colours.clone()}), plan, rank=0, world=1)["pixels"]
    colours[1, 3, 4] = 0.5
    other = audit.line_of(replace(batch, colours={"global": colours}), plan, rank=0, world=1)["pixels"]
    assert [number for number in range(8) if drawn[number] != other[number]] == [3]


@pytest.mark.parametrize("world", [2, 4])
def test_merged__is_the_same_for_every_number_of_workers(world: int):
    plan = a_plan()
    whole = audit.merged([audit.line_of(a_batch(plan, 3), plan, rank=0, world=1)])
    parts = [audit.line_of(a_batch(plan, 3, rank=r, world=world), plan, rank=r, world=world) for r in range(world)]
    assert audit.merged(parts) == whole
    assert [slot for slot, _, _ in whole] == list(range(8))


def test_effective__steps_that_a_restart_went_back_behind_do_not_count():
    lines = [{"begin": 0}, *({"step": s, "loss": "a"} for s in range(5)), {"begin": 3}, {"step": 3, "loss": "b"}]
    assert {step: line["loss"] for step, line in audit.effective(lines).items()} == {0: "a", 1: "a", 2: "a", 3: "b"}
