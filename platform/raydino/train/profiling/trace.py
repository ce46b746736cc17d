"""Where the time of some steps went, from the trace that torch's profiler wrote of them.

At any moment of a step the device works on some part, or the step waits for data, or neither: a gap. On a GPU "works" means that
a kernel or copy runs, on a CPU that the training thread is inside an operation of torch. Every moment counts once, so the parts
add up to the step. What runs between steps (logging, evaluations, checkpoints) is left out.

A forward operation is of the innermost range around it, a backward one of the part that its forward operation was of: torch
gives both the same sequence number. A kernel is of the part that launched it.
"""

import gzip
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raydino.train.profiling.parts import COMMUNICATION, GAPS, MARKED, OPTIMISER, OTHER, STEP, WAITING

Event = Mapping[str, Any]
MICRO = 1e-6  # a trace tells microseconds
ON_DEVICE = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})
LAUNCHES = frozenset({"cuda_runtime", "cuda_driver"})
BACKWARD = "autograd::engine::evaluate_function"
SIZES = {
    "double": 8,
    "long int": 8,
    "c10::Half": 2,
    "c10::BFloat16": 2,
    "unsigned char": 1,
    "signed char": 1,
    "bool": 1,
}
"""Bytes of an element by the type's name in a trace; any other has four."""
MOVE_NOTHING = frozenset(
    "t transpose as_strided view _unsafe_view reshape expand expand_as permute select slice unsqueeze squeeze flatten unflatten "
    "detach alias split split_with_sizes chunk unbind narrow movedim resolve_conj resolve_neg empty empty_like empty_strided "
    "new_empty new_empty_strided result_type _has_compatible_shallow_copy_type lift_fresh".split()
)
"""Operations that make or look at a tensor and touch none of its elements."""


@dataclass(frozen=True)
class Operation:
    """All calls of one operation or kernel."""

    name: str
    part: str
    """Where most of its time was spent."""
    calls: int
    seconds: float
    """In itself, operations inside it left out."""


@dataclass(frozen=True)
class Breakdown:
    """What some steps consisted of."""

    steps: int
    seconds: float
    parts: dict[str, float]
    """Seconds by part, waiting and gaps included; their sum is `seconds`."""
    touched: dict[str, float]
    """Bytes of the tensors that operations were given, by part; what they wrote elsewhere is not in the trace."""
    operations: list[Operation]
    """The slowest first."""


@dataclass
class _Node:
    """An operation of the host, and what is known of it once its thread has been walked through."""

    begin: float
    end: float
    name: str
    part: str
    thread: object
    depth: int
    args: Mapping[str, Any]
    inner: float = 0.0
    """Seconds in the operations inside it."""
    is_leaf: bool = True


