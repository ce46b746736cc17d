"""What a profile comes to: a table of parts, shares of the device's limits, and one sentence that names the bottleneck."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from raydino.train.profiling.parts import (
    COMMUNICATION,
    COMPUTING,
    GAPS,
    HEADS,
    INPUT,
    LOSSES,
    OPTIMISER,
    OTHER,
    STUDENT,
    TEACHER,
    WAITING,
)
from raydino.train.profiling.trace import Breakdown
from raydino.train.profiling.work import Work

TOP = 10  # operations in the table
WAITS = 0.1  # of a step: above it the data pipeline is what to mend first
IDLES = 0.2  # of a step in gaps: above it the device would do more if it were given more at once
AT_LIMIT = 0.6  # of the measured matmul peak; the best public training of vision transformers is at 40 to 55 %


@dataclass(frozen=True)
class Measured:
    """What was measured around a profile."""

    device: str
    on_gpu: bool
    precision: str
    images: int
    """Per step on this worker."""
    workers: int
    seconds: float
    """Of a step that was not profiled, the median of some."""
    waited: float
    """Seconds of such a step that it waited for data."""
    crop_seconds: float
    """Core seconds that this worker's threads cut crops, per step."""
    cores: int
    """Cores that this worker's process may use."""
    peak_memory: int
    """Bytes: of tensors on a GPU, of the process on a CPU."""
    matmul_rate: float
    """Floating-point operations per second, measured."""
    copy_rate: float
    """Bytes per second read and written, measured."""


def summarise(found: Breakdown, measured: Measured, work: Work | None) -> dict[str, Any]:
    """Everything that summary.json holds; shares are of the profiled steps, rates of those that were not."""
    seconds, images = measured.seconds, measured.images
    parts = {name: _part(name, found, measured, work) for name in (*COMPUTING, WAITING, GAPS) if name in found.parts}
    summary: dict[str, Any] = {
        "measured": asdict(measured),
        "profiled_steps": found.steps,
        "seconds_per_step": seconds,
        "seconds_per_profiled_step": found.seconds / found.steps,
        "images_per_second": images / seconds * measured.workers,
        "data_wait": measured.waited / seconds,
        "parts": parts,
        "bytes_share": sum(found.touched.values()) / found.steps / seconds / measured.copy_rate,
        "operations": [
            {**asdict(op), "calls": op.calls / found.steps, "seconds": op.seconds / found.steps}
            | {"share": op.seconds / found.seconds}
            for op in found.operations[:TOP]
        ],
    }
    if work is not None:
        rate = {kind: sum(getattr(work, kind).values()) * images / seconds for kind in ("nominal", "effective")}
        summary["work"] = {
            "nominal_flops_per_image": sum(work.nominal.values()),
            "effective_flops_per_image": sum(work.effective.values()),
            "flops_per_second": rate["effective"],
            "nominal_share": rate["nominal"] / measured.matmul_rate,
            "effective_share": rate["effective"] / measured.matmul_rate,
        }
    summary["bottleneck"] = bottleneck(summary)
    return summary


def _part(name: str, found: Breakdown, measured: Measured, work: Work | None) -> dict[str, float]:
    """A part's seconds per step, share of the step, work, and shares of the device's limits while it ran."""
    seconds, touched = found.parts[name] / found.steps, found.touched.get(name, 0.0) / found.steps
    row = {"seconds": seconds, "share": found.parts[name] / found.seconds, "bytes": touched}
    if work is not None and name in work.effective:
        row["flops"] = work.effective[name] * measured.images
        row["flops_share"] = row["flops"] / seconds / measured.matmul_rate if seconds else 0.0
    row["bytes_share"] = touched / seconds / measured.copy_rate if seconds else 0.0
    return row


def bottleneck(summary: Mapping[str, Any]) -> str:
    """The one thing to change first, in a sentence."""
    measured = summary["measured"]
    share = {name: row["share"] for name, row in summary["parts"].items()}
    waits, gaps = summary["data_wait"], share[GAPS]
    if waits > WAITS:
        return (
            f"Data: a step waits {waits:.0%} of its time for images; give cropping more cores (cluster.data_threads, or "
            "cluster.decode_in cluster with free CPUs), or make it cheaper (data.fast_crops True, smaller stored images)."
        )
    cutting = measured["crop_seconds"] / (summary["seconds_per_step"] * measured["cores"])
    if not measured["on_gpu"] and cutting > max(share.get(STUDENT, 0.0), gaps):
        return (
            f"Crops: cutting them takes {cutting:.0%} of this worker's cores, which the step does without meanwhile; make them "
            "cheaper (data.fast_crops True, smaller stored images, fewer local_crops), or give the worker more cores."
        )
    if gaps > IDLES:
        idle = (
            "the GPU stands idle between kernels" if measured["on_gpu"] else "the worker is outside torch's operations"
        )
        others = "; waiting for other workers is in it (health/slowest_rank)" if measured["workers"] > 1 else ""
        return (
            f"Gaps: {gaps:.0%} of a step {idle}{others}; give it more work at once (a larger micro-batch: lower "
            "cluster.accumulate, raise global_batch)."
        )
    groups = {
        "backbone": share.get(STUDENT, 0.0) + share.get(TEACHER, 0.0),
        "heads": share.get(HEADS, 0.0) + share.get(LOSSES, 0.0),
        **{name: share.get(name, 0.0) for name in (OPTIMISER, INPUT, COMMUNICATION, OTHER)},
    }
    name = max(groups, key=lambda group: groups[group])
    return f"{_named(name, groups[name], summary)}."


