"""Neighbours against a loop, and what a sheet says of them."""

import numpy as np
import pytest
import torch

from raydino.evals.neighbours import RIGHT, WRONG, Neighbour, nearest, neighbour_sheet


def test_nearest__is_that_of_a_loop_and_leaves_a_query_itself_out() -> None:
    generator = torch.Generator().manual_seed(0)
    bank, queries = torch.randn(20, 6, generator=generator), torch.randn(3, 6, generator=generator)
    queries[1] = 2.5 * bank[7]
    own = torch.tensor([-1, 7, -1])
    rows, cosines = nearest(queries, bank, k=4, leave_out=own)
    for q, query in enumerate(queries):
        scored = []
        for n, row in enumerate(bank):
            if n != own[q]:
                scored.append((-float(query @ row / (query.norm() * row.norm())), n))
        expected = sorted(scored)[:4]
        assert rows[q].tolist() == [n for _, n in expected]
        np.testing.assert_allclose(cosines[q], [-score for score, _ in expected], atol=1e-6)
    assert nearest(queries, bank, k=1)[0][1].item() == 7  # not left out, it is its own neighbour


def test_nearest__k_is_cut_to_what_there_is_and_nothing_is_an_error() -> None:
    bank = torch.eye(3)
    assert nearest(bank, bank, k=9)[0].shape == (3, 3)
    rows, cosines = nearest(bank, bank, k=9, leave_out=torch.arange(3))
    assert rows.shape == (3, 2) and torch.isfinite(cosines).all()
    assert rows.tolist() == [[1, 2], [0, 2], [0, 1]]  # equally near: in the order of the bank
    with pytest.raises(ValueError, match="give at least 2"):
        nearest(bank[:1], bank[:1], k=1, leave_out=torch.tensor([0]))


def frames(label: str, labels: list[str]) -> tuple[int, int]:
    """Pixels of the colours of right and wrong in a sheet."""
    image = torch.full((3, 16, 16), 90, dtype=torch.uint8)
    pixels = np.asarray(neighbour_sheet(image, label, [Neighbour(image, 0.5, name) for name in labels]))
    right, wrong = ((pixels == colour).all(-1).sum() for colour in (RIGHT, WRONG))
    return int(right), int(wrong)


def test_neighbour_sheet__marks_right_and_wrong_only_where_both_labels_are_known() -> None:
    one = frames("cat", ["cat"])[0]
    assert one > 0 and frames("cat", ["cat", "dog", "cat"]) == (2 * one, one)
    assert frames("cat", ["", "dog"]) == (0, one)
    assert frames("", ["cat", "dog"]) == (0, 0) and frames("cat", ["", ""]) == (0, 0)
