"""Ray Train with a number of workers that follows the cluster, through sizes that share the lanes evenly and no others.

Ray 2.60 takes `num_workers=(least, most)` and then uses every number in between, also 3 of (1, 4), on which no order of 8 lanes
is the same. It has no public way to say which numbers will do, so its policy is narrowed here, by as little of its inside as can
be: the one method that counts workers, and the place where the trainer makes its policy. tests/faults runs both.
"""

import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.train import ScalingConfig
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
)
from ray.train.v2._internal.execution.worker_group import WorkerGroupPollStatus, WorkerGroupState

from raydino.launch.engine.lean import LeanTorchTrainer
from raydino.launch.workers.wishes import SAVE

SAVE_SECONDS = 120.0  # for a step and a save; workers that take longer lose what they did since the last checkpoint
ANSWER_SECONDS = 2.0  # a raylet listens all the time; one that does not answer by then is gone or cut off


class EvenSizes(ElasticScalingPolicy):
    """As many workers as live machines have room for, rounded down to one of `sizes`.

    Args:
        scaling_config: what Ray's own policy takes.
        sizes: numbers of workers that may be used, ascending.
        spare: CPUs to leave for reading images; a run whose workers hold all of them waits for its data for ever.
        patience: seconds to wait for the smallest size.
        run_dir: where the workers look for a wish to save.
    """

    def __init__(
        self, scaling_config: ScalingConfig, *, sizes: Sequence[int], spare: float, patience: float, run_dir: Path
    ) -> None:
        super().__init__(scaling_config)
        self._sizes, self._spare, self._patience = tuple(sizes), spare, patience
        self._waiting_since: float | None = None
        self._save = run_dir / SAVE
        self._wanted: tuple[ResizeDecision, float] | None = None

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Ray's decision; raises TimeoutError, which ends the run, where it has been to wait for too long."""
        self._wanted = None
        decision = super().make_decision_for_non_running_worker_group()
        if not isinstance(decision, NoopDecision):
            self._waiting_since = None
            return decision
        now = time.monotonic()
        self._waiting_since = self._waiting_since or now
        if now - self._waiting_since > self._patience:
            has = " and ".join(f"{ray.cluster_resources().get(kind, 0):g} {kind}s" for kind in ("CPU", "GPU"))
            raise TimeoutError(
                f"cluster.min_workers = {self._sizes[0]}: not so many could be started in {self._patience:.0f} s "
                f"(cluster.start_timeout); the cluster has {has}. Add machines, or lower cluster.min_workers."
            )
        return decision

    def make_decision_for_running_worker_group(
        self, worker_group_state: WorkerGroupState, worker_group_status: WorkerGroupPollStatus
    ) -> ScalingDecision:
        """Ray's decision; to grow, only when the state is saved: a resize ends the workers as a kill does. To shrink at once: a
        machine is gone, and who is left waits for it."""
        if self._wanted is not None:
            decision, since = self._wanted
            if self._save.exists() and time.monotonic() - since < SAVE_SECONDS:
                return NoopDecision()
            self._wanted = None
            return decision
        decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
        if isinstance(decision, ResizeDecision) and decision.num_workers > worker_group_state.num_workers:
            self._save.touch()
            self._wanted = decision, time.monotonic()
            return NoopDecision()
        return decision

    def _count_possible_workers(self, reserved_resources: Mapping[str, Mapping[str, float]]) -> int:
        # Reservations outlive a node by up to 20 s, and Ray calls it alive for 15 s: measured, workers asked for there were
        # waited for until a timeout. So its raylet is asked.
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"] and answers(node)}
        room = {node: dict(resources) for node, resources in reserved_resources.items() if node in alive}
        most = super()._count_possible_workers(room)
        each: Any = self.scaling_config._resources_per_worker_not_none.get("CPU", 0.0)
        if each:
            most = min(most, int((ray.cluster_resources().get("CPU", 0.0) - self._spare) / each))
        return fitting(self._sizes, most)


def answers(node: Mapping[str, Any]) -> bool:
    """Whether somebody listens at a node's address."""
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), timeout=ANSWER_SECONDS).close()
    except OSError:
        return False
    return True


def fitting(sizes: Sequence[int], most: int) -> int:
    """The largest of `sizes` that is at most `most`; 0 if there is none."""
    return max((size for size in sizes if size <= most), default=0)


class ElasticTorchTrainer(LeanTorchTrainer):
    """A trainer whose number of workers is decided by what `policy` makes of its scaling configuration."""

    def __init__(self, *arguments: Any, policy: Callable[[ScalingConfig], EvenSizes], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._policy = policy(self.scaling_config)

    def _initialize_and_run_controller(self, **options: Any) -> Any:
        return super()._initialize_and_run_controller(**{**options, "scaling_policy": self._policy})
