"""What the machine has on which a run is started, asked without torch or Ray."""

import contextlib
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

PYTHON_LEAST = (3, 11)


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
    gpu_memory: int = 0
    """Bytes of memory of its smallest GPU; 0 without, or where the driver does not tell."""
    triton: bool = True
    """Whether Triton is installed, which comes with torch on Linux alone."""
    temporary_used: float = 0.0
    """Share that is used of the disk on which Ray keeps its session and spills."""

    def version_faults(self) -> list[str]:
        """What is wrong with its Python and Ray, for people."""
        faults = []
        if self.python < PYTHON_LEAST:
            faults.append(
                f"Python {self.python[0]}.{self.python[1]}: raydino needs 3.11 or newer; make a new environment."
            )
        if not self.ray:
            faults.append("Ray is not installed in this environment; run `make setup`, or use an image that has it.")
        return faults


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
        gpu_memory=_gpu_memory(),
        memory=_memory(),
        shared_memory=shared,
        python=(sys.version_info.major, sys.version_info.minor),
        ray=ray,
        triton=find_spec("triton") is not None,
        temporary_used=_used(Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())),
    )


def _used(folder: Path) -> float:
    try:
        disk = shutil.disk_usage(folder)
    except OSError:
        return 0.0
    return 1 - disk.free / disk.total


def _memory() -> int:
    """Memory of the machine, or what a container is allowed of it."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # another system, or "max"
            return min(whole, int(Path(limit).read_text()))
    return whole


def _gpu_memory() -> int:
    try:
        import pynvml

        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(pynvml.nvmlDeviceGetCount())]
        return min((int(pynvml.nvmlDeviceGetMemoryInfo(handle).total) for handle in handles), default=0)
    except Exception:  # as for their number
        return 0


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
