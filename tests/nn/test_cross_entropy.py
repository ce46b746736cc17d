"""Loss and gradient in one pass against torch's log-softmax and autograd."""

import pytest
import torch

from raydino.nn import cross_entropy as module
from raydino.nn.cross_entropy import cross_entropy
from raydino.nn.losses import dino_loss

TEMPERATURE = 0.07


def made(views: int, rows: int, prototypes: int, *, dtype: torch.dtype = torch.float64):
    draw = torch.Generator().manual_seed(views)
    scores = torch.randn(views, rows, prototypes, generator=draw, dtype=torch.float64).to(dtype).requires_grad_()
    probs = torch.softmax(4 * torch.randn(views, rows, prototypes, generator=draw, dtype=torch.float64), -1)
    masses = [1.0 + view for view in range(views)]
    outer = torch.rand(views, rows, generator=draw, dtype=torch.float64)
    return scores, [mass * p for mass, p in zip(masses, probs, strict=True)], masses, outer


def slow(scores, targets, outer):
    losses = -(torch.stack(targets) * torch.log_softmax(scores.double() / TEMPERATURE, dim=-1)).sum(-1)
    (gradient,) = torch.autograd.grad((losses * outer).sum(), scores)
    return losses.detach(), gradient


@pytest.mark.parametrize("at_once", [1, 40, 1 << 20], ids=["a_row", "two_rows_of_a_view", "all"])
def test_cross_entropy__loss_and_gradient_of_every_row(at_once: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "CACHED", at_once)
    scores, targets, masses, outer = made(3, 5, 19)
    expected, gradient = slow(scores, targets, outer)
    losses = cross_entropy(scores, targets, masses, temperature=TEMPERATURE)
    torch.testing.assert_close(losses.detach(), expected)
    (found,) = torch.autograd.grad((losses * outer).sum(), scores)
    torch.testing.assert_close(found, gradient)


def test_cross_entropy__of_half_precision_scores_is_taken_in_float32():
    scores, targets, masses, outer = made(2, 4, 50, dtype=torch.bfloat16)
    expected, gradient = slow(scores, targets, outer)
    losses = cross_entropy(scores, [target.float() for target in targets], masses, temperature=TEMPERATURE)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses.detach().double(), expected, rtol=1e-5, atol=1e-4)
    (found,) = torch.autograd.grad((losses * outer.float()).sum(), scores)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), gradient.double(), rtol=0.02, atol=0.02)


def test_cross_entropy__under_autocast_is_not_rounded_to_bfloat16():
    scores, targets, masses, _ = made(2, 4, 50, dtype=torch.float32)
    targets = [target.float() for target in targets]
    expected = cross_entropy(scores.clone(), targets, masses, temperature=TEMPERATURE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = cross_entropy(scores.clone(), targets, masses, temperature=TEMPERATURE)
    torch.testing.assert_close(losses, expected, rtol=0, atol=0)


@pytest.mark.parametrize("prototypes", [3, 67], ids=["single", "vectors"])  # torch rounds otherwise in vectors
def test_cross_entropy__scores_far_apart_do_not_overflow(prototypes: int):
    far = torch.zeros(1, 1, prototypes)
    far[0, 0, 0], far[0, 0, 2:] = 1e4, -1e4
    scores = far.requires_grad_()
    target = torch.zeros(1, prototypes)
    target[0, 1] = 1
    loss = cross_entropy(scores, [target], [1.0], temperature=TEMPERATURE)
    loss.sum().backward()
    assert loss.item() == pytest.approx(1e4 / TEMPERATURE, rel=1e-5)
    expected = torch.zeros(1, 1, prototypes)
    expected[0, 0, :2] = torch.tensor([1.0, -1.0]) / TEMPERATURE
    torch.testing.assert_close(scores.grad, expected)


def test_cross_entropy__without_gradient_leaves_the_scores_alone():
    scores, targets, masses, outer = made(2, 3, 7)
    before = scores.detach().clone()
    with torch.no_grad():
        losses = cross_entropy(scores, targets, masses, temperature=TEMPERATURE)
    torch.testing.assert_close(losses, slow(scores, targets, outer)[0])
    assert torch.equal(scores.detach(), before)


def test_cross_entropy__gradient_takes_the_place_of_the_scores():
    features, weights = torch.randn(2, 3, 5), torch.randn(7, 5, requires_grad=True)
    scores = torch.nn.functional.linear(features, weights)
    memory = scores.data_ptr()
    targets = list(torch.softmax(torch.randn(2, 3, 7), -1))
    losses = cross_entropy(scores, targets, [1.0, 1.0], temperature=TEMPERATURE)
    (gradient,) = torch.autograd.grad(losses.sum(), scores)
    assert gradient.data_ptr() == memory


def test_cross_entropy__scores_that_something_else_needs_are_not_used_wrongly():
    scores = torch.randn(1, 3, 7, requires_grad=True) * 1.0
    other = (scores**2).sum()  # needs the scores as they were
    losses = cross_entropy(scores, [torch.softmax(torch.randn(3, 7), -1)], [1.0], temperature=TEMPERATURE)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (losses.sum() + other).backward()


def test_cross_entropy__no_rows():
    scores = torch.zeros(1, 0, 8, requires_grad=True)
    loss = cross_entropy(scores, [torch.zeros(0, 8)], [1.0], temperature=TEMPERATURE).sum()
    loss.backward()
    assert loss.item() == 0 and scores.grad is not None and scores.grad.shape == (1, 0, 8)


@pytest.mark.parametrize("teachers", [1, 2, 3])
def test_dino_loss__gradient_for_any_number_of_teacher_views_and_weights_of_its_own(teachers: int):
    scores, _, _, _ = made(5, 4, 11)
    probs = torch.softmax(torch.randn(teachers, 4, 11, dtype=torch.float64), -1)
    on_global, on_local = dino_loss(student_scores=scores.clone(), teacher_probs=probs, temperature=TEMPERATURE)
    (found,) = torch.autograd.grad(0.3 * on_global + 2 * on_local, scores)
    logs = torch.log_softmax(scores / TEMPERATURE, dim=-1)
    total = torch.zeros((), dtype=torch.float64)
    for q in range(teachers):
        for v in range(5):
            if v != q:
                total = total - (0.3 if v < teachers else 2.0) * (probs[q] * logs[v]).sum(-1).mean()
    (expected,) = torch.autograd.grad(total / (teachers * 4), scores)
    torch.testing.assert_close(found, expected)
