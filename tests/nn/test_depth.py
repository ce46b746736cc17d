"""Stochastic depth on subsets, against what it is defined to be."""

import pytest
import torch

from raydino.nn.config import BackboneConfig
from raydino.nn.depth import residual

TINY = BackboneConfig(name="vit_tiny_patch16_224", patch_size=4, width=32, depth=3, heads=2)


@pytest.mark.parametrize(("batch", "rate", "kept"), [(8, 0.3, 5), (10, 0.4, 6), (3, 0.9, 1), (1, 0.5, 1), (7, 0.0, 7)])
def test_residual__computes_the_branch_for_floor_of_the_kept_share_and_scales_it(batch: int, rate: float, kept: int):
    seen, x = [], torch.randn(batch, 2, 4)

    def branch(part: torch.Tensor) -> torch.Tensor:
        seen.append(len(part))
        return part**2

    change = (residual(x, branch, rate=rate) - x) / x**2
    assert seen == [kept]
    touched = change.abs().sum(dim=(1, 2)) > 0
    assert touched.sum() == kept
    torch.testing.assert_close(change[touched], torch.full((kept, 2, 4), batch / kept), rtol=1e-3, atol=1e-4)


def test_residual__expectation_is_that_of_the_whole_branch():
    torch.manual_seed(0)
    x = torch.rand(6, 2, 3) + 1
    mean = torch.stack([residual(x, lambda part: 2 * part, rate=0.4) for _ in range(4000)]).mean(0)
    torch.testing.assert_close(mean, 3 * x, rtol=0.06, atol=0.0)


def test_residual__gradient_reaches_kept_samples_through_the_branch_and_all_past_it():
    torch.manual_seed(0)
    x = torch.randn(4, 1, 2, requires_grad=True)
    residual(x, lambda part: 3 * part, rate=0.5).sum().backward()
    assert sorted(x.grad[:, 0, 0].tolist()) == [1.0, 1.0, 7.0, 7.0]


def test_backbone__batch_subset_holds_one_rate_in_all_blocks_and_none_in_eval_mode():
    backbone = TINY.override({"stochastic_depth": "batch_subset"}).build(image_size=16, drop_path=0.5)
    seen: list[int] = []
    for block in backbone.vit.blocks:
        for branch in (block.attn, block.mlp):
            branch.register_forward_pre_hook(lambda _module, arguments: seen.append(len(arguments[0])))
    images = torch.randn(9, 3, 16, 16)
    backbone(images)
    assert seen == [4] * 6
    seen.clear()
    backbone.eval()
    plain = TINY.build(image_size=16, drop_path=0.0)
    plain.load_state_dict(backbone.state_dict())
    torch.testing.assert_close(backbone(images).cls, plain(images).cls)
    assert seen == [9] * 6


def test_backbone__per_sample_rate_grows_linearly_over_the_blocks():
    backbone = TINY.build(image_size=16, drop_path=0.3)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in backbone.vit.blocks]
    assert rates == pytest.approx([0.0, 0.15, 0.3])
