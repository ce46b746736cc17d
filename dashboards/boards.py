"""The boards for Grafana: `python dashboards/boards.py` makes grafana/boards/*.json, which nobody edits, from boards/*.yaml.

A panel there is a title, a unit in Grafana's words, PromQL by legend, and a sentence on how to read it. In PromQL, `<loss/total>`
is that metric of tracking/run.py for the chosen runs; other names are Ray's own. A gauge that Ray sets only now and then is
forgotten in between (launch/gauges.py), so its last value is looked for in the minutes before.
"""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from raydino.tracking import run

HERE = Path(__file__).parent
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
ACROSS, HEIGHT, WIDTH = 3, 8, 8  # panels in a row; their size in cells of a grid that is 24 wide
SCHEMA = 39  # of Grafana 10.4; newer ones migrate it
OWN = "each"
"""Legend of a line that is the run's and needs no word of its own."""


def metric_names() -> set[str]:
    """What `<...>` may stand for: the names of tracking/run.py, and the gradient norms of the two sub-modules."""
    names = {value for value in vars(run).values() if isinstance(value, str) and re.fullmatch(r"[a-z]+/\w+", value)}
    return names | {f"{run.OPTIM_GRAD_NORM}_{part}" for part in ("backbone", "head")}


def promql(text: str) -> str:
    """A query as Prometheus reads it: one line per run, whichever worker tells it. Raises KeyError for an unknown metric."""

    def series(found: re.Match[str]) -> str:
        if found[1] not in metric_names():
            raise KeyError(f"<{found[1]}>: tracking/run.py has no such metric.")
        return f'max by (run, trial) ({run.prometheus_name(found[1])}{{run=~"$run", trial=~"$trial"}})'

    return re.sub(r"<(\w+/\w+)>", series, text)


def board_names() -> list[str]:
    """All boards."""
    return sorted(path.stem for path in (HERE / "boards").glob("*.yaml"))


def dashboard(name: str) -> dict[str, Any]:
    """A board in Grafana's model."""
    board = yaml.safe_load((HERE / "boards" / f"{name}.yaml").read_text())
    panels: list[dict[str, Any]] = []
    top = 0
    for heading, members in board["rows"].items():
        place = {"x": 0, "y": top, "w": WIDTH * ACROSS, "h": 1}
        row = {"type": "row", "title": heading, "collapsed": False, "gridPos": place, "panels": []}
        panels.append({"id": len(panels) + 1, **row})
        for number, panel in enumerate(members):
            place = {"x": number % ACROSS * WIDTH, "y": top + 1 + number // ACROSS * HEIGHT, "w": WIDTH, "h": HEIGHT}
            panels.append({"id": len(panels) + 1, "gridPos": place, **_chart(panel)})
        top += 1 + -(-len(members) // ACROSS) * HEIGHT
    return {
        "uid": f"raydino-{name}",
        "title": f"raydino: {name}",
        "description": board["says"],
        "tags": ["raydino"],
        "schemaVersion": SCHEMA,
        "timezone": "browser",
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": _variables(by_run=board.get("by_run", True))},
        "annotations": {"list": []},
        "links": [_link()],
        "panels": panels,
    }


def text_of(name: str) -> str:
    """A board's file."""
    return json.dumps(dashboard(name), indent=1, ensure_ascii=False) + "\n"


def _chart(panel: dict[str, Any]) -> dict[str, Any]:
    targets = []
    for letter, (legend, query) in zip("ABCDEFGH", panel["lines"].items(), strict=False):
        expression = promql(query)
        if "$run" in expression:
            legend = "{{run}} {{trial}}" if legend == OWN else legend + " · {{run}} {{trial}}"
        targets.append({"refId": letter, "datasource": SOURCE, "expr": expression, "legendFormat": legend})
    legend = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
    return {
        "type": "timeseries",
        "title": panel["title"],
        "description": panel["reading"],
        "datasource": SOURCE,
        "fieldConfig": {"defaults": {"unit": panel["unit"]}, "overrides": []},
        "options": {"legend": legend, "tooltip": {"mode": "multi", "sort": "none"}},
        "targets": targets,
    }


def _variables(*, by_run: bool) -> list[dict[str, Any]]:
    source = {"type": "datasource", "name": "datasource", "label": "Prometheus", "query": "prometheus"}
    if not by_run:
        return [source]
    # A run and a trial have a step; a sweep as a whole has configurations. A run that is no trial has an empty `trial`.
    step, sweep = run.prometheus_name(run.RUN_STEP), run.prometheus_name(run.SWEEP_CONFIGURATIONS)
    queries = {
        "run": f'label_values({{__name__=~"{step}|{sweep}"}}, run)',
        "trial": f'label_values({step}{{run=~"$run"}}, trial)',
    }
    common = {"type": "query", "datasource": SOURCE, "refresh": 2, "sort": 2, "multi": True, "includeAll": True}
    all_of_them = {"allValue": ".*", "current": {"text": "All", "value": "$__all"}}
    return [source, *({"name": name, "query": query, **common, **all_of_them} for name, query in queries.items())]


def _link() -> dict[str, Any]:
    """To the other boards, for the same runs and time."""
    shown = {"asDropdown": False, "keepTime": True, "includeVars": True, "targetBlank": False}
    return {
        "type": "dashboards",
        "title": "raydino",
        "tags": ["raydino"],
        "icon": "",
        "tooltip": "",
        "url": "",
        **shown,
    }


if __name__ == "__main__":
    for each in board_names():
        (HERE / "grafana" / "boards" / f"{each}.json").write_text(text_of(each))
