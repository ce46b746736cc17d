"""The names of all metrics, and what a tracker has to do. Dashboards, docs and code take the names from here.

A name is `group/thing`; the group is what a page of charts is made of. An evaluation's metrics are its key in
`Recipe.evals` and the names it returns (`knn` and `top1` make `knn/top1`), joined by `evaluation_metric`. Prometheus,
which allows fewer letters, has each under `prometheus_name`.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from PIL.Image import Image

Status = Literal["FINISHED", "FAILED", "KILLED"]
"""How a run ended, in MLflow's words."""

LOSS_TOTAL = "loss/total"
LOSS_DINO_GLOBAL = "loss/dino_global"
LOSS_DINO_LOCAL = "loss/dino_local"
LOSS_IBOT = "loss/ibot"
LOSS_KOLEO = "loss/koleo"
TEACHER_ENTROPY = "teacher/entropy"
TEACHER_KL = "teacher/kl"
PROTOTYPES_USED = "teacher/prototypes_used"  # perplexity of the mean target of a micro-batch, 1..K
TEACHER_MOMENTUM = "teacher/momentum"
TEACHER_TEMPERATURE = "teacher/temperature"
OPTIM_LR = "optim/lr"
OPTIM_WEIGHT_DECAY = "optim/weight_decay"
OPTIM_GRAD_NORM = "optim/grad_norm"  # of all sub-modules, before clipping; each one's own is this, "_" and its name
IMAGES_PER_S = "throughput/images_per_s"
DATA_WAIT = "throughput/data_wait"  # share of the time the worker waited for a batch, 0..1
READ_WAIT = "throughput/read_wait"  # the part of it in which the images to cut were not there yet
STEP_SECONDS = "throughput/step_seconds"
FEATURE_STD = "health/feature_std"  # of the teacher's features of the batch in training
EVAL_FEATURE_STD = "health/eval_feature_std"  # of the teacher's features of the evaluation images
RANKME = "health/rankme"
TEACHER_DISTANCE = "health/teacher_distance"  # |student - teacher| / |teacher| over all parameters
COLLAPSED = "health/collapsed"  # 1 once the targets tell that the run has collapsed, else 0
NOT_FINITE = "health/not_finite_steps"  # skipped since the last line, because a loss or gradient was NaN or infinite
LOSS_SPIKES = "health/loss_spikes"  # steps since the last line whose loss was far above the median of those before
SLOWEST_RANK = "health/slowest_rank"  # the rank that the others wait for
SLOWEST_RATIO = "health/slowest_ratio"  # its own seconds per step, waiting for ranks left out, over the others' median
CHECKPOINT_FAILURES = "checkpoint/failures"  # saves in a row that failed
CHECKPOINT_SECONDS = "checkpoint/seconds"  # that writing took, beside the training
CHECKPOINT_STALL = "checkpoint/stall_seconds"  # that the training waited for it
TRAIN_ACCURACY = "train/accuracy"  # supervised: share of global crops classified rightly
UNIFORMITY = "health/uniformity"
KNN_TOP1 = "knn/top1"
KNN_TOP5 = "knn/top5"
LINEAR_TOP1 = "linear/top1"
LINEAR_TOP5 = "linear/top5"
LOGISTIC_TOP1 = "logistic/top1"
LOGISTIC_TOP5 = "logistic/top5"
RETRIEVAL_MAP = "retrieval/map"
SEGMENTATION_MIOU = "segmentation/miou"  # of the linear head on the last block
SEGMENTATION_KNN = "segmentation/miou_knn"  # without training
DEPTH_RMSE = "depth/rmse"  # metres
DEPTH_DELTA1 = "depth/delta1"  # share of pixels within 1.25 times
COPIES_MICRO_AP = "copies/micro_ap"
VIDEO_JF = "video/jf"
DISCOVERY_JACCARD = "discovery/pca_jaccard"
ALIGNMENT = "spectrum/alignment"
TOP1_SHUFFLED = "robustness/top1_shuffled"  # k-NN of images whose tiles are in another order
PIXELS_TOP1 = "pixels/top1"  # the same k-NN on raw pixels, once at step 0

SWEEP_BEST = "sweep/best"  # the objective of the best configuration, mean over its seeds
SWEEP_CONFIGURATIONS = "sweep/configurations"
SWEEP_FINISHED = "sweep/finished"  # configurations trained to the end
SWEEP_STOPPED = "sweep/stopped"  # configurations stopped early
SWEEP_FAILED = "sweep/failed"
SWEEP_DEVICE_HOURS = "sweep/device_hours"  # that the trials held: hours of GPUs, or of cores

# What only a living run tells, to whoever watches it (launch/gauges.py); the record has the rest.
RUN_STEP = "run/step"  # steps finished
RUN_STEPS = "run/steps"  # of the whole run
RUN_PROGRESS_AT = "run/progress_at"  # when the last step or evaluation ended, seconds since 1970
RUN_DISK_FREE = "run/disk_free_bytes"  # of the storage of the run's folder
RUN_DISK_SIZE = "run/disk_size_bytes"
NOT_FINITE_TOTAL = "health/not_finite_steps_total"  # since the worker started
LOSS_SPIKES_TOTAL = "health/loss_spikes_total"
DATA_ROWS = "data/rows"  # of an epoch
DATA_IMAGES_SEEN = "data/images_seen"
DATA_QUARANTINED = "data/quarantined"  # lines of the run's quarantine table
TRACKER_BACKLOG = "tracker/backlog_bytes"  # of the record that the tracker has not taken
TRACKER_BEHIND = "tracker/behind_seconds"  # since the oldest line of the backlog was logged
SWEEP_RUNNING = "sweep/running"  # trials

LOSS_GROUP = "loss"
DISPLAYED_GROUP = "displayed"  # losses in the unit of DINOv2's official logs
SYSTEM_GROUP = "system"
ABLATION_GROUP = "ablation"  # of an ablation's parent: each variant's mean over seeds


def evaluation_metric(evaluation: str, name: str) -> str:
    """The metric name of what an evaluation returned: `evaluation_metric("knn", "top1") == KNN_TOP1`."""
    return f"{evaluation}/{name}"


def prometheus_name(name: str) -> str:
    """The name under which Ray shows a metric to Prometheus: `prometheus_name("loss/total") == "ray_raydino_loss_total"`."""
    return "ray_raydino_" + re.sub("[^a-zA-Z0-9_]", "_", name)


class Run(Protocol):
    """Where a run is recorded. No call waits for a network, none raises because a tracker is unreachable."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record the metrics of `step`. Raises ValueError for a name or a step that no tracker could hold."""
        ...

    def picture(self, name: str, image: "Image", step: int) -> Path:
        """Record a picture under `name` (as `attention`, or `pictures/attention`) at `step`; returns its file."""
        ...

    def artifact(self, path: Path) -> None:
        """Record a file. Raises FileNotFoundError if it is not there."""
        ...

    def close(self, status: Status) -> None:
        """End the record; waits a bounded time for what is still on its way."""
        ...