def _named(name: str, share: float, summary: Mapping[str, Any]) -> str:
    if name == "backbone":
        return _backbone(share, summary)
    return {
        "heads": f"Heads and losses: {share:.0%} of a step, most of it traffic of prototype scores; use fewer prototypes "
        "(method.head.prototypes)",
        OPTIMISER: f"Optimiser and teacher: {share:.0%} of a step, which does not grow with the batch; use more images per "
        "step (global_batch)",
        INPUT: f"Transfer and normalisation: {share:.0%} of a step; use fewer or smaller crops (method.local_crops)",
        COMMUNICATION: f"Communication: {share:.0%} of a step is not hidden behind computing; use more images per worker and "
        "step (global_batch), or fewer workers",
        OTHER: f"Computing outside the known parts: {share:.0%} of a step; the table of operations says which",
    }[name]


def _backbone(share: float, summary: Mapping[str, Any]) -> str:
    reached = summary.get("work", {}).get("effective_share")
    if reached is None:
        return f"Backbones: {share:.0%} of a step; use fewer or smaller crops (method.local_crops), or a faster device"
    said = f"Backbones: {share:.0%} of a step, which reaches {reached:.0%} of the device's matmul rate"
    if reached >= AT_LIMIT:
        return f"{said}, near what there is; only less work (fewer or smaller crops) or a faster device helps"
    bf16 = "" if summary["measured"]["precision"] == "bf16" else ", bf16 where the device has it (cluster.precision)"
    return f"{said}; small operations hold it back: a larger micro-batch (lower cluster.accumulate){bf16}, or fewer local_crops"


def markdown(summary: Mapping[str, Any]) -> str:
    """The same for people."""
    measured = summary["measured"]
    lines = [
        "# Where a step's time goes",
        "",
        summary["bottleneck"],
        "",
        f"- {measured['device']}, {measured['precision']}, {measured['workers']} workers, {measured['images']} images per step "
        "on this one",
        f"- {summary['seconds_per_step']:.4g} s per step, {summary['images_per_second']:,.4g} images/s over all workers; "
        f"{summary['data_wait']:.1%} waiting for data. Under the profiler {summary['seconds_per_profiled_step']:.4g} s, to which "
        f"the shares below belong ({summary['profiled_steps']} steps)",
        f"- peak memory {measured['peak_memory'] / 2**30:.2f} GiB; cutting crops takes {measured['crop_seconds']:.3g} core "
        f"seconds per step in this worker, which has {measured['cores']} cores",
        f"- the device's limits, measured just now: {measured['matmul_rate'] / 1e12:.4g} TFLOP/s in a large matrix product, "
        f"{measured['copy_rate'] / 1e9:.4g} GB/s in a copy",
        *_work_lines(summary),
        "",
        "| part | ms | share | GFLOP | of the matmul rate | GB touched at least | of the copy rate |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(_row(name, row) for name, row in summary["parts"].items()),
        "",
        "| operation, by its own time | mostly in | calls | ms | share |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| `{op['name'][:100].replace('|', '/')}` | {op['part']} | {op['calls']:.4g} | {1000 * op['seconds']:.2f} "
            f"| {op['share']:.1%} |"
            for op in summary["operations"]
        ),
        "",
    ]
    return "\n".join(lines)


def _work_lines(summary: Mapping[str, Any]) -> list[str]:
    if "work" not in summary:
        return ["- floating-point work is not counted for this method"]
    work = summary["work"]
    return [
        f"- {work['nominal_flops_per_image'] / 1e9:.4g} GFLOP per image, {work['effective_flops_per_image'] / 1e9:.4g} without "
        f"what stochastic depth leaves out; {work['flops_per_second'] / 1e12:.4g} TFLOP/s, which is "
        f"{work['effective_share']:.1%} of the matmul rate ({work['nominal_share']:.1%} nominal); operations touch at least "
        f"{summary['bytes_share']:.1%} of what could be copied in the time",
    ]


def _row(name: str, row: Mapping[str, float]) -> str:
    flops = f"{row['flops'] / 1e9:.4g} | {row['flops_share']:.1%}" if "flops" in row else "|"
    bytes_ = f"{row['bytes'] / 1e9:.3g} | {row['bytes_share']:.1%}" if row["bytes"] else "|"
    return f"| {name} | {1000 * row['seconds']:.2f} | {row['share']:.1%} | {flops} | {bytes_} |"
