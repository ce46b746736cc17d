"""One page of all pictures, those of several models side by side; a single HTML file that loads nothing from elsewhere."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

from raydino.curation import markup
from raydino.curation.markup import lines, text
from raydino.launch.show.drawing import Drawn

_STYLE = Path(markup.__file__).with_name("page.css")
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # a second wall behind escaping
# Two models' pictures have room beside each other only where the list of sections stands above them.
_WIDE = "nav { position: static !important; width: auto !important; padding: 1.5rem; } main { max-width: none; }"
_SIDE_BY_SIDE = "display:flex;flex-wrap:wrap;gap:1rem;align-items:flex-start"
TITLES: Mapping[str, str] = {
    "pca": "Patch features",
    "foreground": "Foreground",
    "attention": "Attention",
    "crops": "Across crops",
    "neighbours": "Nearest neighbours",
    "map": "Map of the set",
    "prototypes": "Use of prototypes",
}
"""Of each kind of picture, in the order of the page."""


def page(drawn: Sequence[tuple[Drawn, Path | None]], *, title: str, created: str, command: str) -> str:
    """Pictures with their files (None where there is no picture) as an HTML document: a section a subject, a heading a kind."""
    subjects = list(dict.fromkeys(each.subject for each, _ in drawn))
    sections = []
    for number, subject in enumerate(subjects, start=1):
        own = [(each, path) for each, path in drawn if each.subject == subject]
        parts = []
        for kind, heading in TITLES.items():
            figures = "".join(_figure(each, path) for each, path in own if each.kind == kind)
            parts.append(f'<h3>{heading}</h3><div style="{_SIDE_BY_SIDE}">{figures}</div>' if figures else "")
        sections.append((f"s{number}", text(subject or "The set"), "".join(parts)))
    links = "".join(f'<li><a href="#{key}">{name}</a></li>' for key, name, _ in sections)
    body = "".join(
        f'<section id="{key}" aria-labelledby="{key}-title"><h2 id="{key}-title">{name}</h2>{content}</section>'
        for key, name, content in sections
    )
    models = ", ".join(dict.fromkeys(each.model for each, _ in drawn))
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{text(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<style>{_STYLE.read_text()}{_WIDE}</style></head>\n"
        f'<body><a class="skip" href="#main">Skip to the content</a><nav aria-label="Sections"><ol>{links}</ol></nav>'
        f'<main id="main" tabindex="-1"><header><h1>{text(title)}</h1><p class="aside">{text(created)} · {text(models)}</p>'
        f'</header>{body}<section><h2>How to repeat this</h2><pre tabindex="0">{lines(command, longest=2000)}</pre></section>'
        "</main></body></html>\n"
    )


def _figure(drawn: Drawn, path: Path | None) -> str:
    words = f"{text(drawn.model)}: {text(drawn.words)}"
    if path is None:
        return f'<p class="aside">{words}</p>'
    source = base64.b64encode(path.read_bytes()).decode()
    style = "display:block;max-width:100%;height:auto;background:#fff"
    return (
        f'<div style="max-width:100%"><img src="data:image/png;base64,{source}" alt="{words}" style="{style}">'
        f'<p class="aside">{words}</p></div>'
    )
