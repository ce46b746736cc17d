"""Both ways of attention are the same function."""

import pytest
import torch

from raydino.nn.attention import use_attention
from raydino.nn.backbone import Transformer
from raydino.nn.config import BackboneConfig


@pytest.mark.parametrize("bf16", [False, True])
def test_use_attention__both_ways_agree_in_features_and_gradients(bf16: bool):
    torch.manual_seed(0)
    config = BackboneConfig(name="vit_tiny_patch16_224", patch_size=8, width=48, depth=2, heads=3, registers=2)
    backbone, images = Transformer(config, image_size=32), torch.randn(3, 3, 32, 32)
    came = []
    for fused in (True, False):
        use_attention(backbone, fused=fused)
        assert {block.attn.fused_attn for block in backbone.vit.blocks} == {fused}
        backbone.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            tokens = backbone(images)
        (tokens.cls.float().square().sum() + tokens.patches.float().sum(dim=1).square().sum()).backward()
        came.append((tokens.patches.float(), backbone.vit.blocks[0].attn.qkv.weight.grad))
    for fused, products in zip(*came, strict=True):
        assert not torch.equal(fused, torch.zeros_like(fused))
        torch.testing.assert_close(
            fused, products, rtol=0, atol=float((5e-2 if bf16 else 1e-5) * fused.detach().abs().max())
        )
