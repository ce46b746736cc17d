"""The files of dashboards/ without a run: boards as Grafana reads them, rules as Prometheus does, and `make dashboards`."""

import json
import os
import re
import runpy
import shutil
import subprocess
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DASHBOARDS = ROOT / "dashboards"
BOARDS = runpy.run_path(str(DASHBOARDS / "boards.py"))
NAMES = BOARDS["board_names"]()
UNITS = {"short", "percentunit", "percent", "s", "bytes", "mbytes", "Bps", "sci"}  # of @grafana/data's valueFormats
RULES = yaml.safe_load((DASHBOARDS / "rules.yml").read_text())["groups"][0]["rules"]
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (prometheus)")


@pytest.fixture(params=NAMES)
def board(request: pytest.FixtureRequest) -> dict[str, Any]:
    return json.loads((DASHBOARDS / "grafana" / "boards" / f"{request.param}.json").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_boards__are_what_their_sources_say(name: str):
    made = (DASHBOARDS / "grafana" / "boards" / f"{name}.json").read_text()
    assert made == BOARDS["text_of"](name), "run python dashboards/boards.py"


def test_boards__are_all_there_and_no_others():
    there = {path.stem for path in (DASHBOARDS / "grafana" / "boards").iterdir()}
    assert there == set(NAMES) == {"training", "throughput", "data", "sweep", "cluster"}


def test_board__panels_have_all_that_grafana_asks_for(board: dict[str, Any]):
    charts = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert len(charts) >= 9 and {panel["type"] for panel in charts} == {"timeseries"}
    for panel in charts:
        assert panel["title"] and panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
        assert panel["options"]["legend"]["showLegend"]
        targets = panel["targets"]
        assert [target["refId"] for target in targets] == list("ABCDEFGH"[: len(targets)]) != []
        for target in targets:
            assert target["expr"] and "<" not in target["expr"]
            assert target["legendFormat"] and target["datasource"] == panel["datasource"] == BOARDS["SOURCE"]
        legends = [target["legendFormat"] for target in targets]
        assert len(set(legends)) == len(legends)
    assert len({(panel["title"]) for panel in charts}) == len(charts)


def test_board__panels_lie_beside_one_another(board: dict[str, Any]):
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    places = [panel["gridPos"] for panel in board["panels"]]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 and place["h"] > 0 for place in places)
    for one, other in combinations(places, 2):
        across = one["x"] < other["x"] + other["w"] and other["x"] < one["x"] + one["w"]
        down = one["y"] < other["y"] + other["h"] and other["y"] < one["y"] + one["h"]
        assert not (across and down), (one, other)
    assert places == sorted(places, key=lambda place: (place["y"], place["x"]))


