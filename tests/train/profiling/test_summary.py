"""What a profile says: shares that add up, rates by hand, and one sentence for each cause that was planted."""

from typing import Any

import pytest

from raydino.train.profiling.parts import (
    COMMUNICATION,
    GAPS,
    HEADS,
    INPUT,
    LOSSES,
    OPTIMISER,
    STUDENT,
    TEACHER,
    WAITING,
)
from raydino.train.profiling.summary import Measured, markdown, summarise
from raydino.train.profiling.trace import Breakdown, Operation
from raydino.train.profiling.work import Work

SHARES = {STUDENT: 0.5, TEACHER: 0.1, HEADS: 0.1, LOSSES: 0.1, OPTIMISER: 0.1, WAITING: 0.04, GAPS: 0.06}
MEASURED = Measured(
    device="a device",
    on_gpu=True,
    precision="bf16",
    images=32,
    workers=2,
    seconds=0.5,
    waited=0.02,
    crop_seconds=0.0,
    cores=8,
    peak_memory=3 * 2**30,
    matmul_rate=1e12,
    copy_rate=1e9,
)
WORK = Work({STUDENT: 8e9, TEACHER: 1e9, HEADS: 1e9}, {STUDENT: 6e9, TEACHER: 1e9, HEADS: 1e9})
STEPS, SECONDS = 4, 2.4  # the profiler makes steps of 0.5 s last 0.6 s


def summary_of(shares: dict[str, float], measured: Measured = MEASURED, work: Work | None = WORK) -> dict[str, Any]:
    parts = {name: share * SECONDS for name, share in shares.items()}
    operations = [Operation("aten::mm", STUDENT, 8 * STEPS, 1.2), Operation("aten::add", HEADS, STEPS, 0.6)] * 8
    found = Breakdown(STEPS, SECONDS, parts, {STUDENT: 4e8, HEADS: 2e8}, operations)
    return summarise(found, measured, work)


def test_summarise__by_hand():
    summary = summary_of(SHARES)
    assert {name: row["share"] for name, row in summary["parts"].items()} == pytest.approx(SHARES)
    assert summary["images_per_second"] == 2 * 32 / 0.5
    assert summary["seconds_per_profiled_step"] == pytest.approx(0.6)
    assert summary["work"]["effective_share"] == pytest.approx(32 * 8e9 / 0.5 / 1e12)
    assert summary["work"]["nominal_share"] == pytest.approx(32 * 10e9 / 0.5 / 1e12)
    student = summary["parts"][STUDENT]
    assert student["seconds"] == pytest.approx(0.3)
    assert student["flops_share"] == pytest.approx(32 * 6e9 / 0.3 / 1e12)
    assert student["bytes_share"] == pytest.approx(1e8 / 0.3 / 1e9)
    assert summary["bytes_share"] == pytest.approx(1.5e8 / 0.5 / 1e9)
    assert len(summary["operations"]) == 10
    assert summary["operations"][0] == {"name": "aten::mm", "part": STUDENT, "calls": 8, "seconds": 0.3, "share": 0.5}


def test_markdown__has_every_part_and_the_sentence():
    summary = summary_of(SHARES)
    text = markdown(summary)
    assert all(f"| {name} |" in text for name in SHARES)
    assert summary["bottleneck"] in text
    assert "not counted" in markdown(summary_of(SHARES, work=None))


def planted(**changes: Any) -> Measured:
    return Measured(**{**MEASURED.__dict__, **changes})


@pytest.mark.parametrize(
    ("shares", "measured", "words"),
    [
        ({}, planted(waited=0.2), ["Data", "40%", "cluster.data_threads"]),
        ({}, planted(on_gpu=False, crop_seconds=0.7, cores=2), ["Crops", "70%", "data.fast_crops"]),
        ({STUDENT: 0.2, GAPS: 0.36}, MEASURED, ["Gaps", "36%", "health/slowest_rank", "cluster.accumulate"]),
        ({STUDENT: 0.2, GAPS: 0.36}, planted(on_gpu=False, workers=1), ["outside torch's operations"]),
        ({}, MEASURED, ["Backbones", "60%", "reaches 51%", "micro-batch"]),
        ({}, planted(precision="fp32"), ["cluster.precision"]),
        ({}, planted(seconds=0.4), ["near what there is"]),
        ({STUDENT: 0.1, HEADS: 0.4, LOSSES: 0.2}, MEASURED, ["Heads", "60%", "method.head.prototypes"]),
        ({STUDENT: 0.1, OPTIMISER: 0.5}, MEASURED, ["Optimiser", "global_batch"]),
        ({STUDENT: 0.1, INPUT: 0.4}, MEASURED, ["normalisation", "method.local_crops"]),
        ({STUDENT: 0.1, COMMUNICATION: 0.4}, MEASURED, ["Communication", "fewer workers"]),
    ],
)
def test_bottleneck__names_the_planted_cause_and_a_remedy(
    shares: dict[str, float], measured: Measured, words: list[str]
):
    sentence = summary_of({**SHARES, **shares}, measured)["bottleneck"]
    assert all(word in sentence for word in words), sentence
    assert sentence.count(".\n") == 0 and sentence.endswith(".")
