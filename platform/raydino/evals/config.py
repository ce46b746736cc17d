"""Settings of the evaluations that run while training."""

from typing import TYPE_CHECKING, Annotated, Literal

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
    """Weighted k-NN on the teacher's cls feature (DINO, appendix F.1; Wu et al. 2018)."""

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


class KNNGridConfig(KNNConfig):
    """Weighted k-NN for several k, and with few images a class (DINO, appendix F.1; dinov2/eval/knn.py)."""

    ks: tuple[Positive, ...] = (10, 20, 100, 200)
    """Neighbours that vote, besides `k`."""
    shots: tuple[Positive, ...] = ()
    """Images a class of few-shot banks; none without."""
    tries: Positive = 3
    """Few-shot banks of each size, drawn by key; their mean is told."""
    bank: Positive = 2_000_000
    """Most training images to compare with, chosen by key; the default takes all of ImageNet."""
    queries: Positive = 1_000_000
    """Most evaluation images to classify, chosen by key."""

    def build(self) -> "Evaluation":
        """The evaluation."""
        from raydino.evals.knn import KNNGrid

        return KNNGrid(self)


class LinearConfig(EvaluationConfig):
    """A grid of linear heads trained in one pass (DINOv2, appendix B.3)."""

    blocks: tuple[Positive, ...] = (1, 4)
    """Last blocks whose cls tokens a head sees."""
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = (
        1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1,
    )  # fmt: skip
    """For 256 images a batch; scaled with it."""
    epochs: Positive = 10
    """Passes over the training images; published: 10 of 1,250 steps of 1,024 images."""
    least_steps: Positive = 1250
    """Steps at least, as ten passes over a few thousand images teach a head nothing; the published length of one epoch."""
    batch: Positive = 128
    """Images of a step; published: 128 on each of 8 GPUs."""
    crops: Literal["centre", "random"] = "centre"
    """What heads learn from: centre crops, encoded once, or as published random crops with flips, encoded at every step."""
    choose: Literal["held_back", "test"] = "held_back"
    """Where the best head is chosen: on training images held back, or on the test images as published, which is optimistic."""
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the training images that is held back to choose on."""
    bank: Positive = 2_000_000
    """Most training images, chosen by key."""
    queries: Positive = 1_000_000
    """Most test images, chosen by key."""

    def build(self) -> "Evaluation":
        """The evaluation."""
        from raydino.evals.linear import Linear

        return Linear(self)


class LogisticConfig(EvaluationConfig):
    """L2 logistic regression with the strength chosen on held-back training images (DINOv2, section 7.2)."""

    strengths: Positive = 45
    """Values of C, at equal distances of its logarithm."""
    exponents: tuple[float, float] = (-6.0, 5.0)
    """log10 of the least and the largest C."""
    iterations: Positive = 1000
    """Of L-BFGS at most."""
    tolerance: Annotated[float, Field(gt=0)] = 1e-12
    """Largest entry of the gradient at which a fit is done."""
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the training images that C is chosen on."""
    bank: Positive = 2_000_000
    """Most training images, chosen by key."""
    queries: Positive = 1_000_000
    """Most test images, chosen by key."""

    def build(self) -> "Evaluation":
        """The evaluation."""
        from raydino.evals.logistic import Logistic

        return Logistic(self)


class SegmentationConfig(EvaluationConfig):
    """Semantic segmentation from frozen patch tokens (DINOv2, section 7.4)."""

    column: str = "mask"
    """Column of the maps, images of one channel whose numbers are the classes."""
    ignore: tuple[int, ...] = (255,)
    """Numbers that mean no class; CamVid: [11]."""
    side: Positive = 512
    """Shorter side of an image, pixels; brought to whole patches."""
    train_images: Positive = 1000
    """Most training images, chosen by key: their tokens are kept in memory."""
    test_images: Positive = 5000
    """Most images to judge, chosen by key."""
    steps: Positive = 1000
    """Steps of a head; published: 40,000 of 16 augmented crops."""
    batch: Positive = 8
    """Images of a step."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Learning rate of AdamW, after a warm-up of a tenth; cosine to 0."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-3
    """Weight decay."""
    k: Positive = 30
    """Nearest patches that vote in k-NN segmentation."""
    knn_bank: Positive = 20_000
    """Most training patches to compare with, chosen by key."""
    temperature: Annotated[float, Field(gt=0)] = 0.07
    """Temperature of those votes."""

    def build(self) -> "Evaluation":
        """The evaluation."""
        from raydino.evals.segmentation import Segmentation

        return Segmentation(self)


class RetrievalConfig(EvaluationConfig):
    """Mean average precision of nearest neighbours by cosine (DINO, section 4.2.1; DINOv2, section 7.3)."""

    metres: Annotated[float, Field(gt=0)] = 0.25
    """By pose: cameras nearer than this show the same place."""
    degrees: Annotated[float, Field(gt=0)] = 20.0
    """By pose: and differ in direction by less."""
    bank: Positive = 1_000_000
    """Most images of the database, chosen by key, where labels tell what belongs together."""
    queries: Positive = 10_000
    """Most queries, chosen by key, there."""

    def build(self) -> "Evaluation":
        """The evaluation."""
        from raydino.evals.retrieval import Retrieval

        return Retrieval(self)


class DepthConfig(EvaluationConfig):
    """Depth from frozen patch tokens by a linear layer (DINOv2, section 7.4)."""

    column: str = "depth"
    """Column of the maps, images of one channel."""
    per_metre: Annotated[float, Field(gt=0)] = 1000.0
    """What their numbers count; millimetres."""
    least: Annotated[float, Field(gt=0)] = 1e-3
    """Metres of the first bin, below which there is no reading (NYU Depth)."""
    most: Annotated[float, Field(gt=0)] = 10.0
    """Metres of the last bin, above which there is no reading (NYU Depth)."""
    bins: Annotated[int, Field(ge=2)] = 256
    """Bins of depth."""
    side: Positive = 480
    """Shorter side of an image, pixels; brought to whole patches."""
    train_images: Positive = 1000
    """Most training images, chosen by key: their tokens are kept in memory."""
    test_images: Positive = 5000
    """Most images to judge, chosen by key."""
    steps: Positive = 1000
    """Steps of a head; published: 38,400 of 16 augmented images."""
    batch: Positive = 8
    """Images of a step."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Learning rate of AdamW, after a warm-up of a tenth; cosine to 0."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    """Weight decay."""

    def build(self) -> "Evaluation":
        """The evaluation."""
        from raydino.evals.depth import Depth

        return Depth(self)


