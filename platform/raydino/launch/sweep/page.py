"""The page of a sweep: one HTML file without scripts, with nothing loaded from elsewhere, in the manner of curation's report."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydino.curation.document import Section, document, embedded, tiles
from raydino.curation.markup import lines, number, table, text
from raydino.launch.report.curves import STYLE
from raydino.launch.sweep.importance import RELIABLE_TRIALS, Importance
from raydino.launch.sweep.population import Exploit
from raydino.launch.sweep.ranking import Row, no_gain
from raydino.launch.sweep.space import label

if TYPE_CHECKING:
    from raydino.launch.sweep.search import Planned


@dataclass(frozen=True)
class Told:
    """All that the page says."""

    title: str
    created: str
    command: str
    objective: str
    rows: Sequence[Row]
    """From the best to the worst."""
    own: Mapping[str, Any]
    """The recipe's values in every dimension."""
    mattered: Sequence[Importance]
    compared: tuple[int, int]
    """Trials that importances come from, and the images after which they were compared."""
    pictures: Mapping[str, Path]
    """By caption."""
    device_hours: float
    device: str
    minutes: float
    """From begin to end, of the last driver."""
    refused: Sequence[str]
    exploits: Sequence[Exploit]
    settings: Mapping[str, Any]
    best: str
    """best.yaml."""


def page(told: Told, *, curves: str = "") -> str:
    """The sweep as an HTML document: a pure function of what is told; `curves` of the trials over each other, finished."""
    sections: list[Section] = [
        ("ranking", "Ranking", _ranking(told)),
        ("mattered", "What mattered", _mattered(told)),
        ("pictures", "Pictures", "".join(_picture(caption, path) for caption, path in told.pictures.items())),
        *([("curves", "Curves", curves)] if curves else []),
        *([("exploits", "Exploits", _exploits(told))] if told.exploits else []),
        ("best", "The best recipe", f'<pre tabindex="0">{lines(told.best, longest=2000)}</pre>'),
        ("repeat", "How to repeat this", _repeat(told)),
    ]
    return document(told.title, _head(told), sections, style=STYLE.read_text())


def shown(value: float | None, spread: float | None) -> str:
    """A mean with its spread; "–" where there is none."""
    if value is None:
        return "–"
    return f"{value:.4f}" + (f" ± {spread:.4f}" if spread is not None else "")


def settings_of(row: "Row | Planned") -> str:
    """What a configuration sets, for people."""
    return ", ".join(f"{label(key)} {_value(value)}" for key, value in row.params.items()) or "the recipe as it is"


def how_it_ended(row: Row) -> str:
    """A status with its reason, unless the reason says it already."""
    return row.reason if row.reason.startswith(row.status) else f"{row.status}{': ' * bool(row.reason)}{row.reason}"


def _head(told: Told) -> str:
    statuses = [row.status for row in told.rows]
    figures = [
        ("in", "configurations", f"{len(told.rows):,}", ""),
        ("kept", "trained to the end", f"{statuses.count('finished'):,}", ""),
        ("dropped", "stopped early", f"{statuses.count('stopped'):,}", ""),
        ("leaked", "failed", f"{sum(row.failed for row in told.rows):,}", "trials"),
    ]
    best = told.rows[0] if told.rows else None
    words = (
        f"Best: {settings_of(best)}, {told.objective} {shown(best.value, best.spread)}."
        if best
        else "No trial was run."
    )
    words += f" But {nothing}." if (nothing := no_gain(told.rows)) else ""
    return (
        f'<header><h1>{text(told.title)}</h1><p class="aside">{text(told.created)} · {told.device_hours:.3g} '
        f"{text(told.device)}-hours · {told.minutes:.1f} minutes</p>{tiles(figures)}<p>{text(words)}</p></header>"
    )


def _ranking(told: Told) -> str:
    keys = list(told.own)
    rows = [
        (
            text(row.group),
            *(text(_value(row.params.get(key, told.own.get(key)))) for key in keys),
            text(how_it_ended(row)),
            text(shown(row.value, row.spread)),
            text(shown(row.untrained, None)),
            f"{len(row.values)}",
            f"{row.images:,}",
            f"{row.seconds / 60:.1f}",
        )
        for row in told.rows
    ]
    scores = [text(told.objective), "untrained", "seeds", "images", "minutes"]
    head = ["trial", *(text(label(key)) for key in keys), "ended", *scores]
    note = (
        '<p class="aside">Means over seeds, ± their standard deviation. Configurations that were stopped are ranked by how far '
        "they came: their values are of fewer images. Each trial has a page of its own, trials/NAME/report.html.</p>"
    )
    return note + table("Configurations, the best first", head, rows, words=2 + len(keys))


def _mattered(told: Told) -> str:
    trials, images = told.compared
    if not told.mattered:
        return f'<p class="aside">Nothing can be said from {trials} trials.</p>'
    rows = [(text(label(each.key)), f"{each.share:.0%}", f"± {each.spread:.0%}") for each in told.mattered]
    doubt = (
        f" {trials} trials are few: below about {RELIABLE_TRIALS}, take a share no larger than twice its spread for chance."
        if trials < RELIABLE_TRIALS
        else ""
    )
    note = (
        f'<p class="aside">Share of the variance of {text(told.objective)} that each dimension explains alone (functional '
        f"analysis of variance on random forests), over {trials} trials compared after {images:,} images each.{doubt}</p>"
    )
    return note + table("What mattered", ["dimension", "share", "spread"], rows)


def _picture(caption: str, path: Path) -> str:
    return f"<h3>{text(caption)}</h3>{embedded(path.read_bytes(), text(caption))}"


def _exploits(told: Told) -> str:
    rows = [
        (
            f"{each.step:,}",
            text(each.loser),
            text(each.winner),
            f"{number(each.worth[0])} → {number(each.worth[1])}",
            text(", ".join(f"{label(key)} {_value(value)}" for key, value in each.after.items())),
        )
        for each in told.exploits
    ]
    return table(
        "Members that went on from a copy", ["step", "member", "copy of", told.objective, "and then"], rows, words=9
    )


def _repeat(told: Told) -> str:
    rows = [
        (text(name), text(json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value, longest=600))
        for name, value in told.settings.items()
        if name != "base"
    ]
    refused = "".join(f"<li>{text(each)}</li>" for each in told.refused)
    return (
        f'<pre tabindex="0">{lines(told.command, longest=2000)}</pre>{table("Settings", ["setting", "value"], rows, words=2)}'
        + (f"<h3>Drawn in vain</h3><ul>{refused}</ul>" if refused else "")
    )


def _value(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
