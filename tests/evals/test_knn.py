"""k-NN against nested loops, against scikit-learn, and against a bank whose answer is known."""

import io
import logging
import math
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

from raydino.evals.config import KNNConfig, KNNGridConfig
from raydino.evals.evaluation import Labelled
from raydino.evals.images import ImageSet
from raydino.evals.knn import KNN, KNNGrid, classify, classify_each, few_shot, nearest, pixels_knn


def slow_votes(
    bank: Tensor, labels: Tensor, queries: Tensor, *, classes: int, k: int, temperature: float
) -> list[list[float]]:
    """The protocol in plain Python."""
    result = []
    for query in queries.tolist():
        scored = []
        for i, row in enumerate(bank.tolist()):
            dot = sum(a * b for a, b in zip(query, row, strict=True))
            scored.append((-dot / (math.hypot(*query) * math.hypot(*row)), i))
        votes = [0.0] * classes
        for score, i in sorted(scored)[:k]:
            votes[int(labels[i])] += math.exp(-score / temperature)
        result.append(votes)
    return result


def sample(*, seed: int = 0, bank: int = 60, queries: int = 37, classes: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (bank,), generator=generator)
    return torch.randn(bank, 5, generator=generator), labels, torch.randn(queries, 5, generator=generator)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 1.0), (60, 0.3), (500, 0.07)])
def test_classify__equals_nested_loops(k: int, temperature: float) -> None:
    bank, labels, queries = sample()
    votes = classify(bank, labels, queries, classes=9, k=k, temperature=temperature)  # classes 7 and 8 are nowhere
    expected = torch.tensor(slow_votes(bank, labels, queries, classes=9, k=k, temperature=temperature))
    torch.testing.assert_close(votes / votes.sum(1, True), expected / expected.sum(1, True), rtol=1e-4, atol=1e-6)


def test_classify__equals_scikit_learn() -> None:
    bank, labels, queries = sample(seed=2)
    judge = KNeighborsClassifier(
        n_neighbors=20, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
    ).fit(bank.double().numpy(), labels.numpy())
    votes = classify(bank, labels, queries, classes=7, k=20, temperature=0.07)
    shares = (votes / votes.sum(1, True)).numpy()
    np.testing.assert_allclose(shares, judge.predict_proba(queries.double().numpy()), atol=1e-5)


def test_classify__chunks_do_not_change_votes(monkeypatch: pytest.MonkeyPatch) -> None:
    bank, labels, queries = sample()
    whole = classify(bank, labels, queries, classes=7, k=9, temperature=0.07)
    monkeypatch.setattr("raydino.evals.knn._SCORES", 130)  # two queries at a time
    torch.testing.assert_close(classify(bank, labels, queries, classes=7, k=9, temperature=0.07), whole)


def test_classify__low_temperature_does_not_overflow() -> None:
    bank, labels, queries = sample()
    assert classify(bank, labels, queries, classes=7, k=9, temperature=0.001).isfinite().all()


@pytest.mark.parametrize("fault", ["empty", "label", "nan"])
def test_classify__refuses(fault: str) -> None:
    bank, labels, queries = sample()
    if fault == "empty":
        bank, labels = bank[:0], labels[:0]
    if fault == "label":
        labels[3] = 7
    if fault == "nan":
        queries[0, 0] = float("nan")
    with pytest.raises(ValueError, match="diverged" if fault == "nan" else "labels from 0 to 6"):
        classify(bank, labels, queries, classes=7, k=3, temperature=0.07)


def test_nearest__among_equals_the_first_are_taken() -> None:
    scores = torch.tensor([[1.0, 2.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0], [5.0, 1.0, 4.0, 1.0, 3.0]])
    assert nearest(scores, 3).tolist() == [[0, 1, 2], [0, 1, 2], [0, 2, 4]]


class Output(NamedTuple):
    cls: Tensor


class MeanColour(nn.Module):
    """The mean colour as a feature: it tells the classes below apart perfectly."""

    def __init__(self) -> None:
        super().__init__()
        self.zero = nn.Parameter(torch.zeros(()))

    def forward(self, images: Tensor) -> Output:
        return Output(cls=images.mean((2, 3)) + self.zero)


