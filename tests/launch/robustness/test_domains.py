"""Heads of one domain judged on each, against a slow loop with scikit-learn on features made here; and what is refused."""

import io
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier

from raydino.config import ConfigError
from raydino.evals.config import KNNConfig, LogisticConfig
from raydino.evals.linear import held_back_rows
from raydino.launch.fairness.groups import evened
from raydino.launch.model import open_model
from raydino.launch.robustness.command import main
from raydino.launch.robustness.domains import Domains, across, read_domains
from raydino.launch.robustness.record import JSON_FILE, TABLE_FILE
from raydino.launch.robustness.study import Subject
from raydino.launch.subjects import Asked, open_images
from raydino.shards.schema import content_id
from raydino.tracking.mlflow_run import client_of
from tests.evals.test_images import by_hand

CLASSES = ["red", "green", "blue"]
COLOURS = np.array([[230, 40, 40], [40, 230, 40], [40, 40, 230]])
KNN = KNNConfig(k=5)
LOGISTIC = LogisticConfig(strengths=3, exponents=(-2.0, 1.0), iterations=500, tolerance=1e-5)


class Drawn(NamedTuple):
    data: bytes
    label: int
    domain: str | None


def drawn(number: int, domain: str | None) -> Drawn:
    """A noisy colour; in "turned" each class has the colour of the next in a third of the images, so it is harder there."""
    generator, label = np.random.default_rng(number), number % 3
    hue = (label + (domain == "turned" and number % 9 < 3)) % 3
    pixels = COLOURS[hue] + generator.normal(0, 60, (16, 16, 3))
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "PNG")
    return Drawn(buffer.getvalue(), label, domain)


def write(folder: Path, images: list[Drawn], *, split: str = "test") -> Path:
    folder.mkdir(exist_ok=True)
    columns = {
        "image": [{"bytes": image.data, "path": f"{i}.png"} for i, image in enumerate(images)],
        "label": pa.array([image.label for image in images], pa.int32()),
        "domain": [image.domain for image in images],
        "one": ["same"] * len(images),
        "box": [[1, 2]] * len(images),
    }
    table = pa.table(columns).replace_schema_metadata({"label_names": json.dumps(CLASSES)})
    pq.write_table(table, folder / f"{split}-00000-of-00001.parquet", row_group_size=32)
    return folder


