"""Rows 1 to 16 of the matrix of bad input (docs/reliability.md): configurations. All are refused before Ray starts."""

from pathlib import Path

import numpy as np
import pytest

from raydino.config import ConfigError, read_yaml, read_yaml_file
from raydino.data.crops import Cropper
from raydino.launch.checks.machine import Machine
from raydino.launch.checks.numbers import Facts
from raydino.launch.checks.preflight import check
from raydino.launch.cluster import ClusterConfig
from raydino.launch.inputs import open_inputs
from raydino.launch.resume import run_meant
from raydino.recipe import Recipe
from raydino.views import Crops, Views

FACTS = Facts(images=10_000, classes=10, dropped=0, read_amplification=1.0, parameters=1000)
MACHINE = Machine(cpus=16, gpus=0, memory=64 * 10**9, shared_memory=8 * 10**9, python=(3, 11), ray="2.60.0")

REFUSED = [  # row, YAML, what the message says
    ("1", "stepz: 5", ["stepz", "'steps'"]),
    ("1", "optim: {lrr: 1}", ["optim.lrr", "'lr'"]),
    ("2", "optim: {lr: fast}", ["optim.lr = 'fast'", "number"]),
    ("2", "optim: {lr: true}", ["lr = true", "give a number"]),
    ("2", "optim: {lr: 2024-01-01}", ["optim.lr = '2024-01-01'"]),
    ("2", "seed: 1:30", ["seed = '1:30'"]),  # YAML 1.1 reads 90
    ("3", "on: no", ["'on'", "known here"]),
    ("3", "data: {off: 1}", ["data.off"]),
    ("3", "true: 1", ["True"]),
    ("3", "? [a, b]\n: 1", ["line 1", "a key is a word"]),
    ("4", "seed: 1\nsteps: 2\nseed: 3", ["'seed'", "lines 1 and 3"]),
    ("4", "optim:\n  lr: 1\n  lr: 2", ["'lr'", "lines 2 and 3"]),
    ("5", "optim: {lr: .nan}", ["optim.lr"]),
    ("5", "optim: {lr: nan}", ["optim.lr = 'nan'", "finite"]),
    ("5", "optim: {lr: 1e999}", ["optim.lr = inf", "finite"]),
    ("5", "optim: {lr: -0.1}", ["optim.lr = -0.1", "greater than 0"]),
    ("5", "optim: {lr: 0}", ["optim.lr = 0", "greater than 0"]),
    ("6", "global_batch: 63", ["global_batch = 63", "lanes = 8", "use 64"]),
    ("7", "method: {global_crops: {size: 225}}", ["global_crops.size = 225", "patch_size = 16", "use 224"]),
    ("7", "method: {local_crops: {size: 100}}", ["local_crops.size = 100", "use 96"]),
    ("8", "optim: {warmup: 1000}", ["optim.warmup = 1000", "whole run of 1000 steps", "shorten"]),
    ("8", "optim: {warmup: 5000}", ["optim.warmup = 5000"]),
    ("8", "optim: {warmup: 1.0}", ["optim.warmup = 1.0"]),
    ("8", "method: {teacher_temperature: {warmup: 1000}}", ["teacher_temperature.warmup = 1000"]),
    ("9", "method: {teacher_momentum: {start: 1.5}}", ["teacher_momentum.start = 1.5", "at most 1"]),
    ("9", "method: {teacher_temperature: {warmup_from: 0}}", ["teacher_temperature.warmup_from = 0", "above 0"]),
    ("9", "method: {student_temperature: 0}", ["student_temperature = 0", "greater than 0"]),
    ("10", "_target_: os.system", ["_target_", "known here"]),
    ("10", "method: {_target_: torch.hub.load, _args_: [x]}", ["_target_"]),
    ("10", "evals: {knn: {_target_: pathlib.Path.unlink}}", ["evals.knn._target_"]),
    ("11", "name: !!python/object/apply:os.system [ls]", ["not valid YAML", "python/object"]),
    ("11", "a: &a [x]\nb: [*a, *a]", ["aliases", "line 2", "write the value out"]),
    ("11", "name: " + "x" * 1_000_000, ["1,000,000 bytes"]),
    ("11", "data: [" + "1," * 200_000 + "1]", ["10,000 values"]),
    ("11", "data: " + "[" * 100_000, ["32 levels"]),
    ("11", "seed: !!int x", ["not valid YAML"]),
    ("11", "seed: " + "9" * 5000, ["not valid YAML"]),
    ("12", "- steps\n- 5", ["mapping"]),
    ("12", "steps: [", ["not valid YAML", "line 1"]),
    ("12", "data: {path: ''}", ["data.path = ''"]),
    ("12", 'data: {path: "a\\0b"}', ["data.path"]),
]


