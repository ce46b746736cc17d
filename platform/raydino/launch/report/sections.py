"""The sections of a report: each a function from groups of runs to a fragment of the page."""

import statistics
from collections.abc import Sequence

from raydino.curation.charts import bar
from raydino.curation.markup import lines, share, table, text
from raydino.launch.report.card import Card
from raydino.launch.report.curves import chart, key
from raydino.launch.report.groups import Group, differences, headline_names, lines_of, metric_names, unit_of
from raydino.launch.report.health import WORDS, verdicts
from raydino.launch.report.record import Recorded
from raydino.launch.summary import is_judgement
from raydino.tracking.run import DISPLAYED_GROUP, KNN_TOP1, LOSS_GROUP, LOSS_TOTAL, PIXELS_TOP1, RANKME

FIRST = ("health/", f"{LOSS_TOTAL}", f"{LOSS_GROUP}/", "teacher/")
"""Of metrics that are no evaluations, those shown at once, in this order; the others unfold."""
MOST_RUNS_SPREAD_OUT = 8  # runs whose differences and figures have a column each; more have a row each


def runs_table(groups: Sequence[Group]) -> str:
    """A row a run: how it stands and its headline figures."""
    names = headline_names([run for group in groups for run in group.runs])
    rows = []
    for group in groups:
        for run in group.runs:
            figures = run.figures
            values = [figures["metrics"].get(name, {}).get("last") for name in names]
            state = run.state + (f": {run.reason}" if run.reason else "")
            rows.append(
                (
                    text(run.name),
                    text(state),
                    f"{figures['steps']:,} of {run.steps:,}",
                    f"{figures['images_seen']:,}",
                    *(_figure(value) for value in values),
                    f"{figures['images_per_second']:.0f}",
                )
            )
    return table("Runs", ["run", "state", "steps", "images", *map(text, names), "images/s"], rows, words=2)


def health(groups: Sequence[Group]) -> str:
    """Verdicts of each run; of many runs those that are not fine."""
    runs = [run for group in groups for run in group.runs]
    if len(runs) == 1:
        return _verdicts(runs[0], everything=True)
    seen = {run.name: _verdicts(run, everything=False) for run in runs}
    well = ", ".join(text(name) for name, found in seen.items() if not found)
    ill = "".join(f"<h3>{text(name)}</h3>{found}" for name, found in seen.items() if found)
    return ill + (f'<p class="aside">Nothing that asks for a look: {well}.</p>' if well else "")


def recipes_apart(groups: Sequence[Group]) -> str:
    """The table of what differs between recipes, and nothing else."""
    runs = [run for group in groups for run in group.runs]
    found = differences(runs)
    if not found:
        return '<p class="aside">The recipes are the same.</p>'
    if len(runs) <= MOST_RUNS_SPREAD_OUT:
        rows = [
            (f"<code>{text(name)}</code>", *(text(_plain(value)) for value in values)) for name, values in found.items()
        ]
        return table("Fields that differ", ["field", *(text(run.name) for run in runs)], rows, words=len(runs) + 1)
    rows = [(text(run.name), *(text(_plain(values[at])) for values in found.values())) for at, run in enumerate(runs)]
    return table("Fields that differ", ["run", *map(text, found)], rows, words=len(found) + 1)


def curves(groups: Sequence[Group]) -> str:
    """Every metric of the record over steps or images: evaluations, health and losses at once, the others to unfold."""
    unit = unit_of(groups)
    evals = {name for group in groups for run in group.runs for name in run.evals}
    names = [
        name for name in metric_names(groups) if name != PIXELS_TOP1 and not name.startswith(f"{DISPLAYED_GROUP}/")
    ]
    judged = [name for name in names if is_judgement(name, evals)]
    first = [name for prefix in FIRST for name in names if name.startswith(prefix) and name not in judged]
    first = [name for name in dict.fromkeys(first) if _moves(name, groups)]
    rest = [name for name in names if name not in {*judged, *first}]
    drawn = _charts([*judged, *first], groups, unit)
    if not drawn:
        return '<p class="aside">There is nothing to draw yet.</p>'
    legend = key([(group.label, group.place) for group in groups]) if len(groups) > 1 else ""
    seeds = any(len(group.runs) > 1 for group in groups)
    note = (
        '<p class="aside">Lines are means over seeds, bands reach from the least to the greatest.</p>' if seeds else ""
    )
    folded = _charts(rest, groups, unit)
    more = (
        f"<details><summary>Rates, gradients, throughput, saves, and what never changed</summary>{folded}</details>"
        if folded
        else ""
    )
    return f"{legend}{note}{drawn}{more}"


