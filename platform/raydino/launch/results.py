"""What evaluations found: a table for people, a file for programs, and the model's own MLflow run.

A folder of results is added to: an evaluation that is done again replaces its own lines and leaves the others.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from raydino.config import ConfigError, read_yaml_file
from raydino.launch.terminal.command import say

JSON_FILE, TABLE_FILE = "evaluation.json", "evaluation.md"


@dataclass(frozen=True)
class Result:
    """One evaluation of one model on one collection of images."""

    model: str
    digest: str
    """Of the weights."""
    step: int | None
    evaluation: str
    data: str
    data_digest: str
    protocol: str
    images: str
    """Which images it was, in words."""
    metrics: dict[str, float]
    seconds: float
    device: str
    version: str
    """Of raydino."""

    @property
    def key(self) -> tuple[str, str, str]:
        """What a later result replaces."""
        return self.model, self.evaluation, self.data


def save(folder: Path, results: Sequence[Result]) -> list[Result]:
    """Write the results into `folder`, beside those that are there; returns all. Raises ConfigError where they are damaged."""
    folder.mkdir(parents=True, exist_ok=True)
    every = {result.key: result for result in [*load(folder), *results]}
    merged = list(every.values())
    write(folder / JSON_FILE, json.dumps([asdict(result) for result in merged], indent=1))
    write(folder / TABLE_FILE, table(merged))
    return merged


def load(folder: Path) -> list[Result]:
    """The results in a folder, none where there are none. Raises ConfigError where the file is damaged."""
    path = folder / JSON_FILE
    if not path.exists():
        return []
    try:
        return [Result(**entry) for entry in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"out = {folder}: {path.name} cannot be read ({error}); move it away.") from error


def table(results: Sequence[Result]) -> str:
    """A Markdown page: a line an evaluation, a column a model; then what was done."""
    models = list(dict.fromkeys(result.model for result in results))
    head = ["evaluation", "images", "metric", *models]
    lines = ["# Evaluation", "", row(head), row(["---"] * 3 + ["---:"] * len(models))]
    for evaluation, data in dict.fromkeys((result.evaluation, result.data) for result in results):
        found = {r.model: r for r in results if (r.evaluation, r.data) == (evaluation, data)}
        for metric in dict.fromkeys(name for result in found.values() for name in result.metrics):
            values = [found[m].metrics.get(metric) if m in found else None for m in models]
            lines.append(row([evaluation, data, metric, *map(_number, values)]))
    lines += ["", "## Models", ""]
    for result in _first(results, lambda r: (r.model, r.digest)):
        lines.append(f"- {result.model}: weights {result.digest[:16]}, raydino {result.version}, {result.device}")
    lines += ["", "## Protocols", ""]
    for result in _first(results, lambda r: (r.evaluation, r.data, r.protocol, r.images)):
        digest = f"digest {result.data_digest[:16]}"
        lines.append(
            f"- **{result.evaluation}** on {result.data}: {result.protocol}. Images: {result.images} ({digest})."
        )
    return "\n".join(lines) + "\n"


def track(run: Path | None, step: int | None, results: Sequence[Result], folder: Path) -> None:
    """Add the figures to the run in MLflow of a run's folder, if it has one; an outage is told and no more."""
    from raydino.tracking.run import evaluation_metric

    metrics = {
        evaluation_metric(f"{result.evaluation}-{result.data}", name): value
        for result in results
        for name, value in result.metrics.items()
    }
    add(run, step, metrics=metrics, files=[folder / TABLE_FILE])


def add(
    run: Path | None,
    step: int | None,
    *,
    metrics: Mapping[str, float],
    files: Sequence[Path],
    pictures: Mapping[str, Path] | None = None,
) -> bool:
    """Add figures, files and pictures (PNGs by name) to the run in MLflow of a run's folder; whether that was done: not where it
    has none, and an outage is told and no more."""
    from raydino.launch.cluster import ClusterConfig
    from raydino.launch.resume import read_run
    from raydino.tracking.mlflow_run import add_to_run
    from raydino.tracking.opening import TrackerUnavailable
    from raydino.tracking.outbox import recorded_run

    if run is None or (run_id := recorded_run(run) or read_run(run).get("mlflow_run_id")) is None:
        return False
    cluster = ClusterConfig().override(read_yaml_file(run / "cluster.yaml"))
    address = cluster.tracking_uri or f"sqlite:///{(run.resolve().parent / 'mlflow.db').as_posix()}"
    try:
        add_to_run(tracking_uri=address, run_id=run_id, metrics=metrics, step=step or 0, files=files, pictures=pictures)
    except TrackerUnavailable as error:
        say(f"warning  {error}")
        return False
    return True


def _first(results: Iterable[Result], key: Callable[[Result], tuple]) -> list[Result]:
    return list({key(result): result for result in reversed(list(results))}.values())[::-1]


def row(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{value:.3g}"


def write(path: Path, text: str) -> None:
    """Write a file as a whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)
