"""The command line: pages where they belong, clones that really are the recipe they say, errors in words."""

import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raydino.launch.report.command import main
from raydino.launch.terminal.command import parse
from raydino.recipe import NOT_IN_FINGERPRINT, Recipe

from .conftest import recipe_of

Write = Callable[..., Path]
ROOT = Path(__file__).resolve().parents[3]
GROUPS = runpy.run_path(str(ROOT / "dashboards" / "report.py"))["GROUPS"]


def cloned(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[str, Recipe]:
    """The command that was printed, and the recipe that its script would run."""
    assert main("", GROUPS, ["clone", *words]) == 0
    command = capsys.readouterr().out.strip()
    python, script, *flags = shlex.split(command)
    assert python == "python"
    presets = GROUPS[Path(script).stem]
    return command, parse(presets["laptop"], presets, description="", argv=flags).recipe


def test_main__a_page_into_the_run_and_of_several_elsewhere(
    write_run: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    one, two = write_run("one"), write_run("two", changes={"seed": 1})
    assert main("", GROUPS, [str(one)]) == 0
    assert "python recipes/dinov2.py --config" in (one / "report.html").read_text()
    assert main("", GROUPS, [str(one), str(two)]) == 0
    assert (tmp_path / "runs" / "reports" / "one-beside-two.html").exists() and not (two / "report.html").exists()
    assert main("", GROUPS, [str(one), "--out", "deep/er.html"]) == 0
    assert capsys.readouterr().out.split()[-1] == "deep/er.html" and (tmp_path / "deep" / "er.html").exists()


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        ([], {}),
        (["seed=3", "method.koleo-weight=0.25"], {"seed": 3, "method.koleo_weight": 0.25}),
        (["method.local_crops.scale=[0.1, 0.3]"], {"method.local_crops.scale": (0.1, 0.3)}),
        (["optim.warmup=5"], {"optim.warmup": 5}),
        (["optim.warmup=0.5"], {"optim.warmup": 0.5}),
        (["evals.knn.k=7", "data.eval_split=test"], {"evals.knn.k": 7, "data.eval_split": "test"}),
        (["method.curriculum.global_size=96"], {"method.curriculum": {"global_size": 96}}),
        (["name=a name's".replace(" ", "_").replace("'", "-")], {"name": "a_name-s"}),
        (["data.path=my images & <more>"], {"data.path": "my images & <more>"}),
    ],
)
def test_clone__the_command_is_the_changed_recipe(
    write_run: Write, capsys: pytest.CaptureFixture[str], settings: list[str], changes: dict[str, Any]
):
    folder = write_run("a run")
    _, found = cloned(capsys, str(folder), *(word for each in settings for word in ("--set", each)))
    assert found == recipe_of().override(changes)
    assert found.fingerprint(exclude=NOT_IN_FINGERPRINT) == recipe_of(changes).fingerprint(exclude=NOT_IN_FINGERPRINT)


@pytest.mark.parametrize(
    ("script", "name"),
    [("dino", "laptop"), ("supervised", "laptop"), ("dinov2", "vits16"), ("distill", "laptop"), ("distill", "vits14")],
)
def test_clone__finds_the_script_of_every_method(
    write_run: Write, capsys: pytest.CaptureFixture[str], script: str, name: str
):
    folder = write_run()
    made = GROUPS[script][name].override({"seed": 11})
    (folder / "recipe.yaml").write_text(made.to_yaml())
    command, found = cloned(capsys, str(folder), "--set", "seed=12")
    assert f"recipes/{script}.py" in command and found == made.override({"seed": 12})


def test_clone__of_machines_too_which_make_no_other_run(write_run: Write, capsys: pytest.CaptureFixture[str]):
    command, found = cloned(capsys, str(write_run()), "--set", "cluster.workers=2")
    assert command.endswith("--cluster.workers 2") and found == recipe_of()


def test_clone__names_the_run_that_will_be_and_says_if_it_is_the_same(
    write_run: Write, capsys: pytest.CaptureFixture[str]
):
    folder = write_run(recipe_of().id)
    main("", GROUPS, ["clone", str(folder)])
    assert "that is the same run" in capsys.readouterr().err
    main("", GROUPS, ["clone", str(folder), "--set", "seed=1"])
    said = capsys.readouterr().err
    assert recipe_of({"seed": 1}).id in said and "the same run" not in said


