"""Settings of the evaluations that run while training."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from raydino.config import Config
from raydino.views import Positive

if TYPE_CHECKING:
    from raydino.evals.evaluation import Evaluation


class EvaluationConfig(Config):
    """What every evaluation has. A subclass builds its evaluation; its key in `Recipe.evals` is the prefix of its metrics."""

    def build(self) -> "Evaluation":
        """The evaluation."""
        raise TypeError(f"{type(self).__name__} names no evaluation; use KNNConfig or a class of your own")


class KNNConfig(EvaluationConfig):
    """Weighted k-NN on the teacher's cls feature (DINO, section 4.1; Wu et al. 2018)."""

    k: Positive = 20
    """Neighbours that vote."""
    temperature: Annotated[float, Field(gt=0)] = 0.07
    """Temperature of the votes exp(cosine / temperature)."""
    bank: Positive = 50_000
    """Most training images to compare with, chosen by key."""
    queries: Positive = 10_000
    """Most evaluation images to classify, chosen by key."""

    def build(self) -> "Evaluation":
        """The evaluation."""
        from raydino.evals.knn import KNN

        return KNN(self)
