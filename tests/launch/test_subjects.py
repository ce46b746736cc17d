"""Which split is judged: the same by training's rule and by a command's, whatever has labels."""

from pathlib import Path

import pytest
import torch

from raydino.config import ConfigError
from raydino.evals.config import KNNConfig
from raydino.evals.evaluation import labelled_sets
from raydino.launch.subjects import PIXELS, Asked, open_images, opened
from raydino.shards.reader import open_collection
from tests.evals.test_images import png, write_split

ROWS = {"train": 8, "test": 5, "validation": 4, "val": 3, "dev": 2}
"""Images of each split: they tell which one was taken."""


def asked(eval_split: str | None) -> Asked:
    return Asked((PIXELS,), {"knn": KNNConfig()}, (), None, 16, 0, 0.25, None, eval_split, tracked=False)


def write(folder: Path, splits: dict[str, bool]) -> None:
    for number, (split, labelled) in enumerate(splits.items()):
        labels = [0, 1, 0, 1, 0, 1, 0, 1][: ROWS[split]] if labelled else None
        write_split(folder, split, [png(100 * number + i) for i in range(ROWS[split])], labels)


@pytest.mark.parametrize(
    ("splits", "eval_split", "judged", "held_back"),
    [
        ({"train": True, "test": True, "validation": True}, None, "test", False),
        ({"train": True, "test": False, "validation": True}, None, "validation", False),
        ({"train": True, "test": False, "validation": False, "val": True}, None, "val", False),
        ({"train": True, "test": True, "dev": True}, "dev", "dev", False),
        ({"train": True, "dev": True}, None, None, True),
        ({"train": True, "test": False}, None, "test", True),  # what is not labelled may have masks or poses
        ({"train": False, "test": False, "val": True}, None, "val", False),
        ({"train": False, "test": False, "val": False}, None, "test", False),
        ({"train": False, "dev": False}, None, None, False),
    ],
)
def test_open_images__takes_the_split_that_training_takes(
    splits: dict[str, bool], eval_split: str | None, judged: str | None, held_back: bool, tmp_path: Path
) -> None:
    write(tmp_path, splits)
    wanted = asked(eval_split)
    [model] = opened(wanted, torch.device("cpu"))
    found = open_images(wanted, str(tmp_path), model)
    assert found.test is not None and len(found.test) == ROWS[judged or "train"]
    assert (found.train is None) == (judged is None)
    limits = {"holdout": 0.25, "seed": 0, "bank": 99, "queries": 99, "size": 16}
    training = labelled_sets(open_collection(str(tmp_path)), train_split="train", eval_split=eval_split, **limits)
    if not splits["train"]:
        assert training is None and not found.classes
        return
    assert training is not None and (training.keep is not None) == (found.keep is not None) == held_back
    assert (None if training.test is None else len(training.test)) == (judged and ROWS[judged])
    expected = 2 if held_back else ROWS[judged or "train"]
    assert len(training.queries) == len(found.queries) == expected


def test_open_images__a_split_without_labels_that_is_asked_for_is_named(tmp_path: Path) -> None:
    write(tmp_path, {"train": True, "dev": False})
    wanted = asked("dev")
    [model] = opened(wanted, torch.device("cpu"))
    with pytest.raises(ConfigError, match="eval_split = 'dev' has no labels"):
        open_images(wanted, str(tmp_path), model)