def evaluations(groups: Sequence[Group]) -> str:
    """What training found, beside the untrained teacher and raw pixels; then what evaluate.py found."""
    runs = [run for group in groups for run in group.runs]
    names = [n for n in dict.fromkeys(n for run in runs for n in run.figures["metrics"]) if n != PIXELS_TOP1]
    rows = []
    for name in sorted(names, key=lambda n: (n == RANKME, n)):
        pixels = [value for group in groups for value in group.values("last", PIXELS_TOP1)]
        beside = statistics.fmean(pixels) if name == KNN_TOP1 and pixels else None
        for group in groups:
            last, best, before = (group.values(pick, name) for pick in ("last", "best", "untrained"))
            steps = sorted(
                {run.figures["metrics"][name]["best_step"] for run in group.runs if name in run.figures["metrics"]}
                - {None}
            )
            label = [text(group.label)] if len(groups) > 1 else []
            at = f"{_spread(best)}" + (f" at step {steps[0]:,}" if len(steps) == 1 else "")
            rows.append((text(name), *label, _spread(before), _figure(beside), _spread(last), at))
    parts = []
    if rows:
        head = ["metric", *(["run"] if len(groups) > 1 else []), "untrained", "raw pixels", "last", "best"]
        parts.append(table("While training, on the teacher", head, rows, words=len(head) - 4))
        if any(len(group.runs) > 1 for group in groups):
            parts.append(
                '<p class="aside">Means over seeds with least and greatest. The best of several looks is biased upwards.</p>'
            )
    parts.append(_evaluated(runs))
    return "".join(parts) or '<p class="aside">Nothing was evaluated.</p>'


def data(groups: Sequence[Group]) -> str:
    """The data card: what runs were trained on, what curation left out, and what was met that could not be used."""
    runs = [run for group in groups for run in group.runs]
    parts = []
    cards = {run.card.digest: run.card for run in runs if run.card is not None}
    for card in cards.values():
        users = [run.name for run in runs if run.card is not None and run.card.digest == card.digest]
        title = f"<h3>{text(', '.join(users))}</h3>" if len(cards) > 1 else ""
        parts.append(title + _card(card))
    if not cards:
        parts.append('<p class="aside">The images are not described: see what is missing above.</p>')
    for run in runs:
        if run.quarantined:
            of = f", {text(run.name)}" if len(runs) > 1 else ""
            rows = [(text(reason), f"{count:,}") for reason, count in run.quarantined.items()]
            parts.append(table(f"Quarantined while training{of}", ["reason", "images"], rows))
    if not any(run.quarantined for run in runs):
        parts.append('<p class="aside">No image was quarantined while training.</p>')
    return "".join(parts)


def cost(groups: Sequence[Group]) -> str:
    """Images, time and device-hours of each run and of all."""
    rows, hours = [], dict[str, float]()
    runs = [run for group in groups for run in group.runs]
    for run in runs:
        kind = run.device or "worker"
        used = run.worker_hours() * (run.devices_per_worker() if run.device else 1)
        hours[kind] = hours.get(kind, 0.0) + used
        span = run.ended - run.began if run.began is not None and run.ended is not None else None
        rows.append(
            (
                text(run.name),
                f"{run.figures['images_seen']:,}",
                f"{run.figures['images_per_second']:.0f}",
                f"{run.figures['data_wait']:.1%}",
                f"{run.figures['seconds'] / 60:.1f}",
                "–" if span is None else f"{span / 60:.1f}",
                f"{used:.3g} {kind}-hours",
            )
        )
    head = [
        "run",
        "images",
        "images/s",
        "waiting for data",
        "minutes of training",
        "minutes from first to last line",
        "cost",
    ]
    total = ", ".join(f"{used:.3g} {kind}-hours" for kind, used in hours.items())
    images = sum(run.figures["images_seen"] for run in runs)
    note = f"<p>In all {total} of training for {images:,} images; evaluations, saves and starts come on top.</p>"
    return note + table("Cost", head, rows)


