"""What the machine has on which a run is started, asked without torch or Ray."""

import contextlib
import os
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    """What a machine has."""

    cpus: int
    gpus: int
    memory: int
    """Bytes of memory that this process may use."""
    shared_memory: int
    """Bytes free in /dev/shm."""
    python: tuple[int, int]
    ray: str
    """Version of Ray, "" if it is not installed."""


def this_machine() -> Machine:
    """Ask the machine this process runs on."""
    try:
        shared = shutil.disk_usage("/dev/shm").free
    except OSError:
        shared = 0
    try:
        ray = metadata.version("ray")
    except metadata.PackageNotFoundError:
        ray = ""
    return Machine(
        cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        gpus=_gpus(),
        memory=_memory(),
        shared_memory=shared,
        python=(sys.version_info.major, sys.version_info.minor),
        ray=ray,
    )


def _memory() -> int:
    """Memory of the machine, or what a container is allowed of it."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # another system, or "max"
            return min(whole, int(Path(limit).read_text()))
    return whole


def _gpus() -> int:
    """CUDA devices that Ray would find: those of CUDA_VISIBLE_DEVICES, else those the driver lists."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([d for d in visible.split(",") if d.strip() not in ("", "-1", "NoDevFiles")])
    try:
        import pynvml

        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetCount()
    except Exception:  # no driver, an old one, no permission: each is its own class, and each means no usable GPU
        return 0
