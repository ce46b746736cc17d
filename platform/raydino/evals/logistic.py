"""Logistic regression on frozen cls features: what DINOv2 compares transfer by, with one number to choose.

The protocol is that of DINOv2 (section 7.2; dinov2/eval/log_regression.py): L2-regularised multinomial regression by L-BFGS in
double precision, 45 strengths C = 10^linspace(-6, 5), C chosen on a tenth of the training images, then fitted again on all
of them. scikit-learn's solver takes the place of cuML's: the objective is the same, C times the summed loss plus half the
squared weights.
"""

import logging
import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int

from raydino import collectives
from raydino.evals.config import LogisticConfig
from raydino.evals.evaluation import Evaluation, Labelled
from raydino.evals.features import extract
from raydino.evals.linear import held_back_rows

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

    from raydino.nn.backbone import Backbone

SHARED_OUT = 1_000_000_000
"""Multiplications of a product (rows × width × classes) from which on BLAS may share it out among threads.

OpenBLAS shares out small products as well, and its threads then wait for one another more than they work: on two cores that
others use too, fits took 16 times as long on both as on one at 4 million, 4.5 times at 19 million, 1.5 times at 768 million.
Idle cores, or more of them, were not measured.
"""
_logger = logging.getLogger(__name__)


class Logistic(Evaluation):
    """Logistic regression; returns `top1` (and `top5` from 5 classes on), the score on what was held back and the chosen C."""

    def __init__(self, config: LogisticConfig) -> None:
        """An evaluation by `config`."""
        self.config = config

    @property
    def protocol(self) -> str:
        """The protocol in words."""
        c = self.config
        return (
            f"L2 logistic regression on cls features, L-BFGS of at most {c.iterations} iterations (tolerance {c.tolerance:g}), "
            f"float64; C of {c.strengths} from 10^{c.exponents[0]:g} to 10^{c.exponents[1]:g} chosen on {c.holdout:.0%} of the "
            "training images, then fitted on all of them"
        )

    def run(self, encoder: "Backbone", labelled: Labelled) -> dict[str, float]:
        """Fit on the bank, judge on the queries. Raises ValueError where images are missing or the bank has one class."""
        config, device = self.config, next(encoder.parameters()).device
        bank, queries = (
            extract(encoder, images.at_most(most, seed=labelled.seed), labelled.normalisation, device=device)
            for images, most in ((labelled.bank, config.bank), (labelled.queries, config.queries))
        )
        (x, y), (queries_x, queries_y) = ((f.double().cpu().numpy(), t.cpu().numpy()) for f, t in (bank, queries))
        found = self.sweep(x, y, seed=labelled.seed)
        best = max(found, key=lambda strength: found[strength])  # of equals the first: the strongest regularisation
        votes = np.full((len(queries_x), len(labelled.classes)), -np.inf)
        if collectives.rank() == 0:
            model = self.fit(x, y, best)
            scores = model.decision_function(queries_x)
            votes[:, model.classes_] = scores if scores.ndim == 2 else np.stack([-scores, scores], axis=1)
        own = votes[np.arange(len(votes)), queries_y]
        above = (votes > own[:, None]).sum(1)
        right = [float((np.isfinite(own) & (above < top)).mean()) for top in (1, 5)]
        right = collectives.all_sum(
            torch.tensor(right, dtype=torch.float64, device=device)
        ).tolist()  # rank 0 alone has any
        scores = {"top1": right[0], "top5": right[1]} if len(labelled.classes) >= 5 else {"top1": right[0]}
        return scores | {"held_back_top1": found[best], "chosen_c": best}

    def sweep(self, x: Float[np.ndarray, "N D"], y: Int[np.ndarray, " N"], *, seed: int) -> dict[float, float]:
        """Share of the held-back rows that are right, by C, ascending. The strengths are shared out among the ranks."""
        config = self.config
        learn, held_back = held_back_rows(len(x), share=config.holdout, seed=seed)
        strengths = np.logspace(*config.exponents, config.strengths)
        right = torch.zeros(len(strengths), dtype=torch.float64)
        for index in range(collectives.rank(), len(strengths), collectives.world_size()):
            right[index] = self.fit(x[learn], y[learn], strengths[index]).score(x[held_back], y[held_back])
        device = torch.device("cuda") if torch.cuda.is_available() and collectives.world_size() > 1 else "cpu"
        return dict(zip(strengths.tolist(), collectives.all_sum(right.to(device)).tolist(), strict=True))

    def fit(self, x: Float[np.ndarray, "N D"], y: Int[np.ndarray, " N"], strength: float) -> "LogisticRegression":
        """One fit. Raises ValueError where all rows are of one class."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
        from threadpoolctl import threadpool_limits

        threads = 1 if x.size * len(np.unique(y)) < SHARED_OUT else None  # None: as many as there are
        model = LogisticRegression(C=strength, max_iter=self.config.iterations, tol=self.config.tolerance)
        with warnings.catch_warnings(), threadpool_limits(threads, user_api="blas"):
            # The published tolerance is below what floating point reaches for a large C; the iterations end those fits.
            warnings.simplefilter("ignore", ConvergenceWarning)
            return model.fit(x, y)