class Colours:
    """Stands in for a collection: class c is colour c, with noise."""

    def __init__(self, labels: np.ndarray, *, seed: int) -> None:
        palette = np.array(
            [[250, 10, 10], [10, 250, 10], [10, 10, 250], [240, 240, 10], [10, 240, 240], [240, 10, 240]]
        )
        self.row_groups = (len(labels),)
        self.bytes = []
        for i, label in enumerate(labels):
            noise = np.random.default_rng((seed, i)).normal(0, 5, (10, 10, 3))
            buffer = io.BytesIO()
            Image.fromarray((palette[label] + noise).clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
            self.bytes.append(buffer.getvalue())

    def read(self, group: int) -> pa.Table:
        return pa.table({"bytes": self.bytes})


def labelled(*, bank: np.ndarray, queries: np.ndarray, classes: int) -> Labelled:
    def images(labels: np.ndarray, seed: int) -> ImageSet:
        return ImageSet(Colours(labels, seed=seed), np.arange(len(labels)), labels, size=8)  # type: ignore[arg-type]

    return Labelled(bank=images(bank, 0), queries=images(queries, 1), classes=tuple(map(str, range(classes))))


def test_run__perfect_features_are_right_and_a_class_missing_from_the_bank_is_not() -> None:
    bank, queries = np.arange(30) % 5, np.arange(24) % 6  # no bank image of class 5
    scores = KNN(KNNConfig(k=3)).run(MeanColour(), labelled(bank=bank, queries=queries, classes=6))  # type: ignore[arg-type]
    assert scores["top1"] == pytest.approx(20 / 24)
    assert scores["top5"] == pytest.approx(20 / 24)  # a class without a vote is no guess


def test_run__few_classes_have_no_top5_and_a_large_k_says_so(caplog: pytest.LogCaptureFixture) -> None:
    data = labelled(bank=np.arange(6) % 3, queries=np.arange(6) % 3, classes=3)
    with caplog.at_level(logging.WARNING):
        scores = KNN(KNNConfig(k=20)).run(MeanColour(), data)  # type: ignore[arg-type]
    assert scores == {"top1": 1.0}
    assert "k = 20 of a bank of 6" in caplog.text


def test_run__bank_and_queries_are_bounded_by_the_config() -> None:
    data = labelled(bank=np.arange(30) % 3, queries=np.arange(30) % 3, classes=3)
    seen: list[int] = []
    encoder = MeanColour()
    encoder.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    KNN(KNNConfig(k=3, bank=12, queries=7)).run(encoder, data)  # type: ignore[arg-type]
    assert seen == [12, 7]


def test_pixels_knn__equals_loops_over_pixels() -> None:
    data = labelled(bank=np.arange(18) % 6, queries=np.arange(12) % 6, classes=6)
    tables = []
    for images in (data.bank, data.queries):
        pixels, _ = next(images.chunks(np.arange(len(images)), batch=99))
        tables.append(data.normalisation(pixels).flatten(1))
    votes = torch.tensor(
        slow_votes(tables[0], torch.tensor(data.bank.labels), tables[1], classes=6, k=4, temperature=0.07)
    )
    top1 = float((votes.argmax(1) == torch.tensor(data.queries.labels)).float().mean())
    assert pixels_knn(data, KNNConfig(k=4))["top1"] == pytest.approx(top1)


def test_protocol__names_k_and_temperature() -> None:
    assert KNN(KNNConfig(k=10, temperature=0.1)).protocol.startswith("weighted 10-NN, temperature 0.1")


def test_classify_each__equals_classify_for_each_k() -> None:
    bank, labels, queries = sample()
    bank[10:20] = bank[:10]  # equal neighbours
    ks = (20, 1, 7, 500)
    every = classify_each(bank, labels, queries, classes=7, ks=ks, temperature=0.07)
    for k, votes in zip(ks, every, strict=True):
        torch.testing.assert_close(votes, classify(bank, labels, queries, classes=7, k=k, temperature=0.07))
    assert not torch.equal(every[1] > 0, every[2] > 0)


def test_few_shot__takes_so_many_of_each_class_and_others_at_each_try() -> None:
    labels = np.repeat([0, 1, 2], [50, 40, 2])
    first, second = (few_shot(labels, shots=5, seed=1, number=number) for number in (0, 1))
    assert np.bincount(labels[first]).tolist() == [5, 5, 2] and (np.diff(first) > 0).all()
    assert first.tolist() != second.tolist()
    assert first.tolist() == few_shot(labels, shots=5, seed=1, number=0).tolist()


def test_grid__is_knn_for_each_k_and_few_shot_is_the_mean_over_banks() -> None:
    data = labelled(bank=np.arange(40) % 5, queries=np.arange(24) % 6, classes=6)
    found = KNNGrid(KNNGridConfig(k=3, ks=(1, 30), shots=(2,), tries=2)).run(MeanColour(), data)  # type: ignore[arg-type]
    for k in (1, 30):
        assert found[f"top1_k{k}"] == KNN(KNNConfig(k=k)).run(MeanColour(), data)["top1"]  # type: ignore[arg-type]
    assert found["top1"] == found["top1_k3"] == pytest.approx(20 / 24)
    assert found["top1_2shot"] == pytest.approx(20 / 24)  # colours tell the classes apart with two images each as well
