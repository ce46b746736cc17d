"""The built-in images are there as a whole or not at all."""

import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from raydino.config import ConfigError
from raydino.curation.synthetic import write_builtin
from raydino.evals.config import KNNConfig, LinearConfig, SegmentationConfig
from raydino.launch import inputs
from raydino.launch.inputs import open_inputs
from raydino.recipe import Recipe
from raydino.shards.keep import KeepMask, write_mask
from raydino.shards.manifest import load
from raydino.shards.schema import Folder


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Built-in images of two files, written slowly enough for two runs to meet; the folders that were written to."""
    folders = []

    def write(folder: str) -> None:
        folders.append(folder)
        Path(folder).mkdir()
        (Path(folder) / "shard").write_text("images")
        for _ in range(1000):
            if len(folders) == 2:
                break
        (Path(folder) / "manifest.json").write_text("{}")

    monkeypatch.setattr(inputs, "write_curated_builtin", write)
    return folders


def test_resolve__two_runs_at_once_share_one_set(tmp_path: Path, writes: list[str]):
    with ThreadPoolExecutor(2) as pool:
        paths = set(pool.map(lambda _: inputs.resolve(Recipe(), tmp_path), range(2)))
    assert paths == {str(tmp_path / "builtin-images")}
    assert sorted(p.name for p in (tmp_path / "builtin-images").iterdir()) == ["manifest.json", "shard"]
    assert [p.name for p in tmp_path.iterdir()] == ["builtin-images"]  # nothing half-written is left
    before = len(writes)
    inputs.resolve(Recipe(), tmp_path)
    assert len(writes) == before


def test_resolve__a_run_killed_while_writing_leaves_no_half_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: list[str]
):
    with monkeypatch.context() as patch:
        patch.setattr(inputs, "write_curated_builtin", lambda folder: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            inputs.resolve(Recipe(), tmp_path)
    assert Path(inputs.resolve(Recipe(), tmp_path), "manifest.json").exists()


def test_resolve__something_else_in_the_place_is_named(tmp_path: Path, writes: list[str]):
    (tmp_path / "builtin-images").mkdir()
    (tmp_path / "builtin-images" / "thesis.txt").touch()
    with pytest.raises(ConfigError, match="move it away"):
        inputs.resolve(Recipe(), tmp_path)
    assert (tmp_path / "builtin-images" / "thesis.txt").exists()


def test_open_inputs__channels_that_no_image_has_are_refused_at_once(tmp_path: Path):
    write_builtin(str(tmp_path / "images"), train=64, test=8)
    changes = {"data.path": str(tmp_path / "images"), "data.normalisation": {"mean": (0.5,), "std": (0.25,)}}
    recipe = Recipe().override({**changes, "backbone.channels": 4})
    with pytest.raises(ConfigError, match=r"backbone\.channels = 4: none of the first 32 images .* give 1 for grey"):
        open_inputs(recipe, str(tmp_path / "images"))
    grey = open_inputs(Recipe().override({**changes, "backbone.channels": 1}), str(tmp_path / "images"))
    assert grey.probe.shape == (1, 224, 224)


def test_open_inputs__training_follows_weights_and_the_bank_does_not(tmp_path: Path):
    out = str(tmp_path / "images")
    write_builtin(out, train=64, test=8)
    recipe = Recipe().override({"data.path": out, "global_batch": 8})
    before = open_inputs(recipe, out)
    weight = np.repeat([1, 0.25], 32).astype(np.float32)
    mask = KeepMask((None,) * 64, (None,) * 64, np.zeros(64, np.int64), weight)
    write_mask(Folder(out), "train", mask, ids=[b"i" * 16] * 64)
    load(Folder(out)).override({"keep": {"train": mask.digest}}).save(Folder(out))
    after = open_inputs(recipe, out)
    assert (before.plan.rows_per_epoch, after.plan.rows_per_epoch, after.plan.kept) == (64, 40, 64)
    ninth = np.concatenate([after.plan.slots(8 * 5 + step) for step in range(5)])
    assert (np.unique(ninth) < 32).sum() == 32 and (np.unique(ninth) >= 32).sum() == 8
    assert sorted(after.labelled.bank.rows) == sorted(before.labelled.bank.rows)
    assert after.collection.manifest.digest != before.collection.manifest.digest


def test_probe__takes_no_memory_for_the_rows_it_does_not_draw(tmp_path: Path):
    rows = 3_000_000

    class Many:
        row_groups = (rows,)

    recipe = Recipe()
    tracemalloc.start()
    probe = inputs._probe(recipe, Many(), None)  # type: ignore[arg-type]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < rows  # a permutation takes 8 bytes a row
    assert len(np.unique(probe.rows)) == inputs.PROBE_IMAGES and probe.rows.min() >= 0 and probe.rows.max() < rows
    assert abs(probe.rows.mean() / rows - 0.5) < 0.05  # from all over
    assert (inputs._probe(recipe, Many(), None).rows == probe.rows).all()  # type: ignore[arg-type]
    Many.row_groups = (10,)
    assert inputs._probe(recipe, Many(), None).rows.tolist() == list(range(10))  # type: ignore[arg-type]


def test_open_inputs__evaluations_of_the_papers_are_used_by_value_and_refused_where_images_do_not_suit(tmp_path: Path):
    write_builtin(str(tmp_path / "images"), train=60, test=20)
    suits = Recipe(evals={"knn": KNNConfig(), "linear": LinearConfig(bank=30)}, global_batch=8)
    opened = open_inputs(suits, str(tmp_path / "images"))
    assert opened.labelled is not None and opened.labelled.test is not None and len(opened.labelled.test) == 20
    with pytest.raises(ConfigError, match=r"evals\.masks: .* does not suit it \(no column 'mask'\)"):
        open_inputs(Recipe(evals={"masks": SegmentationConfig()}, global_batch=8), str(tmp_path / "images"))
