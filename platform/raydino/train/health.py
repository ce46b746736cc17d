"""Signals that tell a healthy run from a collapsed one; docs/health.md shows both.

A run has collapsed when the teacher says the same of every image. Then its targets carry nothing and their divergence from the
student's prediction falls to 0 (DINO, section 5.3). Three signs say so, whichever comes first:

- every image gets the same target: the mean target is as sharp as the single ones, so their mutual information is 0;
- all images share two prototypes or one, because centring does not keep up;
- every image gets the same features: their spread over the sphere is 0.
"""

from collections import deque
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from raydino import collectives
from raydino.tracking.run import COLLAPSED, FEATURE_STD, PROTOTYPES_USED, TEACHER_ENTROPY

WINDOW = 20  # steps that have to agree, so that one odd batch is no alarm
GRACE = 30  # steps from the start that are not judged
LEAST_INFORMATION = 0.05  # nats per image that targets tell apart; healthy runs pass 0.5 within 50 steps
COLLAPSE_ADVICE = (
    "The teacher says the same of all images. Lower method.teacher_temperature or warm it up, keep method.center_momentum near "
    "0.9 and method.teacher_momentum near 1, lower optim.lr; docs/health.md shows what each looks like."
)
LEAST_PROTOTYPES = (
    2.5  # in use, judged where a micro-batch has VIEWS_TO_JUDGE views or more; healthy runs pass 4 by then
)
VIEWS_TO_JUDGE = 16
LEAST_SPREAD = 0.02  # of features, where 1 is even spread


class CollapseAlarm:
    """Watches the diagnostics of every step; the verdict goes up with the other metrics.

    Networks begin with nearly equal outputs, as if collapsed, so nothing is judged before `warmup` steps (at least 30) are over.
    `views` are the teacher's views of a micro-batch: few of them cannot use many prototypes.
    Nothing here waits for the device: values are kept as tensors until `verdict` is asked for.
    """

    def __init__(self, *, warmup: int, views: int) -> None:
        self._seen: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=WINDOW)
        self._begin = max(GRACE, warmup)
        self._least_used = LEAST_PROTOTYPES if views >= VIEWS_TO_JUDGE else 0.0

    def add(self, metrics: Mapping[str, Tensor | float], step: int) -> None:
        """Take in a step's metrics; methods without targets (supervised) have nothing to watch."""
        if step < self._begin:
            return
        if PROTOTYPES_USED in metrics:
            used, entropy = torch.as_tensor(metrics[PROTOTYPES_USED]), torch.as_tensor(metrics[TEACHER_ENTROPY])
            self._seen.append((used.log() - entropy, used, torch.as_tensor(metrics[FEATURE_STD])))

    def verdict(self) -> dict[str, float]:
        """`health/collapsed`: 1 if all of the last steps say so, else 0; empty before there is anything to judge."""
        if len(self._seen) < WINDOW:
            return {}
        information, used, spread = (torch.stack(values).float() for values in zip(*self._seen, strict=True))
        signs = (information < LEAST_INFORMATION, used < self._least_used, spread < LEAST_SPREAD)
        collapsed = torch.stack([sign.all() for sign in signs]).any()
        return {COLLAPSED: float(collapsed)}


@torch.no_grad()
def teacher_distance(*, student: nn.Module, teacher: nn.Module) -> Float[Tensor, ""]:
    """|student - teacher| / |teacher| over all parameters: how far the student has moved within the teacher's memory. All ranks
    call it together."""
    new: list[Tensor] = list(student.parameters())
    old: list[Tensor] = list(teacher.parameters())
    apart = torch.linalg.vector_norm(collectives.norms(torch._foreach_sub(new, old)))
    return apart / torch.linalg.vector_norm(collectives.norms(old))
