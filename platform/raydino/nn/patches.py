"""The patch embedding as one matrix product.

Letters: B crops, C channels, H W pixels, p side of a patch, D width.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class PatchProjection(nn.Conv2d):
    """A convolution whose kernels lie side by side, computed as what it is: every patch times the weights.

    Its parameters are those of the convolution, so weights load from and into any ViT.
    """

    @classmethod
    def like(cls, convolution: nn.Conv2d) -> "PatchProjection":
        """The same with the parameters of `convolution`. Raises ValueError if its kernels overlap or leave a gap."""
        if convolution.kernel_size != convolution.stride or convolution.padding not in ((0, 0), "valid"):
            raise ValueError(f"{convolution} does not cut its images into patches; use it as it is")
        high, wide = convolution.kernel_size
        own = cls(
            convolution.in_channels,
            convolution.out_channels,
            (high, wide),
            stride=(high, wide),
            bias=convolution.bias is not None,
            device="meta",
        )
        own.weight, own.bias = convolution.weight, convolution.bias
        return own

    def forward(self, input: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:  # torch's name for it
        """Every patch's D sums, on the grid of h = H / p by w = W / p patches. Raises RuntimeError if p divides H or W not."""
        high, wide = self.stride
        kind = input.device.type
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):  # not on meta
            # The product would cast the patches; cast before, half the bytes are moved.
            input = input.to(torch.get_autocast_dtype(kind))
        grid = input.unflatten(3, (-1, wide)).unflatten(2, (-1, high))  # B C rows p columns p
        patches = grid.permute(0, 2, 4, 1, 3, 5).flatten(3)
        return F.linear(patches, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)
