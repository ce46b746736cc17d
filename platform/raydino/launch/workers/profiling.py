"""`--profile`: some steady steps of rank 0 under torch's profiler, and what they tell, left in the run's folder and its record.

The first steps are let go by, some are timed as they are, and as many run under the profiler, which slows them: rates are of the
former, shares of the latter. Nothing that computes is changed, so losses stay.
"""

import json
import logging
import resource
import threading
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from statistics import median

import psutil
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from raydino import collectives
from raydino.data.batches import CROP_THREADS
from raydino.data.cutters import MODULE
from raydino.launch.job import PROFILE, PROFILED_STEPS, SETTLING_STEPS, Job
from raydino.launch.workers.record import Record
from raydino.train.profiling.limits import copy_rate, matmul_rate
from raydino.train.profiling.parts import STEP, marked
from raydino.train.profiling.summary import Measured, markdown, summarise
from raydino.train.profiling.trace import breakdown, read_trace
from raydino.train.profiling.work import work_per_image
from raydino.train.steps import Loop, StepReport

TRACE = "trace.json.gz"

log = logging.getLogger(__name__)


def profiled(
    job: Job, loop: Loop, reports: Iterator[StepReport], record: Record, *, cores: int
) -> Iterator[StepReport]:
    """The same reports; on the way a profile is taken. For rank 0; the others wait for it where they meet."""
    yield from islice(reports, SETTLING_STEPS)
    timed, begun = [], _crop_seconds()
    for report in islice(reports, PROFILED_STEPS):
        timed.append(report)
        yield report
    cut = (_crop_seconds() - begun) / max(1, len(timed))
    folder = job.run_dir / PROFILE
    folder.mkdir(exist_ok=True)
    yield from _traced(loop, reports, folder / TRACE)
    if (folder / TRACE).exists():
        with record.rate.paused():
            try:
                _write(folder, _measured(job, loop, timed, cut=cut, cores=cores), job, record)
            except OSError as error:  # a full disk is no reason to end a run
                log.warning("the profile was not written (%s); training goes on", error)
    yield from reports


def _traced(loop: Loop, reports: Iterator[StepReport], path: Path) -> Iterator[StepReport]:
    """Steps under the profiler; the first one is the profiler's own warm-up and has no range."""
    activities = [ProfilerActivity.CPU]
    if loop.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
        torch.cuda.reset_peak_memory_stats(loop.device)
    with marked(loop.method, loop.module), profile(activities=activities, record_shapes=True) as profiler:
        yield from islice(reports, 1)
        for _ in range(PROFILED_STEPS):
            with record_function(STEP):
                report = next(reports, None)
            if report is None:
                return
            yield report
        if loop.device.type == "cuda":
            torch.cuda.synchronize(loop.device)
    try:
        profiler.export_chrome_trace(str(path))
    except OSError as error:
        log.warning("%s was not written (%s); training goes on", path, error)


def _measured(job: Job, loop: Loop, timed: list[StepReport], *, cut: float, cores: int) -> Measured:
    on_gpu, device = loop.device.type == "cuda", loop.device
    return Measured(
        device=torch.cuda.get_device_name(device) if on_gpu else f"CPU, {torch.get_num_threads()} torch threads",
        on_gpu=on_gpu,
        precision=loop.precision,
        images=job.recipe.global_batch // collectives.world_size(),
        workers=collectives.world_size(),
        seconds=median(report.seconds for report in timed),
        waited=median(report.waited for report in timed),
        crop_seconds=cut,
        cores=cores,
        peak_memory=torch.cuda.max_memory_allocated(device)
        if on_gpu
        else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        matmul_rate=matmul_rate(device, loop.precision),
        copy_rate=copy_rate(device),
    )


def _write(folder: Path, measured: Measured, job: Job, record: Record) -> None:
    recipe = job.recipe
    micro = measured.images // job.cluster.accumulate_on(measured.workers, recipe.global_batch)
    work = work_per_image(recipe.method, recipe.backbone, images=micro)
    summary = summarise(breakdown(read_trace(folder / TRACE)), measured, work)
    (folder / "summary.json").write_text(json.dumps(summary, indent=1))
    (folder / "summary.md").write_text(markdown(summary))
    if record.run is not None:
        for name in ("summary.md", "summary.json", TRACE):
            record.run.artifact(folder / name)


def _crop_seconds() -> float:
    """Core seconds for which this process's threads have cut crops, and the processes beside them."""
    me, threads = psutil.Process(), {t.native_id for t in threading.enumerate() if t.name.startswith(CROP_THREADS)}
    used = [t.user_time + t.system_time for t in me.threads() if t.id in threads]
    for child in me.children():
        with suppress(psutil.Error):  # it may just have ended
            if MODULE in child.cmdline():
                used.append(sum(child.cpu_times()[:2]))
    return sum(used)
