"""How teacher scores become targets that neither collapse to one prototype nor to the uniform distribution.

Two published ways: subtract a running centre and sharpen (DINO, section 3.1), or three Sinkhorn-Knopp iterations
(SwAV; DINOv2, section 4). A softmax alone is what ablations compare them with.
Letters: N samples of this rank, K prototypes. Samples that are not `valid` are there for the sake of N: they count for nothing.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from raydino import collectives


class Centering(nn.Module):
    """From teacher scores to targets, with whatever has to be remembered between steps."""

    def forward(
        self, scores: Float[Tensor, "N K"], *, temperature: float, valid: Bool[Tensor, " N"] | None = None
    ) -> Float[Tensor, "N K"]:
        """Targets without gradient, each row of a `valid` sample (None: all are) summing to 1, every other one finite."""
        raise TypeError(f"{type(self).__name__} does not define forward")

    def update(self) -> None:
        """Take up what was seen since the last call. All ranks call it together, once per step."""

    def forget(self) -> None:
        """Drop what was seen since the last `update`: the step it belongs to is skipped."""


class SoftmaxCentering(Centering):
    """softmax((scores - centre) / temperature), with the centre a moving average of the scores' mean over samples and ranks.

    The centre used in a step is the one from before it; scores seen since the last `update` (of all micro-batches) enter it then.
    For patches the mean is over all masked patches of all ranks, so it does not depend on how many workers share them.
    """

    center: Tensor

    def __init__(self, prototypes: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("center", torch.zeros(prototypes))
        self._seen: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def forward(
        self, scores: Float[Tensor, "N K"], *, temperature: float, valid: Bool[Tensor, " N"] | None = None
    ) -> Float[Tensor, "N K"]:
        """Targets, each row summing to 1."""
        scores = scores.float()
        if valid is None:
            self._seen.append((scores.sum(dim=0), scores.new_full((), float(len(scores)))))
        else:
            self._seen.append((scores.masked_fill(~valid[:, None], 0.0).sum(dim=0), valid.float().sum()))
        return torch.softmax((scores - self.center) / temperature, dim=-1)

    @torch.no_grad()
    def update(self) -> None:
        """Move the centre towards the mean of the scores seen since the last call. All ranks call it together."""
        if not self._seen:  # no loss asks for these targets; so on all ranks
            return
        total, count = (torch.stack(parts).sum(dim=0) for parts in zip(*self._seen, strict=True))
        total, count = collectives.all_sum(torch.cat([total, count[None]])).split([len(total), 1])
        self._seen.clear()
        mean = total / count.clamp(min=1.0)
        self.center.lerp_(torch.where(count > 0, mean, self.center), 1.0 - self.momentum)

    def forget(self) -> None:
        """Drop what was seen since the last `update`."""
        self._seen.clear()


class NoCentering(Centering):
    """softmax(scores / temperature): sharpening alone, with which one prototype takes all (DINO, section 5.3)."""

    @torch.no_grad()
    def forward(
        self, scores: Float[Tensor, "N K"], *, temperature: float, valid: Bool[Tensor, " N"] | None = None
    ) -> Float[Tensor, "N K"]:
        """Targets, each row summing to 1."""
        return torch.softmax(scores.float() / temperature, dim=-1)


class SinkhornKnopp(Centering):
    """Targets with equal use of all prototypes, by `iterations` of Sinkhorn-Knopp over the samples of all ranks."""

    def __init__(self, iterations: int = 3) -> None:
        super().__init__()
        self.iterations = iterations

    @torch.no_grad()
    def forward(
        self, scores: Float[Tensor, "N K"], *, temperature: float, valid: Bool[Tensor, " N"] | None = None
    ) -> Float[Tensor, "N K"]:
        """Targets, each row summing to 1, those of samples that are not `valid` 0."""
        return sinkhorn_knopp(scores, temperature=temperature, iterations=self.iterations, valid=valid)


def sinkhorn_knopp(
    scores: Float[Tensor, "N K"], *, temperature: float, iterations: int = 3, valid: Bool[Tensor, " N"] | None = None
) -> Float[Tensor, "N K"]:
    """Alternate normalisation of prototypes (over all ranks) and samples of exp(scores / temperature):

        Q = exp(scores / temperature)
        repeat: Q = Q / (sum over samples of all ranks) / K;  Q = Q / (sum over prototypes) / N_total
        return Q * N_total

    Q is diag(rows) E diag(columns) all the time, so an iteration is two products of E with a vector. Samples that are not `valid`
    enter no sum over samples, and their rows are 0.

    Scores may lie any distance apart: E is exp(scores / temperature) with each prototype's largest sample, and then each sample's
    largest prototype, divided down to 1. The sample that is a prototype's largest begins with the weight 1, so the first sums
    over samples lie between 1 and N_total; an iteration changes a weight by no more than a factor of N_total or K. So what
    underflows in E would have stayed below 1e-16 after three iterations with 65,536 samples and prototypes.
    """
    counted = scores if valid is None else scores.masked_fill(~valid[:, None], torch.finfo(scores.dtype).min)
    # A rank may hold no sample (no masked patch), which must not enter the maximum.
    nothing = scores.new_full(scores.shape[1:], torch.finfo(torch.float32).min, dtype=torch.float32)
    peak = collectives.all_max(counted.amax(dim=0).float() if len(scores) else nothing)
    # Without autocast, and by mv, since a GPU may take products of matrices in TensorFloat-32: sums stay in float32.
    with torch.autocast(scores.device.type, enabled=False):
        e = (scores - peak).float()
        if valid is not None:
            e.masked_fill_(~valid[:, None], 0.0)  # finite, whatever padding holds
        e.mul_(1 / temperature)
        largest = e.amax(dim=1, keepdim=True)
        e.sub_(largest).exp_()
        rows, columns = largest.squeeze(1).exp_(), torch.ones_like(peak)
        for _ in range(iterations):
            weights = rows if valid is None else rows * valid
            sums = collectives.all_sum(e.T.mv(weights))
            columns = sums.mean() / sums  # the mean is N_total / K; without it the vectors would drift apart for ever
            rows = e.mv(columns).reciprocal_()
        targets = e.mul_(columns).mul_(rows.unsqueeze(1))
    return targets if valid is None else targets.masked_fill_(~valid[:, None], 0.0)
