"""Spectra with a closed form."""

import math

import pytest
import torch

from raydino.evals.spectrum import RANKME_EPSILON, feature_std, rankme, spectrum, uniformity


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_rankme__equal_singular_values_give_the_rank(rank: int) -> None:
    torch.manual_seed(0)
    left, right = torch.linalg.qr(torch.randn(40, rank))[0], torch.linalg.qr(torch.randn(16, rank))[0]
    assert rankme(left @ right.T) == pytest.approx(rank, rel=1e-3)


def test_rankme__two_values_by_hand() -> None:
    share = [0.75 + RANKME_EPSILON, 0.25 + RANKME_EPSILON]
    expected = math.exp(-sum(p * math.log(p) for p in share))
    assert rankme(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(expected, rel=1e-9)
    assert rankme(1000 * torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(expected, rel=1e-9)


def test_feature_std__collapsed_is_0_and_spread_out_is_1() -> None:
    torch.manual_seed(0)
    assert feature_std(torch.randn(1, 32).repeat(50, 1) * torch.rand(50, 1)) == pytest.approx(0, abs=1e-6)
    assert feature_std(torch.randn(20_000, 32)) == pytest.approx(1, abs=0.02)
    assert feature_std(torch.tensor([[1.0, 0.0], [-2.0, 0.0]])) == pytest.approx(math.sqrt(2) / 2)  # std 1 and 0


def test_uniformity__coinciding_opposite_and_orthogonal() -> None:
    assert uniformity(torch.ones(5, 3)) == pytest.approx(0)
    assert uniformity(torch.tensor([[1.0, 0.0], [-3.0, 0.0]])) == pytest.approx(-8)  # t = 2, squared distance 4
    assert uniformity(torch.eye(6)) == pytest.approx(-4)  # squared distance 2 everywhere


def test_uniformity__chunks_equal_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    features = torch.randn(33, 7)
    normed = torch.nn.functional.normalize(features.double(), dim=1)
    expected = float(torch.exp(-2 * torch.pdist(normed) ** 2).mean().log())
    monkeypatch.setattr("raydino.evals.spectrum._CHUNK", 10)
    assert uniformity(features) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("shape", [(1, 4), (4,), (2, 2, 2)])
def test_spectrum__refuses_what_has_none(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="N at least 2"):
        spectrum(torch.ones(shape))
