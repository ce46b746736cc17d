"""`recipes/evaluate.py` from the command line to its table, and what it refuses before anything is computed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from raydino.config import ConfigError
from raydino.evals.config import KNNGridConfig, LinearConfig
from raydino.launch import evaluate as command
from raydino.launch.evaluate import EVALS, configured, main
from raydino.launch.results import JSON_FILE, TABLE_FILE, Result, load, save, table
from raydino.launch.subjects import open_images, opened
from raydino.tracking.mlflow_run import client_of
from raydino.tracking.run import (
    ALIGNMENT,
    COPIES_MICRO_AP,
    DEPTH_RMSE,
    DISCOVERY_JACCARD,
    LINEAR_TOP1,
    LOGISTIC_TOP1,
    RETRIEVAL_MAP,
    SEGMENTATION_MIOU,
    TOP1_SHUFFLED,
    VIDEO_JF,
    evaluation_metric,
)

SMALL = ["--set", "linear.least_steps=20", "--set", "linear.epochs=1"]


def test_main__a_run_its_untrained_self_and_pixels_in_one_table_and_in_mlflow(
    run_folder: Path, small_images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", str(run_folder), "--model", f"random:{run_folder}", "--model", "pixels"]
    assert main("", [*words, "--data", str(small_images), *SMALL]) == 0
    out = run_folder / "evaluations"
    results = load(out)
    assert [(r.model, r.evaluation) for r in results] == [
        (model, name) for model in ("small-run@7", "random:small-run", "pixels") for name in ("knn", "linear")
    ]
    assert all(0 <= r.metrics["top1"] <= 1 and r.seconds > 0 and r.protocol and r.images for r in results)
    page = (out / TABLE_FILE).read_text()
    assert page in capsys.readouterr().out and "no head learned from" in page and "queries against" in page
    run_id = json.loads((run_folder / "run.json").read_text())["mlflow_run_id"]
    client = client_of(f"sqlite:///{run_folder.parent}/mlflow.db")
    metrics, name = client.get_run(run_id).data.metrics, small_images.name
    assert metrics[evaluation_metric(f"linear-{name}", "top1")] == pytest.approx(results[1].metrics["top1"])
    assert [m.step for m in client.get_metric_history(run_id, f"knn-{name}/top1")] == [7]
    assert TABLE_FILE in [file.path for file in client.list_artifacts(run_id)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--evals", "knn,magic"], "evals = 'magic': there is no such evaluation; give some of knn"),
        (["--evals", ","], "names nothing"),
        (["--size", "0"], "size = 0"),
        (["--set", "knn.k"], "write EVAL.FIELD=VALUE"),
        (["--set", "depth.side=3"], "'depth' is not among --evals"),
        (["--set", "knn.k=-1"], "knn.k = -1"),
        (["--set", "knn.neighbours=3"], "there is no field 'neighbours'"),
        (["--model", "nowhere"], "model = 'nowhere'"),
        (["--data", "nowhere"], "nowhere"),
        (["--data", "a/images", "--data", "b/images"], "two folders have one name"),
        (["--split", "dev"], "split = 'dev'"),
        (["--evals", "segmentation"], "evals = 'segmentation': no --data suits it"),
    ],
)
def test_main__refuses_in_words_and_with_a_status(
    words: list[str], said: str, run_folder: Path, small_images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [] if "--model" in words else ["--model", str(run_folder)]
    given += [] if "--data" in words else ["--data", str(small_images)]
    with pytest.raises(SystemExit) as left:
        main("", [*given, *words])
    assert left.value.code == 2
    assert said in capsys.readouterr().err


def test_configured__values_are_yaml_and_names_take_dashes() -> None:
    configs = configured(["knn", "linear"], ["knn.ks=[1, 5]", "linear.least-steps=3", "linear.choose=test"])
    assert configs["knn"] == KNNGridConfig(ks=(1, 5))
    assert configs["linear"] == LinearConfig(least_steps=3, choose="test")
    with pytest.raises(ConfigError, match=r"linear\.choose = 'best'"):
        configured(["linear"], ["linear.choose=best"])


def test_evals__every_one_builds_and_says_its_protocol() -> None:
    for name, config in EVALS.items():
        evaluation = config.build()
        assert len(evaluation.protocol) > 40, name


def test_metric_names__are_of_evaluations_that_there_are() -> None:
    later = (LINEAR_TOP1, LOGISTIC_TOP1, RETRIEVAL_MAP, SEGMENTATION_MIOU, DEPTH_RMSE, COPIES_MICRO_AP, VIDEO_JF)
    assert {name.partition("/")[0] for name in (*later, DISCOVERY_JACCARD, ALIGNMENT, TOP1_SHUFFLED)} <= set(EVALS)
    assert evaluation_metric("linear", "top1") == LINEAR_TOP1


def result(model: str, evaluation: str, value: float) -> Result:
    words = {"data_digest": "d" * 64, "protocol": "p", "images": "i", "device": "cpu", "version": "0"}
    return Result(model, "a" * 64, 1, evaluation, "set", metrics={"top1": value}, seconds=0.1, **words)


def test_save__replaces_what_is_done_again_and_keeps_the_rest(tmp_path: Path) -> None:
    save(tmp_path, [result("one", "knn", 0.1), result("one", "linear", 0.2)])
    merged = save(tmp_path, [result("one", "knn", 0.3), result("two", "knn", 0.4)])
    assert [(r.model, r.evaluation, r.metrics["top1"]) for r in merged] == [
        ("one", "knn", 0.3), ("one", "linear", 0.2), ("two", "knn", 0.4),
    ]  # fmt: skip
    assert load(tmp_path) == merged
    assert "| knn | set | top1 | 0.3000 | 0.4000 |" in table(merged)
    assert "| linear | set | top1 | 0.2000 |  |" in table(merged)
    (tmp_path / JSON_FILE).write_text("{")
    with pytest.raises(ConfigError, match="move it away"):
        load(tmp_path)


@pytest.mark.slow
def test_evaluate__two_ranks_find_what_one_finds(
    gloo: Callable[[Callable[[int], Any], int], list[Any]], run_folder: Path, small_images: Path
) -> None:
    words = ["--model", str(run_folder), "--data", str(small_images), "--evals", "knn,linear,retrieval", *SMALL]

    def found(rank: int) -> list[dict[str, float]]:
        asked = command._asked(command._parser("").parse_args(words))
        [model] = opened(asked, torch.device("cpu"))
        labelled = open_images(asked, str(small_images), model)
        evaluations = {name: config.build() for name, config in asked.configs.items()}
        results = command.evaluate(model, evaluations, labelled, data="small", device=torch.device("cpu"))
        return [r.metrics for r in results]

    alone = found(0)
    for each in gloo(found, 2):
        for one, other in zip(each, alone, strict=True):
            assert one == pytest.approx(other, abs=1e-4)
