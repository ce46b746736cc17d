"""Settings of the methods. Apart from the methods themselves so that `--help` need not import torch (2 to 6 s)."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from raydino.config import Config, Length
from raydino.nn.config import BackboneConfig, HeadConfig
from raydino.schedule import Schedule, constant, cosine
from raydino.views import Crops, Masks, Probability, Size, Views, height_width

if TYPE_CHECKING:
    from raydino.methods.method import Method

Weight = Annotated[float, Field(ge=0)]
Temperature = Annotated[float, Field(gt=0)]


BLUR = {"official": (0.0, 0.9), "paper": (1.0, 0.1)}
"""Probability of blur of the two global crops."""


class Curriculum(Config):
    """A resolution schedule: a first part of the run on smaller crops, the rest at full size.

    DINOv2 has its short high-resolution phase last (section 4), FastDINOv2 trains at half the side for 75 % of the epochs
    (Zhang et al. 2025, arXiv 2507.03779). Position embeddings lie on the grid of the full size from the start and are resampled
    for smaller crops, as they are for local ones, so that no weight changes its shape when the size does.
    """

    length: Length = 0.75
    """How long crops are small; 1.0 is the whole run."""
    global_size: Size = 112
    """Side of the global crops until then, or height and width, pixels."""
    local_size: Size = 48
    """Side of the local crops until then, or height and width, pixels."""


class MethodConfig(Config):
    """What every method has: views, a mean teacher that is judged, and the published rules of its optimiser."""

    last_layer_rule: ClassVar[Literal["no_gradient", "no_rate"]] = "no_gradient"
    """How the prototypes are kept still while frozen: their gradients are dropped, so AdamW keeps no moments (DINO), or their
    learning rate is 0 and their moments go on (DINOv2)."""

    global_crops: Crops = Crops(count=2, size=224, scale=(0.4, 1.0), blur=(1.0, 0.1), solarize=(0.0, 0.2))
    """Large views, seen by student and teacher."""
    local_crops: Crops = Crops(count=8, size=96, scale=(0.05, 0.4), blur=(0.5,))
    """Small views, seen by the student only; count 0 for none."""
    curriculum: Curriculum | None = None
    """Smaller crops for a first part of the run; None trains on crops of one size, as published."""
    teacher_momentum: Schedule = cosine(0.996, 1.0)
    """Weight of the old teacher in its moving average; 0 makes the teacher a copy of the student."""
    learning_rate_batch: Literal["linear/256", "sqrt/1024"] = "linear/256"
    """How `optim.lr` scales with the global batch: DINO lr·B/256, DINOv2 lr·√(B/1024)."""
    clip: Literal["per_tensor", "per_module"] = "per_tensor"
    """What `optim.clip` bounds: the norm of every gradient tensor (DINO) or of each sub-module's gradients (DINOv2)."""

    @model_validator(mode="after")
    def _momentum_is_a_share(self) -> Self:
        momentum = self.teacher_momentum
        for name in ("start", "end", *(("warmup_from",) if momentum.warmup else ())):
            if not 0 <= getattr(momentum, name) <= 1:
                raise ValueError(
                    f"teacher_momentum.{name} = {getattr(momentum, name)}: the share kept of the old teacher is at most 1"
                )
        return self

    @model_validator(mode="after")
    def _curriculum_starts_small(self) -> Self:
        for name in ("global", "local") if self.curriculum is not None else ():
            full: Crops = getattr(self, f"{name}_crops")
            small = height_width(getattr(self.curriculum, f"{name}_size"))
            if full.count and (small[0] > full.height or small[1] > full.width):
                raise ValueError(
                    f"curriculum.{name}_size = {getattr(self.curriculum, f'{name}_size')} is more than {name}_crops.size = "
                    f"{full.size}, and a curriculum starts small; lower it"
                )
        return self

    @property
    def minimum_images(self) -> int:
        """Smallest number of images in a micro-batch that the losses are defined for."""
        return 1

    def lengths(self) -> dict[str, Length]:
        """Parts of the run by field name, each to be shorter than the run."""
        return {"teacher_momentum.warmup": self.teacher_momentum.warmup}

    def views(self, backbone: BackboneConfig) -> Views:
        """What the method asks to see of an image, for a network of this kind."""
        crops = {"global": self.global_crops, "local": self.local_crops}
        return Views(crops=crops, patch_size=backbone.patch_size, channels=backbone.channels)

    def small_views(self, backbone: BackboneConfig) -> Views:
        """`views` at the sizes that the curriculum begins with, or as they are without one."""
        if self.curriculum is None:
            return self.views(backbone)
        sizes = {"crops.global.size": self.curriculum.global_size, "crops.local.size": self.curriculum.local_size}
        return self.views(backbone).override(sizes)

    def check_network(self, backbone: BackboneConfig) -> None:
        """Raise ValueError where the method cannot train a network of this kind."""

    def build(self, backbone: BackboneConfig, *, steps: int) -> "Method":
        """The method with freshly initialised student and teacher, for a run of `steps` steps."""
        raise TypeError(f"{type(self).__name__} names no method; use DINOConfig, DINOv2Config or a class of your own")


