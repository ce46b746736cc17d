"""From a command line to the table, with runs that only pretend; tests/launch/sweep has the real ones."""

import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raydino.config import ConfigError
from raydino.curation.synthetic import write_builtin
from raydino.launch.ablation.config import AblationConfig
from raydino.launch.ablation.driver import outcome, plan_text, planned, run
from raydino.launch.terminal.command import Command, parse
from raydino.launch.trials.trial import Evaluation, Trial, TrialResult
from raydino.recipe import Recipe
from raydino.tracking.run import COLLAPSED, KNN_TOP1, RANKME
from raydino.tracking.spool import Spool

RECIPE = Recipe(name="small", steps=8, global_batch=16, lanes=4).override(
    {
        "backbone": {"patch_size": 8, "width": 32, "depth": 2, "heads": 2},
        "method": {
            "global_crops": {"size": 32},
            "local_crops": {"size": 16, "count": 2},
            "head": {"prototypes": 64, "hidden": 32, "bottleneck": 16},
        },
    }
)
EFFECT = {"full": 0.0, "no_koleo": -0.1, "no_centering": -0.3, "curriculum": 0.001}


class Pretend:
    """In the place of `run_trials`: scores by variant and seed, records with alarms for `no_centering`."""

    def __init__(self, failing: Sequence[str] = (), *, labels: bool = True) -> None:
        self.failing, self.asked, self.labels = failing, list[Trial](), labels
        self.about: dict[str, Any] = {}

    def __call__(self, trials: Sequence[Trial], *, folder: Path, **about: Any) -> list[TrialResult]:
        self.asked, self.about = list(trials), about
        return [self._result(trial, folder / "trials" / trial.name) for trial in trials]

    def _result(self, trial: Trial, run_dir: Path) -> TrialResult:
        spool = Spool(run_dir)
        for step in (2, 4, 6, 8):
            spool.log({COLLAPSED: float(trial.group == "no_centering" and step > 4)}, step)
        spool.close("FINISHED")
        score = 0.5 + 0.02 * trial.recipe.seed + EFFECT[trial.group] + 0.001 * (trial.recipe.seed % 2)
        history = (Evaluation(8, 128, {KNN_TOP1: score, RANKME: 10 * score} if self.labels else {RANKME: 10 * score}),)
        failed = trial.name in self.failing
        return TrialResult(
            trial,
            "failed" if failed else "finished",
            () if failed else history,
            {} if failed else history[-1].metrics,
            run_dir,
            30.0,
            128,
            "out of memory" if failed else "",
        )


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ablation") / "images"
    write_builtin(str(folder), train=64, test=32)
    return folder


@pytest.fixture
def command(images: Path, tmp_path: Path) -> Callable[..., Command]:
    """A parsed command line on the small recipe."""

    def ask(*words: str) -> Command:
        recipe = RECIPE.override({"data.path": str(images)})
        storage = ("--cluster.storage", str(tmp_path / "runs"))
        return parse(recipe, {}, description="", argv=[*storage, *words], more=AblationConfig())

    return ask


