"""Which of two ways attention is computed: torch's fused kernel, or two matrix products with a softmax between them.

Both are the same sum, rounded otherwise. Fused never stores the weights, which is what counts on a GPU.
"""

from typing import Any

from torch import nn


def use_attention(module: nn.Module, *, fused: bool) -> None:
    """Make every timm attention inside `module` compute in one way or the other."""
    for part in module.modules():
        if isinstance(getattr(part, "fused_attn", None), bool):
            whole: Any = part  # timm's classes declare the flag as final for scripting
            whole.fused_attn = fused
