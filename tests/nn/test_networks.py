"""Backbone, head and teacher against what they are defined to be."""

import pytest
import torch
import torch.nn.functional as F

from raydino.config import ConfigError
from raydino.nn.config import BackboneConfig, HeadConfig
from raydino.nn.ema import update_teacher

TINY = BackboneConfig(name="vit_tiny_patch16_224", patch_size=4, width=32, depth=2, heads=2, registers=2)


def test_backbone__shapes_for_global_and_local_crops():
    backbone = TINY.build(image_size=32, drop_path=0.0)
    for side in (32, 16):
        tokens = backbone(torch.randn(3, 3, side, side))
        assert tokens.cls.shape == (3, 32)
        assert tokens.registers.shape == (3, 2, 32)
        assert tokens.patches.shape == (3, (side // 4) ** 2, 32)


def test_backbone__equals_timm_without_masks():
    backbone = TINY.build(image_size=32, drop_path=0.0)
    images = torch.randn(2, 3, 32, 32)
    features = backbone.vit.forward_features(images)
    torch.testing.assert_close(backbone(images).cls, features[:, 0])
    torch.testing.assert_close(backbone(images).patches, features[:, 3:])


def test_backbone__output_does_not_depend_on_masked_pixels():
    backbone = TINY.build(image_size=32, drop_path=0.0)
    torch.nn.init.normal_(backbone.mask_token)
    images, masks = torch.randn(1, 3, 32, 32), torch.zeros(1, 64, dtype=torch.bool)
    masks[0, 9] = True  # row 1, column 1 of the 8 x 8 grid
    changed = images.clone()
    changed[:, :, 4:8, 4:8] += 5.0
    torch.testing.assert_close(backbone(images, masks).cls, backbone(changed, masks).cls)
    assert not torch.allclose(backbone(images).cls, backbone(changed).cls)


def test_backbone__attention_is_that_of_the_last_block():
    backbone = TINY.build(image_size=16, drop_path=0.0)
    images, seen = torch.randn(2, 3, 16, 16), {}
    last = backbone.vit.blocks[-1].attn
    last.qkv.register_forward_hook(lambda _module, _input, output: seen.update(qkv=output))
    backbone(images)
    query, key, _ = seen["qkv"].view(2, -1, 3, 2, 16).permute(2, 0, 3, 1, 4)
    expected = torch.softmax(query @ key.transpose(-2, -1) / 16**0.5, -1)[:, :, 0, 3:]
    torch.testing.assert_close(backbone.attention(images), expected)


def test_backbone__names_what_is_wrong_with_an_unknown_model():
    with pytest.raises(ConfigError, match=r"backbone\.name = 'vit_nonsense'"):
        BackboneConfig(name="vit_nonsense").build(image_size=224, drop_path=0.0)
    with pytest.raises(ConfigError, match="ResNet"):
        BackboneConfig(name="resnet18").build(image_size=224, drop_path=0.0)


def test_layer_of__orders_embeddings_blocks_and_the_rest():
    backbone = TINY.build(image_size=32, drop_path=0.0)
    layers = {name: backbone.layer_of(name) for name, _ in backbone.named_parameters()}
    assert layers["vit.patch_embed.proj.weight"] == layers["vit.cls_token"] == layers["mask_token"] == 0
    assert layers["vit.blocks.0.norm1.weight"] == 1
    assert layers["vit.blocks.1.mlp.fc1.weight"] == 2
    assert layers["vit.norm.weight"] == 3


def test_head__scores_are_cosines_for_unit_gain():
    head = HeadConfig(prototypes=7, hidden=16, bottleneck=8).build(32)
    features = torch.randn(5, 32)
    bottleneck = head.mlp(features)
    expected = F.cosine_similarity(bottleneck[:, None], head.prototypes.direction[None], dim=-1)
    torch.testing.assert_close(head(features), expected, rtol=1e-4, atol=1e-6)


def test_head__gain_is_trained_only_when_asked():
    for train_gain in (False, True):
        head = HeadConfig(prototypes=7, hidden=16, bottleneck=8, train_gain=train_gain).build(32)
        assert head.prototypes.gain.requires_grad is train_gain


def test_update_teacher__closed_form_after_n_steps():
    teacher, student = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    start, target = teacher.weight.clone(), student.weight.clone()
    for _ in range(10):
        update_teacher(teacher=teacher, student=student, momentum=0.9)
    torch.testing.assert_close(teacher.weight, 0.9**10 * start + (1 - 0.9**10) * target)