@pytest.fixture
def no_tracker(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("open_parent", "close_parent"):
        monkeypatch.setattr(f"raydino.launch.trials.prepare.{name}", lambda *_, **__: None)


def _folder(tmp_path: Path) -> Path:
    (folder,) = (tmp_path / "runs").glob("ablation-small-*")
    return folder


def test_planned__full_recipe_and_every_variant_at_the_same_seeds_and_budget():
    plan = planned(RECIPE.override({"seed": 5}), AblationConfig(seeds=2))
    assert {trial.recipe.seed for trial in plan.trials} == {5, 6} and plan.trials[0].group == "full"
    groups = [trial.group for trial in plan.trials]
    assert groups[: len(groups) // 2] == groups[len(groups) // 2 :] == ["full", *(v.name for v in plan.variants)]
    assert len({trial.name for trial in plan.trials}) == len(plan.trials)
    assert {(trial.recipe.steps, trial.recipe.global_batch) for trial in plan.trials} == {(8, 16)}
    full = [trial.recipe for trial in plan.trials if trial.group == "full"]
    assert full == [RECIPE.override({"seed": seed, "name": "small-full"}) for seed in (5, 6)]


def test_planned__refuses_before_anything_runs():
    with pytest.raises(ConfigError, match="--only no_kole: no such variant; did you mean no_koleo"):
        planned(RECIPE, AblationConfig(only="curriculum, no-kole"))


def test_plan_text__names_every_variant_and_what_is_left_out():
    plan = planned(RECIPE.override({"method.koleo_weight": 0.0}), AblationConfig())
    text = plan_text(plan)
    assert all(variant.name in text and variant.change in text for variant in plan.variants)
    assert "left out  no_koleo: the recipe has no KoLeo" in text
    runs = 3 * (1 + len(plan.variants))
    assert f"{runs} runs of 8 steps, {runs * 128:,} images" in text


@pytest.mark.slow  # MLflow makes its database
def test_run__leaves_the_table_in_its_folder_and_in_mlflow(
    command: Callable[..., Command], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    pretend = Pretend()
    assert run(command("--only", "no-koleo,no_centering,curriculum"), trials=pretend) == 0
    assert pretend.about["objective"] == KNN_TOP1
    body = json.loads((_folder(tmp_path) / "ablation.json").read_text())
    found = {row["variant"]: row for row in body["rows"]}
    assert list(found) == ["full", "no_centering", "curriculum", "no_koleo"] and found["curriculum"]["agrees"] == "yes"
    assert found["no_koleo"]["difference"] == pytest.approx(-0.1) and found["no_koleo"]["agrees"] == "yes"
    assert (found["no_centering"]["alarmed"], found["no_centering"]["first_alarm"]) == ([0, 1, 2], 6)
    assert found["no_centering"]["agrees"] == "yes" and found["full"]["alarmed"] == []
    assert body["seeds"] == [0, 1, 2] and body["trial_hours"] == pytest.approx(12 * 30 / 3600)
    said = capsys.readouterr().out
    assert (_folder(tmp_path) / "ablation.md").read_text() in said and "12 of 12 runs finished" in said

    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    parent = client.get_run(pretend.about["parent"])
    names = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert names >= {"ablation.md", "ablation.json", "ablation.csv", "ablation.png"}
    assert parent.data.metrics["ablation/no_koleo"] == pytest.approx(found["no_koleo"]["mean"])
    assert parent.info.status == "FINISHED" and parent.info.run_name == _folder(tmp_path).name

    again = Pretend()
    with pytest.raises(ConfigError, match="--resume auto goes on with it"):
        run(command("--only", "no_koleo"), trials=again)
    assert run(command("--only", "no_koleo", "--seeds", "4", "--resume", "auto"), trials=again) == 0
    assert again.about["parent"] == pretend.about["parent"]  # the same folder, the same run in MLflow
    assert run(command("--only", "no_koleo", "--seed", "9", "--seeds", "1", "--resume", "auto"), trials=Pretend()) == 0
    assert [trial.name for trial in again.asked][:2] == ["full-seed0", "no_koleo-seed0"] and len(again.asked) == 8


@pytest.mark.usefixtures("no_tracker")
def test_run__a_failed_run_is_named_and_the_exit_status_says_so(
    command: Callable[..., Command], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert run(command("--only", "no_koleo"), trials=Pretend(["no_koleo-seed1"])) == 1
    said = capsys.readouterr().out
    assert "Failed, `no_koleo`, seed 1: failed: out of memory" in said and "5 of 6 runs finished" in said
    rows = json.loads((_folder(tmp_path) / "ablation.json").read_text())["rows"]
    assert set(rows[1]["scores"]) == {"0", "2"} and rows[1]["runs"] == 3


class Stopped(Pretend):
    """Is asked to stop when the second of its runs has ended."""

    def __call__(self, trials: Sequence[Trial], *, watch: Callable[[Any], bool], **about: Any) -> list[TrialResult]:
        board, results = SimpleNamespace(results={}, snapshot=list), []
        for trial in trials:
            results += super().__call__([trial], **about)
            board.results[trial.name] = results[-1]
            if len(results) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            if not watch(board):
                break
        return results


@pytest.mark.usefixtures("no_tracker")
def test_run__asked_to_stop_it_begins_no_more_runs_and_shows_what_there_is(
    command: Callable[..., Command], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    before = signal.getsignal(signal.SIGTERM)
    assert run(command("--only", "no_koleo,curriculum"), trials=Stopped()) == 128 + signal.SIGTERM
    said = capsys.readouterr().out
    assert "2 of 9 runs finished; go on with --resume auto" in said and "| not run |" in said
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.usefixtures("no_tracker")
def test_run__without_labels_rankme_is_asked_for_and_serves(
    command: Callable[..., Command], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    pretend = Pretend(labels=False)
    assert run(command("--only", "no_koleo"), trials=pretend) == 0
    assert "no knn/top1; images without labels are judged by --objective health/rankme" in capsys.readouterr().out
    again = Pretend(labels=False)
    assert run(command("--only", "no_koleo", "--objective", RANKME, "--resume", "auto"), trials=again) == 0
    assert again.about["objective"] == RANKME
    body = json.loads((_folder(tmp_path) / "ablation.json").read_text())
    assert body["objective"] == RANKME and body["rows"][1]["difference"] == pytest.approx(-1.0)


def test_run__dry_run_starts_nothing(
    command: Callable[..., Command], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    pretend = Pretend()
    assert run(command("--dry-run", "--seeds", "2"), trials=pretend) == 0
    said = capsys.readouterr().out
    assert not pretend.asked and not list((tmp_path / "runs").glob("ablation-*"))
    assert "curriculum" in said and "one after another" in said


def test_run__refuses_to_change_runs_on_the_way(command: Callable[..., Command]):
    with pytest.raises(ConfigError, match="--allow-change"):
        run(command("--resume", "auto", "--allow-change", "steps"), trials=Pretend())


def test_outcome__the_score_of_a_stopped_run_does_not_count(tmp_path: Path):
    plan = planned(RECIPE, AblationConfig(seeds=1, only="no_koleo"))
    result = Pretend()(plan.trials, folder=tmp_path)[1]
    assert outcome(result, KNN_TOP1).score == pytest.approx(0.4)
    stopped = TrialResult(result.trial, "stopped", result.history, result.metrics, result.run_dir, 1.0, 64, "asha")
    assert outcome(result, KNN_TOP1).watched
    assert outcome(stopped, KNN_TOP1).score is None and outcome(stopped, KNN_TOP1).failure == "stopped: asha"