def test_board__variables_that_queries_name_are_there(board: dict[str, Any]):
    declared = {variable["name"] for variable in board["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps([board["panels"], board["templating"]]))) - {"__all"}
    assert used == declared and "datasource" in declared
    assert board["uid"] == board["title"].replace(": ", "-") and 8 <= len(board["uid"]) <= 40
    assert board["schemaVersion"] >= 36 and board["links"][0]["tags"] == board["tags"]


def test_board__reads_back_as_grafanas_own_types(board: dict[str, Any]):

    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models.dashboard import Dashboard

    again = json.loads(JSONEncoder().encode(Dashboard.from_json(board)))
    assert _missing(board, again) == []


def _missing(given: Any, kept: Any, at: str = "") -> list[str]:
    """Where something that was given is not kept, as what a type does not know is not."""
    if isinstance(given, dict):
        if not isinstance(kept, dict):
            return [at]
        return [where for key in given for where in _missing(given[key], kept.get(key), f"{at}.{key}")]
    if isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        return [where for n, pair in enumerate(zip(given, kept, strict=True)) for where in _missing(*pair, f"{at}.{n}")]
    return [] if given == kept else [at]


def test_promql__stands_for_known_metrics_alone():
    assert BOARDS["promql"]("<loss/total> / 2") == (
        'max by (run, trial) (ray_raydino_loss_total{run=~"$run", trial=~"$trial"}) / 2'
    )
    with pytest.raises(KeyError, match="loss/totl"):
        BOARDS["promql"]("<loss/totl>")


@needs_promtool
def test_prometheus__takes_configuration_and_rules():
    for what, name in (("config", "prometheus.yml"), ("rules", "rules.yml")):
        done = subprocess.run(
            ["promtool", "check", what, str(DASHBOARDS / name)], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_alerts__each_fires_where_it_should_and_only_there():
    tests = Path(__file__).with_name("rules_test.yml")
    done = subprocess.run(["promtool", "test", "rules", str(tests)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    cases = [case for test in yaml.safe_load(tests.read_text())["tests"] for case in test["alert_rule_test"]]
    alerts = {rule["alert"] for rule in RULES}
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == alerts
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == alerts


@needs_promtool
def test_alerts__a_threshold_that_is_moved_is_noticed(tmp_path: Path):
    # The tests are tested: whichever number of a rule is another, one of them fails.
    tests = Path(__file__).with_name("rules_test.yml").read_text().replace("../../dashboards/", "")
    (tmp_path / "rules_test.yml").write_text(tests)
    rules = (DASHBOARDS / "rules.yml").read_text()
    found = re.finditer(r"(?<=[<>] )[\d.]+$|(?<=for: )\d+(?=m)", rules, re.MULTILINE)
    numbers = [
        number for number in found if not rules[: number.start()].endswith("3600)) < ")
    ]  # bytes: one more is the same
    assert len(numbers) == 11
    unnoticed = []
    for number, by in product(numbers, (3, 1 / 3)):
        value = float(number[0]) * by + (by > 1)
        if value == float(number[0]):
            continue
        moved = f"{value:.0f}" if number[0].isdigit() else f"{value:g}"
        (tmp_path / "rules.yml").write_text(rules[: number.start()] + moved + rules[number.end() :])
        command = ["promtool", "test", "rules", "rules_test.yml"]
        if subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60).returncode == 0:
            unnoticed.append((rules[: number.end()].splitlines()[-1], moved))
    assert unnoticed == []


def test_alerts__each_has_a_row_in_the_readme():
    rows = re.findall(r"^\| `(\w+)` \|", (DASHBOARDS / "README.md").read_text(), re.MULTILINE)
    assert rows == [rule["alert"] for rule in RULES]


def test_grafana__is_given_the_boards_and_one_source():
    provisioning = DASHBOARDS / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "raydino.yml").read_text())["providers"]
    script = (DASHBOARDS / "up.sh").read_text()
    assert source["type"] == "prometheus" and source["url"] in script.replace("--web.listen-address=", "http://")
    assert (
        provider["options"]["path"] == "$RAYDINO_BOARDS" and 'RAYDINO_BOARDS="$PWD/dashboards/grafana/boards"' in script
    )


def _up(tmp_path: Path, *programs: str) -> subprocess.CompletedProcess[str]:
    """up.sh of a checkout in which only these programs are installed, each of which says how it was called."""
    checkout, tools = tmp_path / "checkout", tmp_path / "bin"
    shutil.copytree(DASHBOARDS, checkout / "dashboards")
    tools.mkdir()
    for name in ("dirname", "mkdir", "sh"):
        (tools / name).symlink_to(str(shutil.which(name)))
    for name in programs:
        (tools / name).write_text(
            f'#!/bin/sh\necho "{name} $*"\necho "paths $GF_PATHS_PROVISIONING $GF_SERVER_HTTP_ADDR"\n'
        )
        (tools / name).chmod(0o755)
    environment = {**os.environ, "PATH": str(tools), "GRAFANA_HOME": str(tools)}
    command = [str(checkout / "dashboards" / "up.sh")]
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)


def test_up__without_prometheus_says_what_to_install(tmp_path: Path):
    done = _up(tmp_path)
    assert done.returncode == 1 and "apt-get install prometheus" in done.stderr


def test_up__starts_what_is_there_for_this_machine_alone(tmp_path: Path):
    done = _up(tmp_path, "prometheus")
    assert done.returncode == 0 and "--web.listen-address=127.0.0.1:9090" in done.stdout
    assert "Grafana is not installed" in done.stdout and "dashboards/grafana" in done.stdout
    assert (tmp_path / "checkout" / "runs" / ".prometheus" / "targets").is_dir()


def test_up__starts_grafana_where_it_is(tmp_path: Path):
    done = _up(tmp_path, "prometheus", "grafana")
    checkout = tmp_path / "checkout"
    assert f"grafana server --homepath {tmp_path / 'bin'}" in done.stdout
    assert f"paths {checkout}/dashboards/grafana/provisioning 127.0.0.1" in done.stdout


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_up__shellcheck():
    done = subprocess.run(["shellcheck", str(DASHBOARDS / "up.sh")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
