"""Tokens on the way against the blocks called one by one; pixels as features."""

import pytest
import torch

from raydino.nn.config import BackboneConfig
from raydino.nn.layers import Pixels, last_blocks, layers, patch_size, spaced_blocks


def vit(depth: int = 6, registers: int = 2):
    torch.manual_seed(0)
    config = BackboneConfig(
        name="vit_tiny_patch16_224", patch_size=4, width=12, depth=depth, heads=2, registers=registers
    )
    return config.build(image_size=12, drop_path=0.0).eval()


def test_layers__equal_the_blocks_called_one_by_one():
    network, images = vit(), torch.randn(2, 3, 12, 16)
    tokens, expected = network._embed(images, None), []
    for block in network.vit.blocks:
        tokens = block(tokens)
        expected.append(network.vit.norm(tokens))
    found = layers(network, images, (1, 5, 0, -1))
    for output, block in zip(found, (1, 5, 0, 5), strict=True):
        torch.testing.assert_close(output.cls, expected[block][:, 0])
        torch.testing.assert_close(output.registers, expected[block][:, 1:3])
        torch.testing.assert_close(output.patches, expected[block][:, 3:])
    assert not network.vit.blocks[0]._forward_hooks  # nothing is left behind
    with pytest.raises(IndexError, match="the backbone has 6"):
        layers(network, images, (6,))


def test_blocks__are_those_of_the_papers():
    assert last_blocks(vit(), 4) == (2, 3, 4, 5)
    assert last_blocks(vit(depth=2), 4) == (0, 1)
    assert spaced_blocks(vit(depth=12)) == (2, 5, 8, 11)  # 3, 6, 9, 12 of ViT-S and B
    assert spaced_blocks(vit(depth=24)) == (4, 11, 17, 23)  # 5, 12, 18, 24 of ViT-L
    assert spaced_blocks(vit(depth=3)) == (0, 1, 2)


def test_convolutional_network__has_its_output_alone():
    network = BackboneConfig(name="resnet18", patch_size=32).build(image_size=64, drop_path=0.0).eval()
    assert last_blocks(network, 4) == spaced_blocks(network) == (-1,) and patch_size(network) == 32
    [output] = layers(network, torch.randn(1, 3, 64, 64), (-1,))
    assert output.cls.shape == (1, 512) and output.patches.shape == (1, 4, 512)


def test_pixels__are_averages_of_the_image_and_of_its_patches():
    images = torch.randn(2, 3, 24, 16)
    output = Pixels(side=8, patch_size=8)(images)
    torch.testing.assert_close(output.cls.view(2, 3, 8, 8)[:, :, 2, 3], images[:, :, 6:9, 6:8].mean((2, 3)))
    assert output.patches.shape == (2, 6, 48)
    patch = output.patches[1, 3].view(3, 4, 4)  # row 1, column 1
    torch.testing.assert_close(patch[:, 1, 2], images[1, :, 10:12, 12:14].mean((1, 2)))
    with pytest.raises(ValueError, match="cannot be masked"):
        Pixels()(images, torch.zeros(2, 6))
    assert patch_size(Pixels(patch_size=8)) == 8
