"""The patch embedding as a matrix product against torch's convolution."""

import pytest
import torch
from torch import nn

from raydino.nn.patches import PatchProjection


@pytest.mark.parametrize(("sides", "channels", "bias"), [((4, 4), 3, True), ((2, 3), 1, True), ((4, 4), 5, False)])
def test_patch_projection__is_the_convolution_with_its_gradients(sides: tuple[int, int], channels: int, bias: bool):
    convolution = nn.Conv2d(channels, 7, sides, stride=sides, bias=bias).double()
    images = torch.randn(2, channels, 5 * sides[0], 3 * sides[1], dtype=torch.float64, requires_grad=True)
    parameters = [images, *convolution.parameters()]
    expected = convolution(images)
    outer = torch.randn_like(expected)
    gradients = torch.autograd.grad(expected, parameters, outer)
    projection = PatchProjection.like(convolution)
    assert (
        projection.weight is convolution.weight
        and dict(projection.state_dict()).keys() == convolution.state_dict().keys()
    )
    found = projection(images)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, parameters, outer), gradients)


def test_patch_projection__on_a_device_without_autocast():
    convolution = nn.Conv2d(3, 7, 4, stride=4, device="meta")
    assert PatchProjection.like(convolution)(torch.empty(2, 3, 8, 12, device="meta")).shape == (2, 7, 2, 3)


@pytest.mark.parametrize("changed", [{"stride": 2}, {"stride": 4, "padding": 1}])
def test_patch_projection__refuses_kernels_that_do_not_lie_side_by_side(changed: dict[str, int]):
    with pytest.raises(ValueError, match="does not cut its images into patches"):
        PatchProjection.like(nn.Conv2d(3, 7, 4, **changed))


def test_patch_projection__in_autocast_is_the_product_of_what_was_rounded():
    """Pixels are rounded before they are moved about: the same values, half the bytes."""
    convolution = nn.Conv2d(3, 7, 4, stride=4)
    images, outer = torch.randn(2, 3, 8, 12), torch.randn(2, 7, 2, 3)
    patches = nn.functional.unfold(images, 4, stride=4).transpose(1, 2).contiguous()  # [2, 6, 48]
    with torch.autocast("cpu", torch.bfloat16):
        found = PatchProjection.like(convolution)(images)
        product = nn.functional.linear(patches, convolution.weight.flatten(1), convolution.bias)
    assert found.dtype == product.dtype == torch.bfloat16
    expected = product.transpose(1, 2).unflatten(2, (2, 3))
    assert torch.equal(found, expected)
    pairs = [torch.autograd.grad(one.float(), list(convolution.parameters()), outer) for one in (found, expected)]
    for one, other in zip(*pairs, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other)
