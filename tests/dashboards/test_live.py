"""A real Prometheus over a real run: every query of every board, and alerts with their causes.

One run serves all: two workers train a tiny network whose tracker is away, a step is not finite, and then a rank hangs, so that
everything can be asked for while it stands still. Prometheus reads its own configuration, only faster.
"""

import json
import os
import re
import runpy
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import psutil
import pytest
import yaml

from raydino.curation.synthetic import write_builtin
from raydino.launch import gauges
from raydino.launch.cluster import ClusterConfig
from raydino.launch.engine.connect import start_ray
from raydino.launch.engine.trainer import Training
from raydino.launch.job import Job
from raydino.launch.sweep.record import live_figures
from raydino.launch.sweep.search import Planned
from raydino.launch.trials.trial import Evaluation, Trial, TrialResult
from raydino.recipe import Recipe
from raydino.shards.reader import open_collection
from raydino.tracking.opening import Opening
from raydino.tracking.run import KNN_TOP1, RUN_PROGRESS_AT, prometheus_name

pytestmark = [
    pytest.mark.fault,
    pytest.mark.ray,
    pytest.mark.slow,
]  # its figures are seconds old, so it wants the machine alone
ROOT = Path(__file__).resolve().parents[2]
DASHBOARDS = ROOT / "dashboards"
BOARDS = runpy.run_path(str(DASHBOARDS / "boards.py"))
LIMIT = 300  # s; a quiet machine needs a tenth
HANGS_AT = 65  # the collapse alarm has seen its twenty steps by then
RECIPE = {
    "steps": 200, "global_batch": 16, "lanes": 4, "data": {"window": 32},
    "backbone": {"patch_size": 8, "width": 32, "depth": 2, "heads": 2},
    "method": {
        "global_crops": {"size": 32}, "local_crops": {"size": 16, "count": 2},
        "head": {"prototypes": 64, "hidden": 32, "bottleneck": 16},
    },
    "evals": {"knn": {"k": 5, "bank": 100, "queries": 40}},
    "cadence": {"log": 5, "evaluate": 50, "checkpoint": 20, "pictures": False},
}  # fmt: skip
FASTER = {"> 600": "> 3", "> 300": "> 2", "for: 10m": "for: 0s", "for: 15m": "for: 0s", "for: 1m": "for: 0s"}
WITHOUT_DATA = {
    ("training", "k-NN: pixels"): "only a single worker judges raw pixels",
    ("throughput", "GPU use: GPU {{GpuIndex}}"): "no GPU",
    ("throughput", "GPU memory: GPU {{GpuIndex}}"): "no GPU",
    ("cluster", "GPUs reserved: {{State}}"): "no GPU",
    ("cluster", "Workers lost: ended by the system"): "none is lost before the end",
    ("cluster", "Workers lost: ended for memory"): "none is lost before the end",
}
"""Lines of panels that are empty on this machine, and why."""


class Watched(NamedTuple):
    """A run that hangs, and who watches it."""

    ask: Callable[[str], list[dict[str, Any]]]
    """The result of an instant query."""
    alerts: Callable[[], set[str]]
    """Names of the alerts that fire."""
    names: set[str]
    """All metrics that Prometheus knows."""
    training: Training


