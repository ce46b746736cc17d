"""What preflight judges a run by, as numbers alone."""

from collections.abc import Mapping
from dataclasses import dataclass, field

CHECKPOINT_BYTES_PER_PARAMETER = 16  # float32: student, teacher and AdamW's two moments


@dataclass(frozen=True)
class Facts:
    """Numbers about a run that were computed elsewhere: the plan from the manifest, sizes from the model."""

    images: int
    """Images of an epoch: all that the keep-mask and evaluation leave; with weights, their sum."""
    classes: int
    """Classes among their labels; 0 without labels."""
    dropped: int
    """Images of an epoch that fill no whole global batch."""
    read_amplification: float
    """Rows read in an epoch for each row used; 1 is ideal."""
    parameters: int
    """Parameters of one network, backbone and heads (the teacher has as many); 0 if unknown."""
    share: float = 1.0
    """Of the images that take part, those that an epoch has; below 1 with weights."""
    held_back: int = 0
    """Images of the split that evaluations judge by and no epoch has."""
    used: float = 1.0
    """Of the rows of the split, those that an epoch has: neither masked, nor held back, nor left out by weights."""
    blocks: int = 1
    """Transformer blocks of the network; 0 for a convolutional one."""
    batch_norm: bool = False
    """Whether the network has batch norm."""
    curated: bool = True
    """Whether the images lie in a folder written by curation."""
    store_bytes: int = 0
    """Bytes of Ray's object store that the run fills if images are decoded in the cluster."""
    memory: Mapping[str, int] = field(default_factory=dict)
    """Estimated bytes of one worker at the worst moment of a step, by what they are for; empty if unknown."""
    memory_with: Mapping[str, int] = field(default_factory=dict)
    """The sum with other settings, by setting, where it does not fit."""
    images_per_second: float = 0.0
    """Measured in a probe over all workers; 0 if there was none."""

    @property
    def checkpoint_bytes(self) -> int:
        """Estimated size of a checkpoint."""
        return self.parameters * CHECKPOINT_BYTES_PER_PARAMETER