def test_clone__of_a_run_of_an_older_version_says_what_takes_todays_values(
    write_run: Write, capsys: pytest.CaptureFixture[str]
):
    folder = write_run()
    text = (folder / "recipe.yaml").read_text()
    (folder / "recipe.yaml").write_text(re.sub(r"  fast_crops: false\n", "", text))
    assert main("", GROUPS, ["clone", str(folder)]) == 0
    assert "of another version of raydino: data.fast_crops" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["RUN", "--set", "method.koleo_wieght=1"],
            "method.koleo_wieght: there is no field 'koleo_wieght'; did you mean 'koleo_weight'?",
        ),
        (["RUN", "--set", "cluster.wrokers=1"], "there is no field 'wrokers'; did you mean 'workers'?"),
        (["RUN", "--set", "steps=many"], "steps = 'many'"),
        (["RUN", "--set", "steps"], "write KEY=VALUE"),
        (["RUN", "--set", "global_batch=12"], "global_batch = 12 is not a multiple of lanes"),
        (["nowhere"], "run = 'nowhere': there is no such folder"),
    ],
)
def test_clone__refuses_in_words(write_run: Write, capsys: pytest.CaptureFixture[str], words: list[str], said: str):
    folder = write_run()
    with pytest.raises(SystemExit) as left:
        main("", GROUPS, ["clone", *(str(folder) if word == "RUN" else word for word in words)])
    assert left.value.code == 2 and said in capsys.readouterr().err


def test_clone__a_recipe_that_no_script_knows_is_named(write_run: Write, capsys: pytest.CaptureFixture[str]):
    folder = write_run()
    (folder / "recipe.yaml").write_text((folder / "recipe.yaml").read_text() + "colour: blue\n")
    with pytest.raises(SystemExit):
        main("", GROUPS, ["clone", str(folder)])
    said = capsys.readouterr().err
    assert "no script of today can make this recipe" in said and "colour" in said
    assert main("", GROUPS, [str(folder)]) == 0  # its page does not need it
    assert "no script of today" in (folder / "report.html").read_text()


def test_main__of_an_ablation_its_table_and_the_curves_of_its_variants(
    write_run: Write, tmp_path: Path, seen: Callable[..., Any]
):
    from raydino.launch.ablation.table import Outcome, as_json, rows
    from raydino.launch.ablation.variants import Variant

    folder = tmp_path / "ablation-x"
    for variant, seed in (("full", 0), ("full", 1), ("no-koleo", 0), ("no-koleo", 1)):
        write_run(f"{variant}-seed{seed}", inside=folder / "trials", changes={"seed": seed})
    with pytest.raises(SystemExit):
        main("", GROUPS, [str(tmp_path / "empty")])
    assert main("", GROUPS, [str(folder)]) == 0
    assert "no table yet" in (folder / "report.html").read_text()
    scores = {("full", 0): 0.5, ("full", 1): 0.6, ("no-koleo", 0): 0.4, ("no-koleo", 1): 0.4}
    outcomes = [Outcome(variant, seed, score) for (variant, seed), score in scores.items()]
    arms = [Variant("no-koleo", "KoLeo <b>", "koleo_weight 0", {}, "worse", "")]
    about = {
        "recipe": "r",
        "fingerprint": "f",
        "objective": "knn/top1",
        "steps": 20,
        "images_per_run": 320,
        "seeds": [0, 1],
        "trial_hours": 0.5,
    }
    (folder / "ablation.json").write_text(as_json(rows(outcomes, arms), left_out=[], about=about))
    assert main("", GROUPS, [str(folder)]) == 0
    found = seen(folder / "report.html")
    table = found.tables["Each component off in turn"]
    assert table[2][4:6] == ["0.400 ± 0.000", f"-0.150 ± {12.706 * 0.05:.3f}"]  # t of one degree of freedom
    assert found.tables["knn/top1"][0] == ["steps", "full (2 seeds)", "no-koleo (2 seeds)"]
    assert "b" not in found.tags


def test_script__answers_by_itself():
    script = ROOT / "dashboards" / "report.py"
    failed = subprocess.run([sys.executable, str(script), "nowhere"], capture_output=True, text=True)
    assert failed.returncode == 2 and failed.stderr.startswith("error: run = 'nowhere'")