def _until(true: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        if found := true():
            return found
        time.sleep(0.3)
    raise AssertionError(f"not within {LIMIT} s: {what}")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The storage in which it looks for runs, and its address."""
    if shutil.which("prometheus") is None:
        pytest.skip("Prometheus is not installed (apt-get install prometheus)")
    folder = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load((DASHBOARDS / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
    (found,) = config["scrape_configs"][0]["file_sd_configs"]
    assert found["files"][0].startswith("../runs/")
    found |= {"files": [found["files"][0].replace("..", str(folder))], "refresh_interval": "1s"}
    rules = (DASHBOARDS / "rules.yml").read_text()
    for slow, fast in FASTER.items():
        assert slow in rules
        rules = rules.replace(slow, fast)
    (folder / "rules.yml").write_text(rules)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{_free_port()}"
    flags = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(["prometheus", *flags, f"--web.listen-address={address}"], stderr=log)
    yield folder / "runs", f"http://{address}"
    process.terminate()
    process.wait()


def _job(storage: Path, images: Path) -> Job:
    run_dir = storage / "watched"
    run_dir.mkdir(parents=True)
    Opening.of(experiment="test", run_name="watched", params={}, tags={}, dataset=None, recipe_yaml="", run_dir=run_dir)
    return Job(
        recipe=Recipe().override(RECIPE),
        cluster=ClusterConfig(workers=2, cpus_per_worker=0.5, threads=1, storage=str(storage), max_failures=0),
        run_dir=run_dir,
        data_path=str(images),
        data_digest=open_collection(str(images), split="train").manifest.digest,
        tracking_uri="http://127.0.0.1:9",  # nobody answers there
        mlflow_run_id=None,
    )


def _sweep(recipe: Recipe) -> dict[str, float]:
    """What a sweep of three says whose first trial has ended well, whose second was stopped, and whose third runs."""
    results = [
        TrialResult(
            Trial(name, recipe, name), status, (Evaluation(50, 800, {KNN_TOP1: value}),), {}, Path(name), 60.0, 800
        )
        for name, status, value in (("0", "finished", 0.5), ("1", "stopped", 0.7))
    ]
    sweep: Any = SimpleNamespace(cluster=ClusterConfig(), config=SimpleNamespace(objective=KNN_TOP1))
    plan: Any = SimpleNamespace(trials=[Planned(name, name, 0, {}) for name in "012"])
    return live_figures(sweep, plan, results, running=1, on_gpu=False)


@pytest.fixture(scope="module")
def watched(prometheus: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A run, and a sweep, once all there is to see of them has been seen."""
    storage, address = prometheus
    images = tmp_path_factory.mktemp("images") / "curated"
    write_builtin(str(images), train=240, test=60)
    faults = tmp_path_factory.mktemp("faults") / "list.json"
    strikes = [("loss", "poison", 40), ("step", "hang", HANGS_AT)]
    faults.write_text(json.dumps([{"site": site, "action": what, "step": at, "rank": 0} for site, what, at in strikes]))
    job = _job(storage, images)

    def get(path: str, **query: str) -> Any:
        with urllib.request.urlopen(f"{address}/api/v1/{path}?{urllib.parse.urlencode(query)}", timeout=10) as answer:
            return json.load(answer)["data"]

    def ask(query: str) -> list[dict[str, Any]]:
        return get("query", query=query)["result"]

    def hangs() -> bool:
        (stuck,) = ask(f"time() - {prometheus_name(RUN_PROGRESS_AT)}") or [None]
        if training.ended(timeout=0):
            raise AssertionError(training.error())
        return stuck is not None and float(stuck["value"][1]) > 3 and faults.with_name("list.json.1.0").exists()

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_metrics_report_interval_ms", "1000")
        patch.setenv("RAYDINO_FAULTS", str(faults))
        patch.setattr(gauges, "EVERY", 0.5)  # of this process, which had it before
        with start_ray(job.cluster), gauges.Gauges("sweep-tiny") as sweep:
            sweep.set(_sweep(job.recipe))
            training = Training(job)
            _until(hangs, "the run hangs")
            yield Watched(
                ask,
                lambda: {a["labels"]["alertname"] for a in get("alerts")["alerts"] if a["state"] == "firing"},
                set(get("label/__name__/values")),
                training,
            )


def _queries(name: str) -> Iterator[tuple[str, str]]:
    """Panel and legend, and PromQL, of each line of a board, for all runs."""
    for panel in json.loads((DASHBOARDS / "grafana" / "boards" / f"{name}.json").read_text())["panels"]:
        for target in panel.get("targets", ()):
            line = f"{panel['title']}: {target['legendFormat'].partition(' · ')[0]}"
            yield line, target["expr"].replace("$run", ".*").replace("$trial", ".*")


@pytest.mark.parametrize("name", BOARDS["board_names"]())
def test_boards__no_query_is_in_vain(watched: Watched, name: str):
    wanting = {line for line, query in _queries(name) if not watched.ask(query)}
    assert wanting == {line for board, line in WITHOUT_DATA if board == name}


def test_boards__names_that_have_no_data_here_are_rays_own(watched: Watched):
    import ray.dashboard.modules.metrics.dashboards as panels

    text = "".join(path.read_text() for path in Path(panels.__file__).parent.glob("*.py"))
    used = {found for name in BOARDS["board_names"]() for _, query in _queries(name) for found in _series(query)}
    unseen = used - watched.names - {prometheus_name("pixels/top1")}  # only by a single worker
    assert len(used) > 60
    assert [name for name in unseen if name not in text] == []


def _series(query: str) -> set[str]:
    return set(re.findall(r"\bray_\w+(?!\w|_\()", re.sub(r'"[^"]*"', "", re.sub(r"by \([^)]*\)", "", query))))


def test_rules__ask_for_what_is_there(watched: Watched):
    rules = yaml.safe_load((DASHBOARDS / "rules.yml").read_text())["groups"][0]["rules"]
    used = {found for rule in rules for found in _series(rule["expr"])}
    assert len(used) >= len(rules) and used <= watched.names


def test_alerts__fire_for_what_has_happened_and_for_nothing_else(watched: Watched):
    expected = {"RaydinoStalled", "RaydinoNotFinite", "RaydinoTrackerBehind"}
    _until(lambda: expected <= watched.alerts(), "the alerts fire")
    others = watched.alerts() - expected
    assert others <= {"RaydinoDataWait", "RaydinoDiskLow", "RayNodeDiskLow", "RaydinoDiskFilling"}  # of this machine


def test_gauges__tell_what_the_run_did(watched: Watched):
    def value(metric: str) -> float:
        (found,) = watched.ask(f'{prometheus_name(metric)}{{run="watched"}}')
        assert found["metric"].get("trial", "") == ""
        return float(found["value"][1])

    assert value("run/step") == HANGS_AT and value("run/steps") == 200
    assert value("data/images_seen") == HANGS_AT * 16
    assert value("health/not_finite_steps_total") == 1
    assert value("tracker/backlog_bytes") > 1000
    disk = shutil.disk_usage("/")
    assert 0 < value("run/disk_free_bytes") <= value("run/disk_size_bytes") <= 100 * disk.total


def test_gauges__tell_how_far_a_sweep_is(watched: Watched):
    found = watched.ask('{__name__=~"ray_raydino_sweep_.+", run="sweep-tiny"}')
    told = {each["metric"]["__name__"].removeprefix("ray_raydino_sweep_"): float(each["value"][1]) for each in found}
    hours = told.pop("device_hours")
    assert told == {"configurations": 3, "running": 1, "finished": 1, "stopped": 1, "failed": 0, "best": 0.5}
    assert hours == pytest.approx(2 * 60 / 3600)  # two trials held a core for a minute each


def test_gauges__are_gone_when_the_process_is(watched: Watched):
    # The last test of this file: it ends the run that the others look at.
    query = f'{prometheus_name(RUN_PROGRESS_AT)}{{run="watched"}}'
    assert watched.ask(query)
    for process in psutil.Process().children(recursive=True):
        if process.name().startswith("ray::RayTrain") or "RayTrainWorker" in " ".join(process.cmdline()):
            os.kill(process.pid, 9)
    _until(lambda: not watched.ask(query), "the run is gone")
    assert watched.ask('ray_raydino_sweep_best{run="sweep-tiny"}')  # Ray and what lives in it go on
    _until(lambda: "RaydinoStalled" not in watched.alerts(), "the alert is over")
