"""Settings of distillation. Apart from the method itself so that `--help` need not import torch (2 to 6 s)."""

from typing import TYPE_CHECKING, Annotated, Self

from pydantic import Field, model_validator

from raydino.config import Config
from raydino.methods.config import DINOv2Shared
from raydino.nn.config import BackboneConfig, HeadConfig
from raydino.views import Size

if TYPE_CHECKING:
    from raydino.methods.method import Method


class FrozenTeacher(Config):
    """The run that teaches, and what its network is: `recipes/distill.py --teacher RUN` takes all of it from the run's recipe."""

    weights: Annotated[str, Field(pattern=r"^[^\x00]*$")] = ""
    """Folder of the run, RUN or RUN@STEP; its teacher's backbone, heads and centres are taken."""
    digest: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    """sha256 of those weights; filled in when the run starts, or given to insist on them."""
    size: Size = 224
    """Side of the global crops that it was trained on, or height and width, pixels."""
    backbone: BackboneConfig = BackboneConfig()
    """Its network."""
    head: HeadConfig = HeadConfig(train_gain=True)
    """Its projection head."""
    ibot_head: HeadConfig | None = None
    """Its head for patches; None where `head` serves them."""


class DistillationConfig(DINOv2Shared):
    """Distillation from a frozen teacher (DINOv2, section 5): its losses and crops, but nothing is masked.

    The student has heads of its own with the teacher's numbers of prototypes. Its moving average, which teaches nobody, is judged
    and exported.
    """

    teacher: FrozenTeacher = FrozenTeacher()
    """The frozen teacher."""

    @model_validator(mode="after")
    def _same_prototypes(self) -> Self:
        theirs = self.teacher
        heads = {"head": (self.head, theirs.head)}
        if self.ibot_weight > 0:
            own = "head" if self.ibot_head is None else "ibot_head"
            heads[f"{own} (of patches)"] = (self.ibot_head or self.head, theirs.ibot_head or theirs.head)
        for name, (mine, other) in heads.items():
            if mine.prototypes != other.prototypes:
                raise ValueError(
                    f"{name}.prototypes = {mine.prototypes}: the teacher has {other.prototypes}, and its targets are over those; "
                    f"set it to {other.prototypes}"
                )
        return self

    def check_network(self, backbone: BackboneConfig) -> None:
        """Raise ValueError where student and teacher do not see the same patches of the same pixels."""
        for name in ("patch_size", "channels"):
            own, theirs = getattr(backbone, name), getattr(self.teacher.backbone, name)
            if own != theirs:
                raise ValueError(
                    f"backbone.{name} = {own}: the teacher has {theirs}, and both look at the same crops, patch by patch; "
                    f"set it to {theirs}"
                )

    def build(self, backbone: BackboneConfig, *, steps: int) -> "Method":
        """The method with freshly initialised networks, the frozen teacher's too, for a run of `steps` steps."""
        from raydino.methods.distillation import Distillation

        return Distillation(self, backbone, steps=steps)
