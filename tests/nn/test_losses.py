"""Losses against their definitions written as loops."""

import math

import pytest
import torch
import torch.nn.functional as F

from raydino.nn.losses import dino_loss, ibot_loss, koleo_loss

TEMPERATURE = 0.1


def _scores_and_targets(students: int, teachers: int = 2, images: int = 5, prototypes: int = 37):
    generator = torch.Generator().manual_seed(students)
    scores = torch.randn(students, images, prototypes, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.softmax(3 * torch.randn(teachers, images, prototypes, generator=generator, dtype=torch.float64), -1)
    return scores, targets


def _slow_dino(scores: torch.Tensor, targets: torch.Tensor, global_views: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    sums, pairs = [torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)], 0
    for q in range(len(targets)):
        for v in range(len(scores)):
            if v == q:
                continue
            term = -(targets[q] * F.log_softmax(scores[v] / TEMPERATURE, dim=-1)).sum(-1).mean()
            sums[v >= global_views] = sums[v >= global_views] + term
            pairs += 1
    return sums[0] / pairs, sums[1] / pairs


@pytest.mark.parametrize("students", [2, 4, 10])
def test_dino_loss__equals_all_pairs(students: int):
    scores, targets = _scores_and_targets(students)
    fast = dino_loss(student_scores=scores.clone(), teacher_probs=targets, temperature=TEMPERATURE)
    slow = _slow_dino(scores, targets)
    torch.testing.assert_close(torch.stack(fast).double(), torch.stack(slow), rtol=2e-6, atol=1e-6)
    (fast_gradient,) = torch.autograd.grad(sum(fast), scores)
    (slow_gradient,) = torch.autograd.grad(sum(slow), scores)
    torch.testing.assert_close(fast_gradient, slow_gradient, rtol=1e-4, atol=1e-7)


def test_dino_loss__equals_all_pairs_where_the_teacher_sees_local_crops_too():
    scores, targets = _scores_and_targets(5, teachers=5)
    fast = dino_loss(student_scores=scores.clone(), teacher_probs=targets, temperature=TEMPERATURE, global_views=2)
    slow = _slow_dino(scores, targets, global_views=2)
    torch.testing.assert_close(torch.stack(fast).double(), torch.stack(slow), rtol=2e-6, atol=1e-6)
    (fast_gradient,) = torch.autograd.grad(sum(fast), scores)
    (slow_gradient,) = torch.autograd.grad(sum(slow), scores)
    torch.testing.assert_close(fast_gradient, slow_gradient, rtol=1e-4, atol=1e-7)


def test_dino_loss__is_log_k_for_a_student_that_knows_nothing():
    targets = torch.softmax(torch.randn(2, 3, 64), -1)
    total = sum(dino_loss(student_scores=torch.zeros(10, 3, 64), teacher_probs=targets, temperature=TEMPERATURE))
    assert total.item() == pytest.approx(math.log(64), abs=1e-5)


def test_dino_loss__shares_of_global_and_local_pairs_are_2_and_16_of_18():
    on_global, on_local = dino_loss(
        student_scores=torch.zeros(10, 3, 64), teacher_probs=torch.full((2, 3, 64), 1 / 64), temperature=TEMPERATURE
    )
    assert (on_local / on_global).item() == pytest.approx(8.0, rel=1e-5)


def test_ibot_loss__equals_mean_per_crop_with_unmasked_crops_counting_zero():
    masks = torch.zeros(4, 9, dtype=torch.bool)
    masks[0, :3] = True
    masks[2, 4:9] = True  # crops 1 and 3 are not masked
    count = int(masks.sum())
    scores, targets = torch.randn(count, 11), torch.softmax(torch.randn(count, 11), -1)
    weights = (1.0 / masks.sum(1, keepdim=True).clamp(min=1)).expand_as(masks)[masks]
    fast = ibot_loss(student_scores=scores, teacher_probs=targets, weights=weights, crops=4, temperature=TEMPERATURE)
    entropy = -(targets * F.log_softmax(scores / TEMPERATURE, -1)).sum(-1)
    slow = (entropy[:3].mean() + entropy[3:].mean()) / 4
    torch.testing.assert_close(fast, slow)


def test_koleo_loss__equals_log_of_nearest_distances():
    features = torch.randn(7, 5, dtype=torch.float64)
    unit = features / features.norm(dim=1, keepdim=True)
    nearest = [min((unit[i] - unit[j]).norm().item() for j in range(7) if j != i) for i in range(7)]
    assert koleo_loss(features).item() == pytest.approx(-sum(map(math.log, nearest)) / 7, abs=1e-5)


def test_koleo_loss__is_finite_with_gradient_for_identical_rows():
    features = torch.ones(4, 8, requires_grad=True)
    koleo_loss(features).backward()
    assert torch.isfinite(features.grad).all()


def test_koleo_loss__stays_float32_under_autocast():
    features = torch.randn(6, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = koleo_loss(features)
    torch.testing.assert_close(low, koleo_loss(features), rtol=0, atol=0)


def test_koleo_loss__refuses_a_single_image():
    with pytest.raises(ValueError, match="at least 2 images"):
        koleo_loss(torch.randn(1, 8))
