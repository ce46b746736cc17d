"""Whether a worker fits into the memory that it has."""

from collections.abc import Mapping

from raydino.launch.checks.machine import Machine
from raydino.launch.cluster import ClusterConfig
from raydino.launch.terminal.shown import in_bytes

MEMORY_FULL = 0.9  # of a device: the rest is its context and what its allocator cannot use


def available_memory(cluster: ClusterConfig, machine: Machine) -> int:
    """Bytes that one worker has on its device, or of this machine's memory; 0 if unknown."""
    if not cluster.is_local:
        return 0
    return machine.gpu_memory if cluster.use_gpu(machine.gpus) else machine.memory // cluster.workers


def fits(needed: int, available: int) -> bool:
    """Whether a worker that needs so many bytes may run where so many are available; 0 is unknown."""
    return not available or needed <= MEMORY_FULL * available


def memory_warnings(
    cluster: ClusterConfig, machine: Machine, memory: Mapping[str, int], memory_with: Mapping[str, int]
) -> list[str]:
    """What is wrong where a worker's `memory` (bytes, by use) does not fit, and what it would be `memory_with` other settings."""
    out, needed = [], sum(memory.values())
    if not fits(needed, available := available_memory(cluster, machine)):
        ways = "; ".join(f"{in_bytes(size)} with {setting}" for setting, size in memory_with.items())
        out.append(
            f"a worker needs about {in_bytes(needed)} and has {in_bytes(available)}, of which {MEMORY_FULL:.0%} can be used"
            + (f". It needs {ways}." if ways else "; use more workers or a smaller network.")
        )
    return out