EVERY = [drawn(i, ("plain", "turned", "plain", "turned", None)[i // 3 % 5]) for i in range(150)]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("domains") / "colours", EVERY)


def subject_of(groups: list[str]) -> Subject:
    return Subject("a", 0, open_model(groups[1].partition("=")[2].partition(",")[0]))


def domains_of(folder: Path, subject: Subject, *, column: str = "domain") -> Domains:
    asked = Asked(("m",), {"knn": KNNConfig()}, (), None, None, 0, 0.5, None, None, tracked=False)
    labelled = open_images(asked, str(folder), subject.model)
    return read_domains(column, evened(labelled, [column], field="domains"), path=folder.name)


def test_across__equals_scikit_learn_domain_by_domain(groups: list[str], images: Path) -> None:
    subject = subject_of(groups)
    domains = domains_of(images, subject)
    known = {content_id(image.data): image for image in EVERY}

    def features(ids: tuple[bytes, ...]) -> tuple[np.ndarray, np.ndarray]:
        pixels = np.stack([by_hand(known[i].data, subject.model.size) for i in ids])
        with torch.inference_mode():
            rows = subject.model.backbone(subject.model.normalisation(torch.from_numpy(pixels))).cls
        return rows.double().numpy(), np.array([known[i].label for i in ids])

    assert list(domains.learn) == list(domains.judged) == ["plain", "turned"] and domains.without == 30
    learned = {name: set(part.ids) for name, part in domains.learn.items()}
    for name, part in domains.judged.items():
        assert not learned[name] & set(part.ids)
        assert learned[name] | set(part.ids) == {i for i, image in known.items() if image.domain == name}
        counts = np.bincount([known[i].label for i in part.ids])
        assert counts.max() - counts.min() <= 1
    found = across(subject, domains, knn=KNN, logistic=LOGISTIC, seed=0)
    for source in domains.learn:
        x, y = features(domains.learn[source].ids)
        learn, held_back = held_back_rows(len(x), share=0.1, seed=0)
        settings = {"max_iter": 500, "tol": 1e-5}
        strengths = [10**-2, 10**-0.5, 10**1]
        right = [
            LogisticRegression(C=c, **settings).fit(x[learn], y[learn]).score(x[held_back], y[held_back])
            for c in strengths
        ]
        regression = LogisticRegression(C=strengths[int(np.argmax(right))], **settings).fit(x, y)
        knn = KNeighborsClassifier(5, metric="cosine", weights=lambda apart: np.exp((1 - apart) / 0.07)).fit(x, y)
        for target in domains.judged:
            queries, truth = features(domains.judged[target].ids)
            for head, model in (("knn", knn), ("logistic", regression)):
                expected = balanced_accuracy_score(truth, model.predict(queries))
                assert found[head][source][target] == pytest.approx(expected), (head, source, target)
    assert found["logistic"]["plain"]["plain"] > 0.8 > found["logistic"]["plain"]["turned"]  # a third has other colours


def test_main__domains_from_the_command_line_to_the_files_and_mlflow(
    groups: list[str], images: Path, storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*groups, "--data", str(images), "--domains", "domain", "--images", "75", "--strengths", "2", "--pixels"]
    assert main("", [*words, "--out", str(tmp_path)]) == 0
    page, body = (tmp_path / TABLE_FILE).read_text(), json.loads((tmp_path / JSON_FILE).read_text())
    assert page in capsys.readouterr().out
    assert page.count("| learned from | plain | turned | drop, other domains |") == 5 + 3  # k-NN knows pixels too
    assert "30 images without a value are left out" in page
    assert "**pre-training**: saw none of these images; its own were builtin" in page
    (knn, _) = body["tables"]
    own, other, drop = (knn["figures"][name]["dino"] for name in ("own domain", "other domains", "drop, other domains"))
    cells = {
        s: {t: knn["domains"][s][t]["dino"]["values"]["1"] for t in ("plain", "turned")} for s in ("plain", "turned")
    }
    assert own["values"]["1"] == pytest.approx((cells["plain"]["plain"] + cells["turned"]["turned"]) / 2)
    assert other["values"]["1"] == pytest.approx((cells["plain"]["turned"] + cells["turned"]["plain"]) / 2)
    assert drop["values"]["1"] == pytest.approx(own["values"]["1"] - other["values"]["1"])
    expected = [
        drop["values"][seed] - knn["figures"]["drop, other domains"]["supervised"]["values"][seed] for seed in "01"
    ]
    assert drop["difference"] == pytest.approx(np.mean(expected))
    run = Path(groups[1].partition("=")[2].partition(",")[0])
    run_id = json.loads((run / "run.json").read_text())["mlflow_run_id"]
    client = client_of(f"sqlite:///{storage}/mlflow.db")
    metrics, figures = client.get_run(run_id).data.metrics, knn["figures"]
    assert metrics["robustness-colours/knn_clean"] == pytest.approx(figures["clean"]["supervised"]["values"]["0"])
    assert metrics["robustness-colours/knn_drop_other_domains"] == pytest.approx(
        figures["drop, other domains"]["supervised"]["values"]["0"]
    )
    assert "robustness-colours/logistic_ECE" in metrics
    assert {TABLE_FILE, JSON_FILE} <= {file.path for file in client.list_artifacts(run_id)}


def few(domain: str, count: int) -> list[Drawn]:
    return [drawn(1000 + i, domain) for i in range(count)]


@pytest.mark.parametrize(
    ("column", "more", "said"),
    [
        ("domian", [], "domains = 'domian': faulty has no such column; did you mean domain?"),
        ("id", [], "has no such column; there are box, domain, label, one"),
        ("one", [], "domains = 'one': the images of faulty have 1 values in it; give a column of two or more domains"),
        ("box", [], "domains = 'box': holds lists"),
        ("domain", few("sketch", 30), "domains = 'domain': 15 images of 'sketch' to learn from, and heads want 20"),
        (
            "domain",
            [image for image in few("sketch", 80) if image.label != 1],
            "domains = 'domain': 'sketch' has no image of 'green' to learn from; give images of every class in every domain",
        ),
        (
            "domain",
            [Drawn(b"broken" + bytes([i]), 0, "sketch") for i in range(50)],
            "domains = 'domain': 'sketch': none of 25 labelled images can be decoded",
        ),
    ],
)
def test_read_domains__refuses_in_words(
    column: str, more: list[Drawn], said: str, groups: list[str], tmp_path: Path
) -> None:
    folder = write(tmp_path / "faulty", EVERY + more)
    with pytest.raises(ConfigError) as refused:
        domains_of(folder, subject_of(groups), column=column)
    assert said in str(refused.value)


def test_read_domains__of_two_splits_learns_from_the_training_split(groups: list[str], tmp_path: Path) -> None:
    write(tmp_path / "two", EVERY[:100], split="train")
    domains = domains_of(write(tmp_path / "two", EVERY[100:]), subject_of(groups))
    learned = {i for part in domains.learn.values() for i in part.ids}
    assert learned == {content_id(image.data) for image in EVERY[:100] if image.domain is not None}
