"""The built-in images are there as a whole or not at all."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raydino.config import ConfigError
from raydino.curation.synthetic import write_builtin
from raydino.launch import inputs
from raydino.launch.inputs import open_inputs
from raydino.recipe import Recipe


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

    monkeypatch.setattr(inputs, "write_builtin", write)
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
        patch.setattr(inputs, "write_builtin", lambda folder: (_ for _ in ()).throw(KeyboardInterrupt))
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
