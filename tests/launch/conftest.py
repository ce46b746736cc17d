"""A run small enough for tests: 240 images of 48 pixels, a ViT of 30 thousand weights, 12 steps."""

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from raydino.curation.synthetic import write_builtin
from raydino.launch.cluster import ClusterConfig
from raydino.launch.trials.run import trial_ray
from raydino.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]
DINOV2 = ROOT / "recipes" / "dinov2.py"

TINY = """
steps: 12
global_batch: 16
lanes: 4
data: {window: 32}
backbone: {patch_size: 8, width: 32, depth: 2, heads: 2, drop_path: 0.1}
method:
  global_crops: {size: 32}
  local_crops: {size: 16, count: 2}
  head: {prototypes: 64, hidden: 32, bottleneck: 16}
evals: {knn: {k: 5, bank: 100, queries: 40}}
cadence: {log: 1, evaluate: 0.5, checkpoint: 3, pictures: false}
"""


@pytest.fixture(scope="session")
def small_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A curated folder of 240 training and 60 test images, with planted faults."""
    folder = tmp_path_factory.mktemp("images") / "curated"
    write_builtin(str(folder), train=240, test=60)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe file for `--config`."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all test runs go: one folder, so that MLflow's database is made once."""
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="session")
def words(tiny: Path, small_images: Path, storage: Path) -> tuple[str, ...]:
    """The command line of the tiny run. Fixed threads, because sums in another order differ in their last bits."""
    return (
        *("--config", str(tiny), "--data", str(small_images)),
        *("--cluster.storage", str(storage), "--cluster.threads", "1"),
    )


@pytest.fixture(scope="session")
def recipe(words: tuple[str, ...], storage: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start recipes/dinov2.py, or another script, on the tiny run as a user would; further flags are the arguments."""

    def start(*flags: str, script: Path = DINOV2) -> subprocess.Popen[str]:
        environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "PYTHONPATH")}
        return subprocess.Popen(
            [sys.executable, str(script), *words, *flags],
            cwd=storage,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that a test can kill the run with everything it started
        )

    return start


@pytest.fixture
def recipe_here(
    words: tuple[str, ...], storage: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """The same script, or another with words of its own, in this process, which has its imports behind it and perhaps a Ray;
    returns exit status and what was said.

    For what needs no process of its own: commands that end before Ray starts, and runs on `ray_cluster`.
    """

    def start(*flags: str, script: Path = DINOV2, given: tuple[str, ...] = words) -> tuple[int, str]:
        monkeypatch.chdir(storage)
        monkeypatch.setattr(sys, "path", [*sys.path])
        monkeypatch.setattr(sys, "argv", [str(script), *given, *flags])
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(script), run_name="__main__")
        assert isinstance(left.value.code, int)
        return left.value.code, "".join(capfd.readouterr())

    return start


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DINOv2 run of 32 prototypes at step 7, recorded in MLflow, whose centre is not that of the start."""
    import torch  # here, so that tests of the command line need not wait for it

    from raydino.tracking.mlflow_run import create_run
    from raydino.tracking.opening import Opening
    from raydino.train.checkpoint import Checkpoint, save

    folder = tmp_path_factory.mktemp("runs") / "small-run"
    folder.mkdir()
    parts = {"method.global_crops.size": 32, "method.local_crops.size": 16, "method.head.prototypes": 32}
    recipe = Recipe().override(
        {**parts, "backbone.patch_size": 8, "backbone.width": 16, "backbone.depth": 2, "backbone.heads": 2}
    )
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    (folder / "cluster.yaml").write_text("experiment: test\n")
    torch.manual_seed(0)
    method = recipe.method.build(recipe.backbone, steps=recipe.steps)
    weights = method.state_dict()
    weights["centering.center"] = torch.randn(32)
    save(folder / "checkpoints", Checkpoint(7, weights, {}, {}), keep=1)
    opening = Opening.of(
        experiment="test", run_name="small", params={}, tags={}, dataset=None, recipe_yaml="", run_dir=folder
    )
    run_id = create_run(opening, tracking_uri=f"sqlite:///{folder.parent}/mlflow.db")
    (folder / "run.json").write_text(json.dumps({"mlflow_run_id": run_id}))
    return folder


@pytest.fixture(scope="module")
def trial_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterConfig]:
    """Ray as a sweep starts it, for two trials at once whatever this machine has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
        cluster = ClusterConfig(storage=str(tmp_path_factory.mktemp("sweeps")), threads=1)
        with trial_ray(cluster):
            yield cluster


@pytest.fixture
def small(tiny: Path, small_images: Path) -> Recipe:
    """12 steps of 16 images, evaluated and saved every fourth."""
    fields = yaml.safe_load(tiny.read_text())
    fields["data"]["path"] = str(small_images)
    return Recipe().override({**fields, "cadence": {"log": 1, "evaluate": 4, "checkpoint": 4, "pictures": False}})