def recipe(groups: Sequence[Group]) -> str:
    """The recipe of the first of each group, as it was written, and what was changed on the way."""
    parts = []
    for group in groups:
        run = group.runs[0]
        opened = " open" if len(groups) == 1 else ""
        parts.append(
            f"<details{opened}><summary>{text(group.label)}: recipe.yaml</summary>"
            f'<pre tabindex="0">{lines(run.recipe_yaml, longest=400)}</pre></details>'
        )
        rows = [
            (f"{entry.get('step', '?')}", text(name), text(_plain(was)), text(_plain(now)))
            for run in group.runs
            for entry in run.history
            for name, (was, now) in entry.get("changes", {}).items()
        ]
        if rows:
            parts.append(table("Changed on resuming", ["after step", "field", "from", "to"], rows, words=4))
    return "".join(parts)


def _moves(name: str, groups: Sequence[Group]) -> bool:
    """Whether a metric ever changes by more than the rounding of its mean, which is another over three steps than over ten."""
    rows = (row for group in groups for run in group.runs for row in run.rows.values())
    return len({f"{row[name]:.6g}" for row in rows if name in row}) > 1


def _charts(names: Sequence[str], groups: Sequence[Group], unit: str) -> str:
    found = []
    for name in names:
        lines = lines_of(name, groups, unit)
        if not lines:
            continue
        pixels = [value for group in groups for value in group.values("last", PIXELS_TOP1)]
        marks = [("raw pixels", statistics.fmean(pixels))] if name == KNN_TOP1 and pixels else []
        found.append(chart(name, lines, unit=unit, marks=marks))
    return f'<div class="charts">{"".join(found)}</div>' if found else ""


def _verdicts(run: Recorded, *, everything: bool) -> str:
    found = [verdict for verdict in verdicts(run) if everything or verdict.level != "fine"]
    if not found:
        return ""
    items = "".join(f'<li class="is-{v.level}"><strong>{WORDS[v.level]}</strong> {text(v.said)}</li>' for v in found)
    return f'<ul class="verdict">{items}</ul>'


def _evaluated(runs: Sequence[Recorded]) -> str:
    results = [result for run in runs for result in run.evaluations]
    if not results:
        return ""
    models = list(dict.fromkeys(result.model for result in results))
    rows = []
    for evaluation, images in dict.fromkeys((result.evaluation, result.data) for result in results):
        found = {r.model: r for r in results if (r.evaluation, r.data) == (evaluation, images)}
        for metric in dict.fromkeys(name for result in found.values() for name in result.metrics):
            values = [found[m].metrics.get(metric) if m in found else None for m in models]
            rows.append((f"{text(evaluation)} on {text(images)}", text(metric), *map(_figure, values)))
    said = {(r.evaluation, r.data): r for r in results}.values()
    protocols = "".join(
        f"<li>{text(r.evaluation)} on {text(r.data)}: {text(r.protocol, longest=600)}. {text(r.images)}.</li>"
        for r in said
    )
    head = ["evaluation", "metric", *map(text, models)]
    return (
        table("By recipes/evaluate.py", head, rows, words=2)
        + f"<details><summary>Protocols</summary><ul>{protocols}</ul></details>"
    )


def _card(card: Card) -> str:
    kept = card.rows if card.kept is None else card.kept
    labels = f"{card.classes:,} classes" if card.classes else "labelled" if card.labelled else "no labels"
    what = (
        f"<p><code>{text(card.path)}</code>: {card.rows:,} images in the split that was trained on, {kept:,} of them trained on "
        f'({share(kept, card.rows)}); {labels}. Digest <code title="{text(card.digest)}">{text(card.digest[:16])}</code>.</p>'
    )
    if not card.stages:
        return what + '<p class="aside">The folder was not curated by raydino: there are no counts by stage.</p>'
    rows = []
    for stage in card.stages:
        gone = sum(stage.by_reason.values())
        label = f"{stage.name}: {stage.rows_out:,} of {stage.rows_in:,} passed"
        parts = [("kept", float(stage.rows_out)), ("dropped", float(gone))]
        reasons = ", ".join(f"{text(reason)} {count:,}" for reason, count in stage.by_reason.items() if count) or "–"
        rows.append(
            (
                text(stage.name),
                reasons,
                bar(parts, stage.rows_in, label),
                f"{stage.rows_in:,}",
                f"{gone:,}",
                f"{stage.rows_out:,}",
            )
        )
    return what + table(
        "Curation by stage", ["stage", "left out because", "", "judged", "left out", "passed"], rows, words=3
    )


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "–"
    if len(values) == 1:
        return _figure(values[0])
    return f"{_figure(statistics.fmean(values))} ({_figure(min(values))} to {_figure(max(values))})"


def _figure(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if 1e-2 <= abs(value) < 1e4 or value == 0 else f"{value:.3g}"


def _plain(value: object) -> str:
    """A value as YAML has it, for a cell."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
