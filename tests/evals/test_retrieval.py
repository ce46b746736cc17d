"""Retrieval by labels, by pose and by the benchmark's file, against slow versions."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from sklearn.metrics import average_precision_score

from raydino.evals.config import RetrievalConfig
from raydino.evals.features import extract
from raydino.evals.retrieval import GROUND_TRUTH, Retrieval, apart, scored


def test_scored__equals_scikit_learn_over_queries_that_have_a_relevant_image() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, bank = torch.randn(9, 5, generator=generator), torch.randn(40, 5, generator=generator)
    relevant = np.random.default_rng(0).random((9, 40)) < 0.15
    relevant[4] = False
    cosine = torch.nn.functional.cosine_similarity(queries[:, None], bank[None], dim=-1).numpy()
    expected = [average_precision_score(relevant[q], cosine[q]) for q in range(9) if relevant[q].any()]
    first = [relevant[q][cosine[q].argmax()] for q in range(9) if relevant[q].any()]
    found = scored(queries, bank, relevant)
    assert len(expected) == 8 and found["map"] == pytest.approx(np.mean(expected))
    assert found["recall1"] == pytest.approx(np.mean(first))
    with pytest.raises(ValueError, match="no query has a relevant image"):
        scored(queries, bank, np.zeros_like(relevant))


def test_apart__equals_scipy_rotations() -> None:
    generator = np.random.default_rng(0)
    rotations = Rotation.random(7, random_state=0)
    poses = np.tile(np.eye(4), (7, 1, 1))
    poses[:, :3, :3], poses[:, :3, 3] = rotations.as_matrix(), generator.normal(size=(7, 3))
    metres, degrees = apart(poses[:3], poses[3:])
    assert metres[1, 2] == pytest.approx(np.linalg.norm(poses[1, :3, 3] - poses[5, :3, 3]))
    assert degrees[1, 2] == pytest.approx(np.degrees((rotations[1].inv() * rotations[5]).magnitude()), abs=1e-6)


def test_run__colours_are_retrieved_by_their_labels(colours: Any, small_vit: Any) -> None:
    found = Retrieval(RetrievalConfig()).run(small_vit(), colours(bank=60, queries=30))
    assert found["recall1"] == 1.0 and found["map"] > 0.9


def with_poses(labelled: Any, rows_of: Any, as_png: Any) -> Any:
    def part(count: int, seed: int) -> Any:
        generator = np.random.default_rng(seed)
        images = [as_png(generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)) for _ in range(count)]
        poses = np.tile(np.eye(4), (count, 1, 1))
        poses[:, 0, 3] = np.arange(count) // 2 * 1.0  # pairs stand at one place
        return rows_of(images, {"pose": poses.reshape(count, 16).tolist()})

    return replace(labelled, classes=(), train=part(8, 0), test=part(4, 1))


def test_run__by_pose_against_a_loop(colours: Any, small_vit: Any, rows_of: Any, as_png: Any, monkeypatch: Any) -> None:
    labelled = with_poses(colours(bank=6, queries=6), rows_of, as_png)
    monkeypatch.setattr("raydino.evals.retrieval._ground_truth", lambda labelled: None)
    evaluation = Retrieval(RetrievalConfig())
    assert evaluation.unfit(labelled) is None
    found = evaluation.run(small_vit(), labelled)
    bank, _ = evaluation._posed(small_vit(), labelled, labelled.train)
    queries, poses = evaluation._posed(small_vit(), labelled, labelled.test)
    cosine = torch.nn.functional.cosine_similarity(queries[:, None], bank[None], dim=-1).numpy()
    expected = [average_precision_score(np.arange(8) // 2 == q // 2, cosine[q]) for q in range(4)]
    assert found["map"] == pytest.approx(np.mean(expected))
    metres = [abs(poses[q, 0, 3] - cosine[q].argmax() // 2) for q in range(4)]
    assert found["first_metres"] == pytest.approx(np.median(metres))


class Folder:
    def __init__(self, truth: dict[str, Any]) -> None:
        self.truth = truth

    def files(self) -> list[Any]:
        return [type("Entry", (), {"path": GROUND_TRUTH})]

    def read_bytes(self, path: str) -> bytes:
        return json.dumps(self.truth).encode()


def test_run__the_benchmarks_file_finds_the_copies_and_boxes_cut_the_queries(
    colours: Any, small_vit: Any, rows_of: Any, as_png: Any
) -> None:
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (32, 32, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1) for _ in range(5)]
    framed = np.zeros((200, 200, 3), dtype=np.uint8)
    framed[30:158, 40:168] = images[3]  # the query is image 3 with a black frame, which its box cuts off
    train, test = rows_of([as_png(i) for i in images]), rows_of([as_png(framed)])
    truth = {
        "imlist": ["4", "3", "2", "1", "0"],
        "qimlist": ["0"],
        "gnd": [{"bbx": [40, 30, 168, 158], "easy": [1], "hard": [], "junk": [0]}],
    }
    test.folder = train.folder = Folder(truth)
    labelled = replace(colours(bank=6, queries=6), classes=(), train=train, test=test)
    found = Retrieval(RetrievalConfig()).run(small_vit(), labelled)
    assert found["map_easy"] == found["map_medium"] == found["mp1_easy"] == 1.0
    assert np.isnan(found["map_hard"])
    test.folder.truth["imlist"][0] = "nowhere"
    with pytest.raises(ValueError, match="'nowhere'"):
        Retrieval(RetrievalConfig()).run(small_vit(), labelled)


@pytest.mark.slow
def test_run__two_ranks_find_what_one_finds(
    gloo: Callable[[Callable[[int], Any], int], list[Any]], colours: Any, small_vit: Any
) -> None:
    data = colours(bank=60, queries=31)
    alone = Retrieval(RetrievalConfig()).run(small_vit(), data)
    assert extract(small_vit(), data.queries, data.normalisation, device="cpu")[0].shape == (31, 12)
    for found in gloo(lambda rank: Retrieval(RetrievalConfig()).run(small_vit(), data), 2):
        assert found == pytest.approx(alone, abs=1e-6)
