"""How the report looks: one HTML file without scripts, with nothing loaded from elsewhere, to be opened, mailed and printed.

Each section is a function from the report to a fragment. Pictures are the weight of the page, so every section has room for so
many bytes of them, and says what it left out.
"""

from raydino.curation import galleries
from raydino.curation.charts import bar, charts
from raydino.curation.document import document, tiles
from raydino.curation.markup import Album, lines, share, table, text
from raydino.curation.report import LEAKED, Report, Step

ROOM = {"groups": 3_600_000, "pairs": 2_400_000, "leaks": 1_000_000, "quality": 1_000_000, "quarantine": 400_000}
"""Bytes of pictures, 8.4 MB in all, which leaves a page below 10 MB."""


def page(report: Report) -> str:
    """The report as an HTML document: a pure function of its data, at most about 10 MB."""
    pairs = galleries.ranked(report.pairs)
    sections = [
        ("funnel", "Stages", _funnel(report)),
        ("reasons", "Reasons", _reasons(report)),
        ("distances", "Distances", charts(report.distances) or '<p class="aside">No distances were recorded.</p>'),
        ("groups", "Groups of copies", galleries.groups(report, Album(ROOM["groups"]))),
        ("pairs", "Pairs beside the threshold", galleries.pairs(report, pairs, Album(ROOM["pairs"]))),
        ("leaks", "Leaks from evaluation sets", galleries.leaks(report, pairs, Album(ROOM["leaks"]))),
        ("quality", "Quality", galleries.quality(report, Album(ROOM["quality"]))),
        ("quarantine", "Quarantine", galleries.quarantine(report, Album(ROOM["quarantine"]))),
        ("repeat", "How to repeat this", _repeat(report)),
    ]
    return document(report.title, _head(report), sections)


def _head(report: Report) -> str:
    kept = report.images - report.dropped
    figures = [
        ("in", "images in", f"{report.images:,}", ""),
        ("kept", "kept", f"{kept:,}", share(kept, report.images)),
        ("dropped", "left out", f"{report.dropped:,}", share(report.dropped, report.images)),
        ("leaked", "of them leaked", f"{report.leaked:,}", share(report.leaked, report.images)),
    ]
    gaps = "".join(f"<li>{text(gap)}</li>" for gap in report.gaps())
    other = report.dropped - report.leaked
    whole = bar(
        [("kept", kept), ("dropped", other), ("leaked", report.leaked)],
        report.images,
        f"{kept:,} kept, {other:,} left out for other reasons, {report.leaked:,} leaked",
    )
    return (
        f'<header><h1>{text(report.title)}</h1><p class="aside">{text(report.created)} · '
        f'digest <code title="{text(report.digest)}">{text(report.digest[:16])}</code></p>{tiles(figures)}{whole}'
        + (
            f'<div class="gaps" role="note"><strong>These numbers do not add up.</strong><ul>{gaps}</ul></div>'
            * bool(gaps)
        )
        + "</header>"
    )


def _funnel(report: Report) -> str:
    left, rows = report.images, []
    for step in report.steps:
        gone = sum(step.by_reason.values())
        leaked = sum(count for reason, count in step.by_reason.items() if reason.startswith(LEAKED))
        apart = max(left - step.rows_in, 0)
        label = f"{step.name}: {left - gone:,} of {report.images:,} images left, {gone:,} left out"
        parts = [("kept", left - gone - apart), ("apart", apart), ("dropped", gone - leaked), ("leaked", leaked)]
        note = f'<span class="aside">judged {step.rows_in:,} of {left:,}</span>' if apart else ""
        rows.append(
            (
                *(f"{text(step.name)}{note}", bar([part for part in parts if part[1] > 0], report.images, label)),
                *(f"{step.rows_in:,}", f"{gone:,}", f"{step.rows_out:,}", f"{left - gone:,}"),
            )
        )
        left -= gone
    if not rows:
        return '<p class="aside">No stage was recorded.</p>'
    key = (
        '<ul class="key"><li class="kept">kept</li><li class="apart">not judged by this stage, kept</li>'
        '<li class="dropped">left out</li><li class="leaked">left out as leaked</li></ul>'
    )
    return key + table("Images by stage", ["stage", "", "judged", "left out", "passed", "images left"], rows, words=2)


def _reasons(report: Report) -> str:
    rows = [
        (
            *(text(reason), text(step)),
            bar([(LEAKED if reason.startswith(LEAKED) else "dropped", count)], report.dropped, f"{reason}: {count:,}"),
            *(f"{count:,}", share(count, report.images)),
        )
        for (step, reason), count in report.by_reason.items()
    ]
    if not rows:
        return '<p class="aside">Nothing was left out.</p>'
    rows.append(("all", "", "", f"{report.dropped:,}", share(report.dropped, report.images)))
    return table("Images left out, by reason", ["reason", "stage", "", "images", "of all in"], rows, words=3)


def _repeat(report: Report) -> str:
    steps = "".join(_settings(step) for step in report.steps)
    versions = [(text(name), text(version)) for name, version in sorted(report.versions.items())]
    return (
        f'<pre tabindex="0">{lines(report.command, longest=2000)}</pre><p>The same input, settings and versions give the digest '
        f"<code>{text(report.digest)}</code>.</p>"
        + (table("Software", ["software", "version"], versions, words=2) if versions else "")
        + steps
    )


def _settings(step: Step) -> str:
    rows = [(text(name), text(value, longest=600)) for name, value in step.parameters.items()]
    rows += [("seed", f"{step.seed}")] * bool(step.seed)
    rows += [(f"version of {text(name)}", text(version)) for name, version in sorted(step.versions.items())]
    return table(f"Settings of {text(step.name)}", ["setting", "value"], rows, words=2) if rows else ""