@pytest.mark.parametrize(("row", "text", "says"), REFUSED, ids=[f"{row} {text[:40]!r}" for row, text, _ in REFUSED])
def test_recipe__is_refused_with_field_value_and_remedy(row: str, text: str, says: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        Recipe().from_yaml(text, origin="my.yaml")
    assert all(word in str(refused.value) for word in says), str(refused.value)[:300]
    assert len(str(refused.value)) < 2000  # a megabyte of input is not echoed


def test_row_2__numbers_written_as_text_become_numbers_of_the_fields_type() -> None:
    recipe = Recipe().from_yaml('optim: {lr: 1e-3, min_lr: "1e-5"}\nsteps: "200"\nseed: 010')
    assert (recipe.optim.lr, recipe.optim.min_lr, recipe.steps, recipe.seed) == (1e-3, 1e-5, 200, 10)
    assert [type(value) for value in (recipe.optim.lr, recipe.optim.min_lr, recipe.steps)] == [float, float, int]


@pytest.mark.parametrize("name", ["1e5", "no", "2024-01-01", "010", "null", "true", "1.5"])
def test_row_2__a_name_that_looks_like_something_else_stays_text(name: str) -> None:
    assert Recipe().from_yaml(Recipe(name=name).to_yaml()).name == name


@pytest.mark.parametrize(
    ("workers", "accumulate", "says"),
    [
        (3, 1, ["lanes = 8", "[1, 2, 4, 8]"]),
        (8, 16, ["global_batch = 64", "use global_batch = 128", "[1, 2, 4, 8, 16,"]),
    ],
)
def test_row_6__a_batch_that_workers_cannot_share_lists_what_they_can(
    workers: int, accumulate: int, says: list[str], tmp_path
) -> None:
    message = _refused(tmp_path, cluster={"workers": workers, "accumulate": accumulate})
    assert all(word in message for word in says), message


def test_row_7__a_crop_larger_than_the_image_is_no_fault_here() -> None:
    """The matrix refuses it. A crop is a share of the image's area, brought to size, so CIFAR trains at 224."""
    views = Views(crops={"global": Crops(count=2, size=224, scale=(0.4, 1.0))})
    out = {name: np.zeros(shape, np.uint8) for name, shape in views.shapes().items()}
    image = np.full((32, 32, 3), 90, np.uint8)
    Cropper(views, seed=0).cut(image, epoch=0, sample=b"x" * 16, out=out)
    assert all((array.max(axis=(1, 2, 3)) > 0).all() for array in out.values())


@pytest.mark.parametrize("kind", ["absent", "folder", "binary", "utf-16", "device"])
def test_row_12__a_file_that_is_none(kind: str, tmp_path: Path) -> None:
    file = {"folder": tmp_path, "device": "/dev/zero"}.get(kind, tmp_path / "my.yaml")
    if kind == "binary":
        file.write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe\x00")
    if kind == "utf-16":
        file.write_text("steps: 5", encoding="utf-16")
    with pytest.raises(ConfigError, match="give an existing YAML file|not valid YAML|bytes; a configuration"):
        read_yaml_file(Path(file))


@pytest.mark.parametrize("data", [b"\xef\xbb\xbfsteps: 5\n", b"steps: 5\r\nseed: 1\r\n", b"", b"# nothing\n"])
def test_row_12__byte_order_mark_crlf_and_emptiness_are_accepted(data: bytes, tmp_path) -> None:
    (tmp_path / "my.yaml").write_bytes(data)
    assert Recipe().override(read_yaml_file(tmp_path / "my.yaml")).steps == (5 if b"5" in data else Recipe().steps)


def test_row_13__no_variable_of_the_environment_is_ever_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The matrix refuses unset names and hides secrets; a file that can name no variable does both."""
    monkeypatch.setenv("MY_SECRET", "hunter2")
    with pytest.raises(ConfigError, match=r"optim\.lr = '\$\{MY_SECRET\}'") as refused:
        Recipe().from_yaml("optim: {lr: '${MY_SECRET}'}")
    assert "hunter2" not in str(refused.value)
    recipe = Recipe().from_yaml("data: {path: '${MY_SECRET}/images'}")
    with pytest.raises(ConfigError, match=r"\$\{MY_SECRET\}/images") as refused:
        open_inputs(recipe, recipe.data.path)
    assert "hunter2" not in str(refused.value)


def test_row_14__koleo_with_one_image_per_worker(tmp_path) -> None:
    message = _refused(tmp_path, recipe={"global_batch": 8}, cluster={"workers": 8})
    assert all(word in message for word in ("leaves 1 image", "need 2", "raise global_batch to 16", "koleo_weight = 0"))


@pytest.mark.parametrize("precision", ["fp16", "float16", "fp8"])
def test_row_15__arithmetic_that_training_does_not_survive(precision: str) -> None:
    with pytest.raises(ConfigError, match=f"precision = '{precision}': Input should be 'auto', 'bf16' or 'fp32'"):
        ClusterConfig().override({"precision": precision})


@pytest.mark.parametrize("change", [{"seed": 1}, {"global_batch": 128}, {"steps": 999}, {"optim.lr": 1e-3}])
def test_row_16__a_changed_recipe_takes_up_a_run_only_where_that_is_allowed_by_name(
    change: dict, tmp_path: Path
) -> None:
    (field, value) = next(iter(change.items()))
    folder, changed = tmp_path / Recipe().id, Recipe().override(change)
    folder.mkdir()
    (folder / "recipe.yaml").write_text(Recipe().to_yaml())
    (folder / "run.json").write_text("{}")
    with pytest.raises(ConfigError) as refused:
        run_meant(changed, tmp_path, resume=True)
    assert all(word in str(refused.value) for word in (field, str(value), "--allow-change"))
    assert run_meant(changed, tmp_path, resume=True, allow=(field,)).run_dir == folder
    assert run_meant(changed, tmp_path, resume=False).run_dir == tmp_path / changed.id  # without it, another run


def _refused(folder, *, recipe: dict | None = None, cluster: dict | None = None) -> str:
    with pytest.raises(ConfigError) as refused:
        check(
            Recipe().override(recipe or {}),
            ClusterConfig(storage=str(folder)).override(cluster or {}),
            facts=FACTS,
            machine=MACHINE,
        )
    return str(refused.value)


def test_read_yaml__a_file_of_the_largest_allowed_shape_is_read() -> None:
    wide = "a: [" + ", ".join("1" for _ in range(9_000)) + "]"
    assert len(read_yaml(wide, origin="test")["a"]) == 9_000
    deep = "{a: " * 30 + "1" + "}" * 30
    assert "a" in read_yaml(deep, origin="test")
