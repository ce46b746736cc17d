import os
import subprocess
import sys
from pathlib import Path

import pytest

from raydino.launch.cluster import ClusterConfig
from raydino.launch.terminal.command import leaves, parse
from raydino.methods.config import DINOConfig, DINOv2Config
from raydino.nn.config import HeadConfig
from raydino.recipe import Recipe

ROOT = Path(__file__).resolve().parents[3]
PRESETS = {"laptop": Recipe(steps=100), "big": Recipe(name="big", steps=5000, global_batch=1024)}


def read(*words, recipe=PRESETS["laptop"]):
    return parse(recipe, PRESETS, description="Train.", argv=words)


def refused(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        read(*words)
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    return " ".join((said.out + said.err).split())


def test_parse__no_words_is_the_recipe_itself():
    command = read()
    assert (command.recipe, command.cluster, command.resume, command.dry_run) == (
        PRESETS["laptop"],
        ClusterConfig(),
        "no",
        False,
    )


def test_parse__a_flag_is_an_override():
    words = (
        "--steps 7 --method.koleo-weight 0.2 --method.blur custom --method.global_crops.blur 0.25 0.5 "
        "--method.global-crops.flip 0.25 --evals.knn.k 3 --cadence.pictures False"
    )
    expected = PRESETS["laptop"].override(
        {
            "steps": 7,
            "method.koleo_weight": 0.2,
            "method.blur": "custom",
            "method.global_crops": {"blur": (0.25, 0.5), "flip": 0.25},
            "evals.knn.k": 3,
            "cadence.pictures": False,
        }
    )
    assert read(*words.split()).recipe == expected


@pytest.mark.parametrize("word", ["--method.prototypes", "--method.head.prototypes"])
def test_parse__short_spelling_of_prototypes(word):
    assert read(word, "77").recipe.method.head.prototypes == 77


@pytest.mark.parametrize("word", ["--data", "--data.path"])
def test_parse__short_spelling_of_data(word):
    assert read(word, "s3://bucket/x").recipe.data.path == "s3://bucket/x"


def test_parse__a_curriculum_is_made_by_its_flags():
    words = ["--method.curriculum.length", "0.5", "--method.curriculum.global-size", "128"]
    curriculum = read(*words).recipe.method.curriculum
    assert (curriculum.length, curriculum.global_size, curriculum.local_size) == (0.5, 128, 48)


def test_parse__preset_below_file_below_flags(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("steps: 300\nseed: 5\noptim: {lr: 1e-3}\n")
    recipe = read("--preset", "big", "--config", str(file), "--seed", "6").recipe
    assert (recipe.name, recipe.global_batch, recipe.steps, recipe.optim.lr, recipe.seed) == ("big", 1024, 300, 1e-3, 6)


def test_parse__a_flag_can_put_back_what_a_file_changed(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("steps: 300\n")
    assert read("--config", str(file), "--steps", "100").recipe.steps == 100


def test_parse__cluster_file_and_single_fields():
    file = str(ROOT / "clusters" / "one_node.yaml")
    cluster = read("--cluster", file, "--cluster.workers", "4", "--cluster.gpu", "auto").cluster
    expected = ClusterConfig().from_yaml(Path(file).read_text()).override({"workers": 4, "gpu": "auto"})
    assert cluster == expected


def test_parse__length_of_one_step_is_not_the_whole_run():
    recipe = read("--method.teacher-momentum.length", "1").recipe
    assert recipe.method.teacher_momentum.length == 1
    assert type(recipe.method.teacher_momentum.length) is int


def test_parse__dependent_fields_change_together():
    recipe = read("--lanes", "3", "--global-batch", "9").recipe
    assert (recipe.lanes, recipe.global_batch) == (3, 9)


def test_parse__an_optional_part_appears_with_its_first_field():
    assert read().recipe.method.ibot_head is None
    method = read("--method.ibot-head.prototypes", "512").recipe.method
    assert isinstance(method, DINOv2Config)
    assert method.ibot_head == HeadConfig(prototypes=512)


def test_parse__keeps_the_method_of_the_recipe():
    recipe = read("--method.center-momentum", "0.8", recipe=Recipe(method=DINOConfig())).recipe
    assert recipe.method == DINOConfig(center_momentum=0.8)


def test_parse__resume_and_dry_run():
    command = read("--resume", "auto", "--dry-run")
    assert (command.resume, command.dry_run, command.profile) == ("auto", True, False)
    assert read("--profile").profile and read("--profile").recipe == PRESETS["laptop"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--stepz 3", ["--stepz", "--steps"]),
        ("--cluster.wrokers 3", ["--cluster.workers"]),
        ("--method.protoypes 3", ["--method.prototypes"]),
        ("--steps -1", ["error: steps = -1", "greater than 0"]),
        ("--steps many", ["--steps", "many"]),
        ("--global-batch 63", ["error: global_batch = 63", "lanes = 8", "64"]),
        ("--optim.lr nan", ["optim.lr"]),
        ("--preset huge", ["error: preset = 'huge'", "give one of laptop, big"]),
        ("--resume maybe", ["maybe", "auto"]),
        ("--name a/b", ["name", "a/b"]),
        ("--config /no/such.yaml", ["/no/such.yaml", "cannot be read"]),
        ("--cluster /no/such.yaml", ["/no/such.yaml"]),
        ("--cluster.workers 0", ["workers = 0"]),
        ("hello", ["hello"]),
        ("--method.centering mean", ["mean", "softmax"]),
    ],
)
def test_parse__refuses_with_name_value_and_remedy(capsys, words, said):
    text = refused(capsys, *words.split())
    assert all(word in text for word in said), text


def test_parse__a_bad_file_names_file_and_field(capsys, tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("optim: {lrr: 1}\n")
    text = refused(capsys, "--config", str(file))
    assert "my.yaml" in text
    assert "optim.lrr" in text
    assert "'lr'" in text


def test_help__one_line_per_field_with_the_presets_default(capsys):
    with pytest.raises(SystemExit) as stop:
        read("--preset", "big", "--help")
    assert stop.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    flags = [line.split()[0].rstrip(",") for line in lines if line.startswith("  --")]
    every = [*leaves(PRESETS["big"], ""), *leaves(ClusterConfig(), "cluster.")]
    assert {leaf.flag for leaf in every} <= set(flags)
    assert len(flags) == len(set(flags))
    assert any(line.startswith("  --global-batch INT = 1024  ") for line in lines)
    assert all(leaf.help for leaf in every), [leaf.path for leaf in every if not leaf.help]


def test_leaves__every_path_can_be_overridden():
    recipe = Recipe()
    for leaf in leaves(recipe, ""):
        assert recipe.override({leaf.path: leaf.value} if leaf.value is not None else {}) == recipe, leaf.path


def test_command__imports_nothing_heavy_and_bears_a_closed_pipe(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        "import sys\nfrom raydino.launch.terminal.command import parse\n"
        "from raydino.launch import cluster\nfrom raydino.launch.checks import preflight\n"
        "from raydino.recipe import Recipe\n"
        "try:\n    parse(Recipe(), {}, description='Train.')\n"
        "finally:\n    print([m for m in ('torch', 'ray', 'mlflow', 'timm') if m in sys.modules], file=sys.stderr)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "platform")}
    command = f"{sys.executable} {script} --help | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stdout == "usage: train.py [OPTIONS]\n"
    assert done.stderr == "[]\n"
    closed = subprocess.run(
        ["bash", "-c", f"{sys.executable} {script} --help | exec true; exit ${{PIPESTATUS[0]}}"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (closed.returncode, closed.stderr) == (0, "[]\n")


def test_version__names_the_program(capsys):
    with pytest.raises(SystemExit) as stop:
        read("--version")
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("raydino ")