def read_trace(path: Path) -> list[Event]:
    """The events of a compressed trace."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [event for event in json.load(file)["traceEvents"] if event.get("ph") == "X"]


def breakdown(events: Sequence[Event]) -> Breakdown:
    """The parts of the steps in a trace. Raises ValueError for a trace without a step."""
    steps = sorted((event for event in events if event["name"] == STEP), key=lambda event: event["ts"])
    steps = [
        step for step in steps if step.get("cat") == "user_annotation"
    ]  # a GPU's copy of the range is not the step
    if not steps:
        raise ValueError(f"the trace has no range {STEP!r}: no step was profiled")
    windows = [(step["ts"], step["ts"] + step["dur"]) for step in steps]
    nodes, launched = _host(events, training_thread=steps[0]["tid"])
    device = [event for event in events if event.get("cat") in ON_DEVICE]
    inside = _Inside(windows)
    nodes = [node for node in nodes if node.begin in inside]
    if device:
        work = [(e["ts"], e["ts"] + e["dur"], _kernel_part(e, launched), e["name"]) for e in device]
        own = [(name, part, end - begin) for begin, end, part, name in work if begin in inside]
    else:
        trained = [node for node in nodes if node.thread == steps[0]["tid"]]
        work = [(n.begin, n.end, n.part, n.name) for n in trained if n.depth == 0]
        own = [(n.name, n.part, n.end - n.begin - n.inner) for n in trained]
    waits = [(e["ts"], e["ts"] + e["dur"], WAITING, "") for e in events if e["name"] == WAITING]
    parts: dict[str, float] = defaultdict(float)
    free = windows
    hidden = [piece for piece in work if piece[2] == COMMUNICATION]  # counts where nothing else runs
    for pieces in ([piece for piece in work if piece[2] != COMMUNICATION], hidden, waits):
        found, free = _claim(free, sorted(pieces))
        for name, seconds in found.items():
            parts[name] += seconds * MICRO
    parts[GAPS] = sum(end - begin for begin, end in free) * MICRO
    touched: dict[str, float] = defaultdict(float)
    for node in nodes:
        if node.is_leaf and node.name.removeprefix("aten::") not in MOVE_NOTHING:
            touched[node.part] += _bytes(node.args)
    whole = sum(end - begin for begin, end in windows) * MICRO
    return Breakdown(len(steps), whole, dict(parts), dict(touched), _operations(own))


def _host(events: Iterable[Event], *, training_thread: object) -> tuple[list[_Node], dict[int, str]]:
    """The operations of all threads, and the part of every launch on a GPU by its correlation."""
    threads: dict[object, list[Event]] = defaultdict(list)
    for event in events:
        if event.get("cat") in {"cpu_op", "user_annotation", *LAUNCHES}:
            threads[event["tid"]].append(event)
    nodes: list[_Node] = []
    launched: dict[int, str] = {}
    made_by: dict[int, str] = {}  # the part that made a node of autograd's graph, by sequence number
    for thread in sorted(threads, key=lambda thread: thread != training_thread):  # it makes the graph that others walk
        nodes += _walk(sorted(threads[thread], key=lambda e: (e["ts"], -e["dur"])), launched, made_by)
    return nodes, launched


def _walk(events: Iterable[Event], launched: dict[int, str], made_by: dict[int, str]) -> Iterator[_Node]:
    """Operations of one thread, whose events come in order; fills the two tables."""
    ranges: list[tuple[float, str]] = []
    outer: list[_Node] = []
    behind = OTHER  # the part of the last backward operation: gradients are accumulated right after it
    for event in events:
        begin, name, args = event["ts"], event["name"], event.get("args", {})
        end = begin + event["dur"]
        while ranges and ranges[-1][0] <= begin:
            ranges.pop()
        while outer and outer[-1].end <= begin:
            outer.pop()
        if (mark := _mark_of(name)) is not None:
            ranges.append((end, mark))
        elif event["cat"] == "cpu_op":
            sequence = args.get("Sequence number")
            if name.startswith(BACKWARD):
                behind = made_by.get(sequence, behind)
                ranges.append((end, behind))
            node = _Node(begin, end, name, ranges[-1][1] if ranges else OTHER, event["tid"], len(outer), args)
            if sequence is not None and not args.get("Fwd thread id"):
                made_by[sequence] = node.part  # the last to bear the number is the one that made the node
            if outer:
                outer[-1].inner += end - begin
                outer[-1].is_leaf = False
            outer.append(node)
            yield node
        elif event["cat"] in LAUNCHES and "correlation" in args:
            launched[args["correlation"]] = ranges[-1][1] if ranges else OTHER


def _mark_of(name: str) -> str | None:
    """The part that a range stands for; torch marks its optimisers itself."""
    if name.startswith("Optimizer."):
        return OPTIMISER
    return name if name in MARKED else None


def _kernel_part(event: Event, launched: Mapping[int, str]) -> str:
    if "nccl" in event["name"].lower():
        return COMMUNICATION
    return launched.get(event.get("args", {}).get("correlation", -1), OTHER)


class _Inside:
    """Whether a moment lies in one of some windows, asked in ascending order or not."""

    def __init__(self, windows: Sequence[tuple[float, float]]) -> None:
        self._windows = windows

    def __contains__(self, moment: float) -> bool:
        return any(begin <= moment < end for begin, end in self._windows)  # a handful of steps


def _claim(
    free: Sequence[tuple[float, float]], pieces: Sequence[tuple[float, float, str, str]]
) -> tuple[dict[str, float], list[tuple[float, float]]]:
    """What pieces, ascending, take of the free time, by part, and what they leave; where two overlap the first takes it."""
    taken: dict[str, float] = defaultdict(float)
    left: list[tuple[float, float]] = []
    at = 0
    for begin, end in free:
        cursor = begin
        while at < len(pieces) and pieces[at][0] < end:
            start, stop, part, _ = pieces[at]
            start, stop = max(start, cursor), min(stop, end)
            if stop > start:
                if start > cursor:
                    left.append((cursor, start))
                taken[part] += stop - start
                cursor = stop
            if pieces[at][1] > end:  # it goes on in the next window
                break
            at += 1
        if cursor < end:
            left.append((cursor, end))
    return taken, left


def _bytes(args: Mapping[str, Any]) -> float:
    total = 0
    for kind, dims in zip(args.get("Input type", ()), args.get("Input Dims", ()), strict=False):
        lists = isinstance(dims, list) and dims and isinstance(dims[0], list)
        if kind in {"", "Scalar", "ScalarList"}:
            continue
        for shape in dims if lists else [dims]:
            total += math.prod(shape) * SIZES.get(kind, 4)
    return float(total)


def _operations(own: Iterable[tuple[str, str, float]]) -> list[Operation]:
    calls: dict[str, int] = defaultdict(int)
    spent: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for name, part, micros in own:
        calls[name] += 1
        spent[name][part] += micros * MICRO
    found = [
        Operation(name, max(by_part, key=lambda part: by_part[part]), calls[name], sum(by_part.values()))
        for name, by_part in spent.items()
    ]
    return sorted(found, key=lambda operation: -operation.seconds)
