"""The report page of a run or of several, as a pure function of what their folders hold."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from raydino.curation.document import Section, document, tiles
from raydino.curation.markup import lines, text
from raydino.launch.report import sections
from raydino.launch.report.curves import STYLE
from raydino.launch.report.gallery import pictures
from raydino.launch.report.groups import Group, grouped, headline_names
from raydino.launch.report.record import Recorded, read
from raydino.launch.resume import RECIPE_FILE
from raydino.tracking.redact import redact_text
from raydino.tracking.run import KNN_TOP1, PIXELS_TOP1

COLOURS = {"finished": "kept", "failed": "leaked", "in progress": "in"}
"""Of the tile that says how a run stands; any other state has that of a warning."""


def page(runs: Sequence[Recorded], *, command: str, title: str | None = None) -> str:
    """One page of runs; those that are repeats of one recipe share their lines. `command` repeats them, or makes the page."""
    groups = grouped(runs)
    several = len(runs) > 1
    found: list[Section] = [
        *([("runs", "Runs", sections.runs_table(groups))] if several else []),
        ("health", "Health", sections.health(groups)),
        *([("differences", "What differs between the recipes", sections.recipes_apart(groups))] if several else []),
        ("curves", "Curves", sections.curves(groups)),
        ("evaluations", "Evaluations", sections.evaluations(groups)),
        ("pictures", "Pictures", pictures(groups)),
        ("data", "Images", sections.data(groups)),
        ("cost", "Cost", sections.cost(groups)),
        ("repeat", "How to repeat this", f'<pre tabindex="0">{lines(redact_text(command), longest=2000)}</pre>'),
        ("recipe", "Recipes" if len(groups) > 1 else "Recipe", sections.recipe(groups)),
    ]
    name = title or (runs[0].name if not several else " beside ".join(group.label for group in groups[:4]))
    name += f" and {len(groups) - 4} more" if title is None and len(groups) > 4 else ""
    return document(name, _head(name, groups), found, style=STYLE.read_text())


def trial_curves(folder: Path, labels: Mapping[str, str]) -> str:
    """The curves over each other of the runs in `folder` that there are, "" without any; `labels` by name, repeats share one."""
    runs = [read(folder / name) for name in labels if (folder / name / RECIPE_FILE).exists()]
    return sections.curves(grouped(runs, labels)) if runs else ""


def _head(title: str, groups: Sequence[Group]) -> str:
    runs = [run for group in groups for run in group.runs]
    missing = [f"{run.name}: {said}" if len(runs) > 1 else said for run in runs for said in run.missing]
    gaps = "".join(f"<li>{text(said)}</li>" for said in missing)
    note = f'<div class="gaps" role="note"><strong>Not everything is there.</strong><ul>{gaps}</ul></div>' * bool(
        missing
    )
    figures = _tiles_of_one(runs[0]) if len(runs) == 1 else _tiles_of_several(runs)
    created = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    ids = ", ".join(run.mlflow_run_id for run in runs[:4] if run.mlflow_run_id)
    where = f" · MLflow run {text(ids)}" if ids else ""
    return f'<header><h1>{text(title)}</h1><p class="aside">{created}{where}</p>{tiles(figures)}{_state(runs)}{note}</header>'


def _state(runs: Sequence[Recorded]) -> str:
    """What to know before the figures are read."""
    words = []
    for run in runs:
        of = f"{run.name}: " if len(runs) > 1 else ""
        reason = f" ({run.reason})" if run.reason else ""
        if run.state == "in progress":
            words.append(f"{of}in progress: this page shows the first {run.figures['steps']:,} of {run.steps:,} steps.")
        elif run.state != "finished":
            words.append(f"{of}{run.state} after {run.figures['steps']:,} of {run.steps:,} steps{reason}.")
    return "".join(f"<p>{text(word, longest=600)}</p>" for word in words[:12])


def _tiles_of_one(run: Recorded) -> list[tuple[str, str, str, str]]:
    figures = run.figures
    found = [
        (COLOURS.get(run.state, "dropped"), "state", text(run.state), f"{figures['steps']:,} of {run.steps:,} steps"),
        ("in", "images seen", f"{figures['images_seen']:,}", f"{figures['images_per_second']:.0f} a second"),
    ]
    for name in headline_names([run]):
        value = figures["metrics"][name]
        if value["last"] is None:
            continue
        beside = [] if value["untrained"] is None else [f"untrained {value['untrained']:.3f}"]
        pixels = figures["metrics"].get(PIXELS_TOP1, {}).get("last")
        beside += [f"raw pixels {pixels:.3f}"] if name == KNN_TOP1 and pixels is not None else []
        found.append(("kept", text(name), f"{value['last']:.3f}", "; ".join(beside)))
    return found


def _tiles_of_several(runs: Sequence[Recorded]) -> list[tuple[str, str, str, str]]:
    finished = sum(run.state == "finished" for run in runs)
    images = sum(run.figures["images_seen"] for run in runs)
    found = [
        ("in", "runs", f"{len(runs)}", f"{finished} finished"),
        ("in", "images seen", f"{images:,}", ""),
    ]
    for name in headline_names(runs)[:2]:
        values = {run.name: run.figures["metrics"].get(name, {}).get("last") for run in runs}
        judged = {run: value for run, value in values.items() if value is not None}
        if judged:
            best = max(judged, key=lambda run: judged[run])
            found.append(("kept", f"highest {text(name)}", f"{judged[best]:.3f}", text(best)))
    return found
