"""Groups are refused unless their runs differ in nothing but how they were trained."""

from pathlib import Path
from typing import Any

import pytest

from raydino.config import ConfigError
from raydino.launch.robustness.groups import read_groups
from raydino.methods.config import DINOConfig
from raydino.recipe import Recipe


def run(folder: Path, *, seed: int = 0, done: int = 3, digest: str = "d", **fields: Any) -> str:
    """A run's folder with a checkpoint that is marked complete, and nothing in it."""
    checkpoint = folder / "checkpoints" / f"step-{done:08d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "COMMIT").touch()
    changes = {name.replace("__", "."): value for name, value in fields.items()}
    recipe = Recipe(method=DINOConfig()).override({"seed": seed, "steps": 3, **changes})
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    (folder / "run.json").write_text(f'{{"data_digest": "{digest}"}}')
    return str(folder)


def test_read_groups__in_order_and_runs_by_seed(tmp_path: Path) -> None:
    a = [run(tmp_path / f"a{seed}", seed=seed) for seed in (2, 0)]
    b = [run(tmp_path / f"b{seed}", seed=seed, optim__lr=1e-3) for seed in (0, 2)]
    groups = read_groups([f"second={b[0]},{b[1]}", f"first = {a[0]}, {a[1]}"])
    assert list(groups) == ["second", "first"]
    assert [[member.seed for member in members] for members in groups.values()] == [[0, 2], [0, 2]]
    assert groups["first"][0].folder == Path(a[1])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"digest": "e"}, "data = 'e' in .*other', but 'd' in .*first'; give runs that are equal in it"),
        ({"global_batch": 32}, "global_batch = 32"),
        ({"steps": 4, "done": 4}, "steps = 4 in .* but 3"),
        ({"backbone__width": 96}, "backbone.width = 96"),
        ({"method__global_crops__size": 48}, r"method\.global_crops\.size = 48"),
        ({"data__keep": "half"}, "data.keep = 'half'"),
        ({"seed": 1}, r"seed = \[1\], but \[0\] in 'one'; give runs of the same seeds"),
        ({"done": 2}, "is at step 2 of 3; let it end, or resume it"),
    ],
)
def test_read_groups__refuses_what_is_not_equal(fields: dict[str, Any], said: str, tmp_path: Path) -> None:
    first, other = run(tmp_path / "first"), run(tmp_path / "other", **fields)
    with pytest.raises(ConfigError, match=said):
        read_groups([f"one={first}", f"two={other}"])


def test_read_groups__refuses_what_is_not_written_so(tmp_path: Path) -> None:
    first = run(tmp_path / "first")
    twin = run(tmp_path / "twin")
    for texts, said in (
        (["one"], "write NAME=RUN,RUN"),
        (["one="], "write NAME=RUN,RUN"),
        ([f"one={first}", f"one={twin}"], "the name 'one' is taken"),
        ([f"pixels={first}"], "the name 'pixels' is taken"),
        ([f"one={first},{twin}"], r"seed = \[0, 0\]: two runs of one seed"),
        ([f"one={tmp_path}"], "has no recipe.yaml"),
        ([], "none is given"),
    ):
        with pytest.raises(ConfigError, match=said):
            read_groups(texts)
    (tmp_path / "first" / "recipe.yaml").write_text("name: x\n")
    with pytest.raises(ConfigError, match="recipe.yaml in .* is of no run"):
        read_groups([f"one={first}"])
