"""A board as a picture, for those who have no Grafana: what Prometheus answers to its queries, drawn panel by panel.

python dashboards/pictures.py training --last 300 --out training.png    # the last five minutes
"""

import argparse
import json
import re
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

BOARDS = Path(__file__).parent / "grafana" / "boards"
POINTS = 300  # of a line
matplotlib.use("agg")


def draw(board: str, out: Path, *, address: str, end: float, seconds: float) -> None:
    """Draw the charts of `board` over the `seconds` before `end` (since 1970) into `out`. Raises OSError without Prometheus."""
    panels = [panel for panel in json.loads((BOARDS / f"{board}.json").read_text())["panels"] if "targets" in panel]
    rows = -(-len(panels) // 3)
    figure, axes = plt.subplots(rows, 3, figsize=(15, 2.7 * rows), layout="constrained", squeeze=False)
    for axis, panel in zip(axes.flat, panels, strict=False):
        _chart(axis, panel, lambda query: _range(address, query, end=end, seconds=seconds), begin=end - seconds)
        axis.set_xlim(0, seconds)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    figure.savefig(out, dpi=70)
    plt.close(figure)


def _chart(axis: Axes, panel: dict[str, Any], ask: Any, *, begin: float) -> None:
    axis.set_title(panel["title"], fontsize=10, loc="left")
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
    for target in panel["targets"]:
        for series in ask(target["expr"].replace("$run", ".*").replace("$trial", ".*")):
            times, values = zip(*series["values"], strict=True)
            label = re.sub(
                r"{{(\w+)}}", lambda name, tags=series["metric"]: tags.get(name[1], ""), target["legendFormat"]
            )
            axis.plot([t - begin for t in times], [float(v) for v in values], linewidth=1.2, label=label.strip()[:60])
    if axis.lines:
        axis.legend(fontsize=6, loc="best", framealpha=0.6)
    else:
        axis.text(0.5, 0.5, "no data", transform=axis.transAxes, ha="center", color="grey")
    unit = panel["fieldConfig"]["defaults"]["unit"]
    axis.set_ylabel("" if unit in ("short", "sci") else unit.replace("percentunit", "share"), fontsize=8)
    axis.set_xlabel("seconds", fontsize=7)


def _range(address: str, query: str, *, end: float, seconds: float) -> list[dict[str, Any]]:
    asked = {"query": query, "start": end - seconds, "end": end, "step": max(1.0, seconds / POINTS)}
    with urllib.request.urlopen(f"{address}/api/v1/query_range?{urllib.parse.urlencode(asked)}", timeout=30) as answer:
        return json.load(answer)["data"]["result"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("board", choices=sorted(path.stem for path in BOARDS.glob("*.json")))
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090")
    parser.add_argument("--end", type=float, default=time.time(), help="seconds since 1970; default: now")
    parser.add_argument("--last", type=float, default=900.0, help="seconds before the end")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    draw(given.board, given.out, address=given.prometheus, end=given.end, seconds=given.last)
