"""Which of two ways attention is computed: torch's fused kernel, or two matrix products with a softmax between them.

Both are the same sum, rounded otherwise. Fused never stores the weights, which is what counts on a GPU. On a CPU its backward
pass is slow in bfloat16, and for the few tokens of small crops matrix products win in float32 too.
"""

from typing import Any

import torch
from torch import nn

FEW_TOKENS = 128
"""Up to here matrix products are faster on a CPU in float32 too: 1.7 times at 37 tokens, 1.1 at 101; 0.95 at 145 and 257."""


def use_attention(module: nn.Module, *, fused: bool) -> None:
    """Make every timm attention inside `module` compute in one way or the other."""
    for part in module.modules():
        if isinstance(getattr(part, "fused_attn", None), bool):
            whole: Any = part  # timm's classes declare the flag as final for scripting
            whole.fused_attn = fused


def fused_is_faster(device: torch.device, *, bf16: bool, tokens: int) -> bool:
    """Which way measured faster on `device` for crops of `tokens` tokens."""
    return device.type != "cpu" or not (bf16 or tokens <= FEW_TOKENS)