class SelfDistillationConfig(MethodConfig):
    """What DINO and DINOv2 share: a head, two temperatures, and targets that do not collapse."""

    head: HeadConfig = HeadConfig()
    """Projection head of student and teacher."""
    student_temperature: Temperature = 0.1
    """Temperature of the student's softmax."""
    teacher_temperature: Schedule = constant(0.04)
    """Temperature of the teacher's softmax; above 0.07 training is unstable (DINO, appendix D)."""
    center_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Weight of the old centre in its moving average."""
    centering: Literal["softmax", "sinkhorn_knopp", "none"] = "softmax"
    """How teacher scores become targets: centred softmax (DINO), Sinkhorn-Knopp (3 iterations, DINOv2's long recipe), or a
    softmax alone, which collapses (DINO, section 5.3), so only for ablations."""
    teacher_sees: Literal["global", "all"] = "global"
    """Which crops the teacher sees: the global ones, so that students go from local to global (DINO, section 3.1), or for
    ablations local ones as well; then every crop is predicted from every other."""
    freeze_last_layer: Length = 0.01
    """How long the prototypes stay frozen at the start (DINO: 1 epoch of 100)."""

    @model_validator(mode="after")
    def _two_global_crops(self) -> Self:
        if self.global_crops.count != 2:
            raise ValueError(
                f"global_crops.count = {self.global_crops.count}: self-distillation pairs exactly 2 global crops"
            )
        return self

    @model_validator(mode="after")
    def _temperature_is_positive(self) -> Self:
        temperature = self.teacher_temperature
        for name in ("start", "end", *(("warmup_from",) if temperature.warmup else ())):
            if getattr(temperature, name) <= 0:
                raise ValueError(f"teacher_temperature.{name} = {getattr(temperature, name)}: a temperature is above 0")
        return self

    def lengths(self) -> dict[str, Length]:
        """Parts of the run by field name, each to be shorter than the run."""
        return {
            **super().lengths(),
            "teacher_temperature.warmup": self.teacher_temperature.warmup,
            "freeze_last_layer": self.freeze_last_layer,
        }


class DINOConfig(SelfDistillationConfig):
    """DINO (Caron et al. 2021, arXiv 2104.14294). Defaults: ViT-S/16 "vanilla", 100 epochs, from the official command line."""

    def build(self, backbone: BackboneConfig, *, steps: int) -> "Method":
        """The method with freshly initialised student and teacher, for a run of `steps` steps."""
        from raydino.methods.dino import DINO

        return DINO(self, backbone, steps=steps)


class DINOv2Shared(SelfDistillationConfig):
    """What DINOv2 and distillation from one of its teachers share: everything but the masks. Defaults: vitl16_short."""

    last_layer_rule: ClassVar[Literal["no_gradient", "no_rate"]] = "no_rate"

    global_crops: Crops = Crops(count=2, size=224, scale=(0.32, 1.0), solarize=(0.0, 0.2))
    """Large views, seen by student and teacher; those of DINOv2's student are masked."""
    local_crops: Crops = Crops(count=8, size=96, scale=(0.05, 0.32))
    """Small views, seen by the student only; count 0 for none."""
    blur: Literal["official", "paper", "custom"] = "official"
    """Probability of blur per view: "official" 0.0, 0.9 and 0.5, as the released weights were trained (the published code inverts
    it); "paper" 1.0, 0.1 and 0.5, as printed; "custom" what the crops say."""
    head: HeadConfig = HeadConfig(train_gain=True)
    """Projection head for the cls token, and for patches too unless `ibot_head` is set."""
    ibot_head: HeadConfig | None = None
    """A head of its own for patches (DINOv2's long recipe); None shares `head`."""
    dino_weight: Weight = 1.0
    """Weight of the cls loss (mean over all teacher-student pairs of views)."""
    ibot_weight: Weight = 1.0
    """Weight of the patch loss."""
    koleo_weight: Weight = 0.1
    """Weight of the KoLeo regulariser, applied to each global view."""
    teacher_temperature: Schedule = constant(0.07, warmup=0.3, warmup_from=0.04)
    """Temperature of the teacher's softmax, cls and patches alike (30 of 100 epochs of warm-up)."""
    teacher_momentum: Schedule = cosine(0.992, 1.0)
    """Weight of the old teacher in its moving average."""
    learning_rate_batch: Literal["linear/256", "sqrt/1024"] = "sqrt/1024"
    """How `optim.lr` scales with the global batch: DINO lr·B/256, DINOv2 lr·√(B/1024)."""
    clip: Literal["per_tensor", "per_module"] = "per_module"
    """What `optim.clip` bounds: the norm of every gradient tensor (DINO) or of each sub-module's gradients (DINOv2)."""

    @model_validator(mode="after")
    def _some_loss(self) -> Self:
        if self.dino_weight == 0 and self.ibot_weight == 0:
            raise ValueError(
                "dino_weight and ibot_weight are both 0; one of them must be positive for the teacher to teach"
            )
        return self

    @model_validator(mode="after")
    def _blur_is_said_once(self) -> Self:
        for name in ("global_crops", "local_crops") if self.blur != "custom" else ():
            if (given := getattr(self, name).blur) != Crops.model_fields["blur"].default:
                raise ValueError(
                    f"{name}.blur = {given}, which blur = {self.blur!r} would override; set blur to 'custom' as well"
                )
        return self

    @property
    def minimum_images(self) -> int:
        """KoLeo needs a nearest neighbour, so two images."""
        return 2 if self.koleo_weight > 0 else 1

    def views(self, backbone: BackboneConfig) -> Views:
        """What the method asks to see of an image, for a network of this kind."""
        blur = {} if self.blur == "custom" else {"crops.global.blur": BLUR[self.blur], "crops.local.blur": (0.5,)}
        return super().views(backbone).override(blur)


class DINOv2Config(DINOv2Shared):
    """DINOv2 (Oquab et al. 2023, arXiv 2304.07193): DINO on masked global crops, plus iBOT and KoLeo. Defaults: vitl16_short."""

    masks: Masks = Masks()
    """Which patches of the global crops the student does not see."""

    @model_validator(mode="after")
    def _ibot_has_masks(self) -> Self:
        if self.ibot_weight > 0 and self.masks.probability == 0:
            raise ValueError("ibot_weight > 0 needs masked crops; set masks.probability above 0 or ibot_weight to 0")
        return self

    def views(self, backbone: BackboneConfig) -> Views:
        """What the method asks to see of an image, for a network of this kind."""
        return super().views(backbone).override({"masks": self.masks if self.ibot_weight > 0 else None})

    def build(self, backbone: BackboneConfig, *, steps: int) -> "Method":
        """The method with freshly initialised student and teacher, for a run of `steps` steps."""
        from raydino.methods.dinov2 import DINOv2

        return DINOv2(self, backbone, steps=steps)


class SupervisedConfig(MethodConfig):
    """Cross-entropy with labels on the same views: the baseline that says what labels would have given the same budget.

    Every crop, global and local, is classified from its cls token by one linear layer. The moving average of the student is kept
    and judged as for the other methods, so that their figures compare.
    """

    classes: Annotated[int, Field(ge=2)] = 10
    """Number of classes; labels are 0 to classes - 1."""
    label_smoothing: Probability = 0.1
    """Share of each target spread over all classes (Szegedy et al. 2016)."""

    def views(self, backbone: BackboneConfig) -> Views:
        """What the method asks to see of an image, and its label."""
        return super().views(backbone).override({"labels": True})

    def build(self, backbone: BackboneConfig, *, steps: int) -> "Method":
        """The method with freshly initialised student and teacher, for a run of `steps` steps."""
        from raydino.methods.supervised import Supervised

        return Supervised(self, backbone, steps=steps)
