"""A trace's parts: against a clock that looks at every microsecond, on a GPU's trace made by hand, and on a real step."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from raydino.methods.config import DINOv2Config
from raydino.nn.config import BackboneConfig
from raydino.schedule import constant
from raydino.train.config import OptimConfig
from raydino.train.optim import build_optimizer
from raydino.train.profiling.parts import (
    COMMUNICATION,
    GAPS,
    HEADS,
    INPUT,
    LOSSES,
    OPTIMISER,
    OTHER,
    STEP,
    STUDENT,
    TEACHER,
    WAITING,
    marked,
    span,
)
from raydino.train.profiling.trace import breakdown, read_trace
from raydino.train.steps import Loop, training_steps
from raydino.views import Batch, Normalisation

HOST, BACK, STREAM = 1, 2, 7


def host(name: str, ts: float, dur: float, cat: str = "cpu_op", tid: int = HOST, **args: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "tid": tid, "args": args}


def mark(name: str, ts: float, dur: float) -> dict[str, Any]:
    return host(name, ts, dur, cat="user_annotation")


def kernel(name: str, ts: float, dur: float, correlation: int) -> dict[str, Any]:
    return host(name, ts, dur, cat="kernel", tid=STREAM, correlation=correlation)


def launch(ts: float, correlation: int, tid: int = HOST) -> dict[str, Any]:
    return host("cudaLaunchKernel", ts, 1, cat="cuda_runtime", tid=tid, correlation=correlation)


def micros(parts: dict[str, float]) -> dict[str, int]:
    return {name: round(seconds * 1e6) for name, seconds in parts.items() if round(seconds * 1e6)}


spans = st.lists(st.tuples(st.integers(0, 90), st.integers(1, 25)), max_size=8)


@given(computing=spans, talking=spans, waiting=spans)
def test_breakdown__every_moment_of_a_step_counts_once(computing, talking, waiting):
    """Two steps, [10, 40) and [50, 95), with kernels and waits anywhere, overlapping as they like."""
    steps = [(10, 40), (50, 95)]
    events = [mark(STEP, begin, end - begin) for begin, end in steps]
    events += [launch(11, n, tid=BACK) for n in range(100)] + [mark(WAITING, ts, dur) for ts, dur in waiting]
    events += [kernel("gemm", ts, dur, n) for n, (ts, dur) in enumerate(computing)]
    events += [kernel("ncclDevKernel_AllReduce", ts, dur, 50 + n) for n, (ts, dur) in enumerate(talking)]
    events.append(kernel("gemm", 200, 1, 99))  # at least one kernel, so that it is a GPU's trace
    found = micros(breakdown(events).parts)
    expected: dict[str, int] = {}
    for moment in (m for begin, end in steps for m in range(begin, end)):
        name = GAPS
        for part, pieces in ((WAITING, waiting), (COMMUNICATION, talking), (OTHER, computing)):  # the last wins
            if any(ts <= moment < ts + dur for ts, dur in pieces):
                name = part
        expected[name] = expected.get(name, 0) + 1
    assert found == expected


def test_breakdown__a_kernel_is_of_the_part_that_launched_it():
    events = [
        mark(STEP, 0, 100),
        *(mark(WAITING, 0, 10), mark(LOSSES, 10, 50), mark(STUDENT, 12, 10), mark(HEADS, 30, 10)),
        host("aten::mm", 12, 8, **{"Sequence number": 7, "Fwd thread id": 0}),
        launch(13, 1),
        host("aten::mul", 31, 4, **{"Sequence number": 8, "Fwd thread id": 0}),
        *(launch(32, 2), launch(50, 3)),
        host("autograd::engine::evaluate_function: Mul", 60, 8, tid=BACK, **{"Sequence number": 8, "Fwd thread id": 1}),
        launch(61, 4, tid=BACK),
        host("autograd::engine::evaluate_function: Mm", 70, 8, tid=BACK, **{"Sequence number": 7, "Fwd thread id": 1}),
        launch(71, 5, tid=BACK),
        host("autograd::engine::evaluate_function: torch::autograd::AccumulateGrad", 80, 2, tid=BACK),
        launch(80.5, 6, tid=BACK),
        mark("Optimizer.step#AdamW.step", 90, 5),
        launch(91, 7),
        *(kernel("k", 20 + 10 * n, n, correlation=n) for n in range(1, 8)),  # each of its own length
    ]
    parts = micros(breakdown(events).parts)
    assert parts == {STUDENT: 1 + 5 + 6, HEADS: 2 + 4, LOSSES: 3, OPTIMISER: 7, WAITING: 10, GAPS: 100 - 28 - 10}


def test_breakdown__operations_have_their_own_time_and_bytes_by_shape():
    half = {"Input type": ["c10::BFloat16", "float", "Scalar"], "Input Dims": [[4, 8], [8], []]}
    lists = {"Input type": ["TensorList"], "Input Dims": [[[3], [5, 2]]]}
    events = [
        mark(STEP, 0, 50),
        mark(HEADS, 0, 30),
        host("aten::linear", 0, 30, **half),  # its bytes are those of what is inside
        *(host("aten::t", 1, 2, **half), host("aten::addmm", 4, 20, **half)),
        host("aten::_foreach_add_", 30, 10, **lists),
        host("aten::mm", 60, 10, **half),  # after the step
        host("aten::mm", 0, 50, tid=BACK, **half),  # another thread's work is not the step's time
    ]
    found = breakdown(events)
    assert micros(found.parts) == {HEADS: 30, OTHER: 10, GAPS: 10}
    assert found.touched[HEADS] == 4 * 8 * 2 + 8 * 4
    assert found.touched[OTHER] == (3 + 10) * 4 + 4 * 8 * 2 + 8 * 4
    own = {op.name: round(op.seconds * 1e6) for op in found.operations}
    assert own == {"aten::addmm": 20, "aten::_foreach_add_": 10, "aten::linear": 8, "aten::t": 2}


def test_breakdown__refuses_a_trace_without_a_step():
    with pytest.raises(ValueError, match="no step was profiled"):
        breakdown([host("aten::mm", 0, 1)])


def _batches(count: int) -> Iterator[Batch]:
    for step in range(count):
        crops = {
            "global": torch.randint(0, 256, (2, 8, 3, 32, 32), dtype=torch.uint8),
            "local": torch.randint(0, 256, (2, 8, 3, 16, 16), dtype=torch.uint8),
        }
        masks = torch.zeros(2, 8, 16, dtype=torch.bool)
        masks[0, ::2, 2:7] = True
        yield Batch(crops, masks, tuple(bytes([i]) * 16 for i in range(8)), step)


@pytest.fixture(scope="module")
def loop() -> Loop:
    backbone = BackboneConfig(name="vit_tiny_patch16_224", patch_size=8, width=32, depth=2, heads=2)
    small = {
        "global_crops.size": 32,
        "local_crops": {"size": 16, "count": 2},
        "head": {"prototypes": 64, "hidden": 32, "bottleneck": 16},
    }
    config = DINOv2Config(koleo_weight=0.0).override(small)  # KoLeo normalises too, as heads do
    method = config.build(backbone, steps=8)
    optim = OptimConfig(lr=1e-3, warmup=2, weight_decay=constant(0.04))
    return Loop(
        method=method,
        module=method,
        optimizer=build_optimizer(method.student, optim),
        optim=optim,
        peak_lr=1e-3,
        seed=5,
        steps=8,
        device=torch.device("cpu"),
        normalise=Normalisation(),
    )


def test_breakdown__of_a_real_step(loop: Loop, tmp_path: Path):
    """torch's own numbering of forward and backward decides, so the names of the operations must fit the parts."""
    with marked(loop.method, loop.module), profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        reports = training_steps(loop, _batches(3))
        for _ in range(3):
            with record_function(STEP):
                next(reports)
    assert not loop.method.student.backbone._forward_hooks and not loop.module._forward_pre_hooks
    profiler.export_chrome_trace(str(tmp_path / "trace.json.gz"))
    found = breakdown(read_trace(tmp_path / "trace.json.gz"))
    assert found.steps == 3
    assert sum(found.parts.values()) == pytest.approx(found.seconds)
    assert all(found.parts[part] > 0 for part in (STUDENT, TEACHER, HEADS, LOSSES, OPTIMISER, INPUT, WAITING, GAPS))
    assert found.parts[OTHER] < 0.1 * found.seconds
    engine = "autograd::engine::evaluate_function: "
    parts = {op.name.removeprefix(engine): op.part for op in found.operations}
    of = {"NativeLayerNormBackward0": STUDENT, "_CrossEntropyBackward": LOSSES}
    of |= {"LinalgVectorNormBackward0": HEADS, "aten::sqrt": OPTIMISER, "_CrossEntropy": LOSSES}
    assert {name: parts[name] for name in of} == of
    calls = {op.name.removeprefix(engine): op.calls for op in found.operations}
    assert calls["_CrossEntropy"] == calls["_CrossEntropyBackward"] == 3 * 2  # cls and patches
    norms = sum(isinstance(part, nn.LayerNorm) for part in loop.method.student.modules())
    # global and local crops; the teacher has no backward pass
    assert calls["NativeLayerNormBackward0"] == 3 * 2 * norms
    assert calls["aten::native_layer_norm"] == 3 * 3 * norms


def test_span__without_a_profiler_is_nothing():
    assert not isinstance(span(HEADS), record_function)
    with profile(activities=[ProfilerActivity.CPU]):
        assert isinstance(span(HEADS), record_function)
