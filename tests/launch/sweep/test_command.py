"""The command line of sweeps, up to where Ray would start."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import presets
import pytest

from raydino.config import ConfigError, read_yaml_file
from raydino.launch.sweep import driver
from raydino.launch.sweep.ranking import rank
from raydino.launch.sweep.record import BEST, best_recipe
from raydino.launch.sweep.search import PLAN
from raydino.launch.sweep.setting import PREFIX

GROUPS = {"dinov2": presets.DINOV2, "dino": presets.DINO}
Asked = Callable[..., tuple[int, str]]


@pytest.fixture
def asked(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Asked:
    """recipes/sweep.py on the tiny run in this process; returns exit status and what was said."""

    def ask(*flags: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["sweep.py", *words, "--cluster.storage", str(tmp_path), *flags])
        with pytest.raises(SystemExit) as left:
            driver.main(GROUPS, description="")
        assert isinstance(left.value.code, int)
        return left.value.code, "".join(capsys.readouterr())

    return ask


@pytest.mark.parametrize(
    ("words", "recipe"),
    [
        ([], "dinov2"),
        (["--trials", "3"], "dinov2"),
        (["--recipe", "dino"], "dino"),
        (["--trials", "3", "--recipe=dino"], "dino"),
        (["--recipe"], ""),
    ],
)
def test_asked_recipe__it_decides_what_flags_there_are(words: list[str], recipe: str):
    assert driver.asked_recipe(words, "dinov2") == recipe


def test_dry_run__says_space_rungs_and_trials_and_makes_nothing(asked: Asked, tmp_path: Path):
    status, said = asked("--dry-run", "--name", "plan", "--trials", "9")
    assert status == 0, said
    for fact in ("9 configurations by tpe", "teacher_momentum.start", "after 48, 144 images", "one in 3 goes on"):
        assert fact in said
    assert not list(tmp_path.glob(f"{PREFIX}*"))


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        (("--recipe", "mae"), "--recipe mae: there is no such recipe; give one of dinov2, dino"),
        (("--grace", "0"), "grace = 0"),
        (("--reduction", "1"), "reduction = 1"),
        (("--scheduler", "pbt", "--repeats", "2"), "leave out repeats"),
        (("--space", "/nowhere.yaml"), "/nowhere.yaml: cannot be read"),
        (
            ("--objective", "loss/total"),
            "objective = loss/total: no evaluation finds it; use one of knn/…, health/rankme",
        ),
        (("--global-batch", "320"), "fewer than global_batch = 320"),
    ],
)
def test_faults__are_named_before_anything_starts(flags: tuple[str, ...], fault: str, asked: Asked, tmp_path: Path):
    status, said = asked(*flags)
    assert status == 2 and fault in said, said
    assert not list(tmp_path.glob(f"{PREFIX}*"))


def test_space__is_checked_before_the_first_trial(asked: Asked, tmp_path: Path):
    space = tmp_path / "space.yaml"
    space.write_text("optim.lrr: {uniform: [0.1, 0.2]}\nmethod.centering: {choice: [softmax, centre]}\n")
    status, said = asked("--space", str(space))
    assert status == 2
    assert "did you mean 'lr'" in said and "method.centering = 'centre'" in said


def test_another_sweep__of_this_name_is_refused_and_names_what_differs(asked: Asked, tmp_path: Path):
    folder = tmp_path / f"{PREFIX}kept"
    folder.mkdir()
    settings = {"recipe": "dinov2", "objective": "knn/top1", "base": {"steps": 99}}
    (folder / PLAN).write_text(json.dumps({"settings": settings, "finished": False, "trials": []}))
    status, said = asked("--name", "kept", "--resume", "auto")
    assert status == 2 and "is another sweep" in said and "another --name" in said


def test_help__offers_the_fields_of_the_recipe_that_was_asked_for(asked: Asked):
    status, said = asked("--recipe", "dino", "--help")
    assert status == 0
    assert "vits16-boosted" in said and "--method.koleo-weight" not in said and "--searcher" in said


def test_best__is_the_recipe_that_the_command_reads_back(tmp_path: Path):
    """best.yaml on top of the preset is the preset with the winner's values, whatever the preset."""
    from raydino.launch.trials.trial import Evaluation, Trial, TrialResult

    base = presets.DINOV2["cifar"]
    params = {"method.teacher_momentum.start": 0.97, "method.local_crops.count": 0, "global_batch": 128}
    trial = Trial("7", base, "7")
    found = TrialResult(trial, "finished", (Evaluation(1, 1, {"m": 0.5}),), {}, tmp_path, 1.0, 1)
    best = best_recipe(base, rank([found], {"7": params}, "m")[0])
    (tmp_path / BEST).write_text(f"# words\n{best.to_yaml()}")
    for preset in (base, presets.DINOV2["laptop"]):
        assert preset.override(read_yaml_file(tmp_path / BEST)) == best
    assert best.steps == 2 * base.steps and best.method.local_crops.count == 0


def test_objective__of_labels_is_refused_without_them():
    from raydino.launch.sweep.setting import _check_objective

    base = presets.DINOV2["laptop"]
    with pytest.raises(ConfigError, match="have no labels; use health/rankme"):
        _check_objective("knn/top1", base, labelled=False)
    _check_objective("health/rankme", base, labelled=False)
    _check_objective("knn/top5", base, labelled=True)