class CopiesConfig(EvaluationConfig):
    """Copy detection by cls and GeM-pooled patches (DINO, section 4.2.1)."""

    column: str = "group"
    """Column whose value copies of one image share."""
    side: Positive = 320
    """Side to which an image is stretched, pixels; brought to whole patches."""
    power: Annotated[float, Field(gt=0)] = 4.0
    """p of the generalised mean."""
    images: Positive = 10_000
    """Most images, chosen by key: all pairs are compared."""
    whitening: Annotated[int, Field(ge=0)] = 20_000
    """Most images of the training split to learn the whitening from, chosen by key; 0 for none."""

    def build(self) -> "Evaluation":
        """The evaluation."""
        from raydino.evals.copies import Copies

        return Copies(self)


class VideoConfig(EvaluationConfig):
    """Video object segmentation by mask propagation (DINO, section 4.2.2)."""

    column: str = "mask"
    """Column of the masks: 0 the background, every other number an object."""
    order: str = "frame"
    """Column of the frames' numbers."""
    side: Positive = 480
    """Shorter side of a frame, pixels; brought to whole patches."""
    queue: Positive = 7
    """Frames before that labels are taken from, besides the first."""
    radius: Positive = 12
    """Rows and columns of patches within which labels are looked for."""
    top: Positive = 5
    """Most similar patches that are taken."""
    temperature: Annotated[float, Field(gt=0)] = 0.1
    """Temperature of their weights."""

    def build(self) -> "Evaluation":
        """The evaluation."""
        from raydino.evals.video import Video

        return Video(self)


class DiscoveryConfig(EvaluationConfig):
    """Foregrounds by attention and by the first principal component (DINO, section 4.2.2; DINOv2, section 7.5)."""

    column: str = "mask"
    """Column of the masks; what is above 0 is the object."""
    side: Positive = 480
    """Shorter side of an image, pixels; brought to whole patches."""
    images: Positive = 1000
    """Most images, chosen by key."""
    mass: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Share of the attention that a mask holds."""

    def build(self) -> "Evaluation":
        """The evaluation."""
        from raydino.evals.discovery import Discovery

        return Discovery(self)


class SpectrumConfig(EvaluationConfig):
    """Label-free figures of the features: RankMe, spread, uniformity, alignment."""

    queries: Positive = 2000
    """Most images, chosen by key; RankMe needs more than the features have dimensions."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.75
    """Share of the sides that the crop for the alignment keeps."""

    def build(self) -> "Evaluation":
        """The evaluation."""
        from raydino.evals.spectrum import Spectrum

        return Spectrum(self)


class RobustnessConfig(KNNConfig):
    """Consistency over crops and scales, and how much is left when tiles are shuffled or detail is gone."""

    share: Annotated[float, Field(gt=0, le=1)] = 0.75
    """Share of the sides that a corner crop keeps."""
    scale: Annotated[float, Field(gt=0)] = 1.5
    """Times the size at which images are seen again."""
    tiles: Annotated[int, Field(ge=2)] = 4
    """Tiles of a side that are put in another order."""
    factor: Annotated[int, Field(ge=2)] = 4
    """By which images are shrunk and enlarged again."""
    queries: Positive = 2000
    """Most evaluation images, chosen by key."""

    def build(self) -> "Evaluation":
        """The evaluation."""
        from raydino.evals.robustness import Robustness

        return Robustness(self)
