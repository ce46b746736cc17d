"""One page of all pictures, those of several models side by side; a single HTML file that loads nothing from elsewhere."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from raydino.curation.document import document, embedded
from raydino.curation.markup import lines, text
from raydino.launch.show.drawing import Drawn

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
    sections.append(("repeat", "How to repeat this", f'<pre tabindex="0">{lines(command, longest=2000)}</pre>'))
    models = ", ".join(dict.fromkeys(each.model for each, _ in drawn))
    head = f'<header><h1>{text(title)}</h1><p class="aside">{text(created)} · {text(models)}</p></header>'
    return document(title, head, sections, style=_WIDE)


def _figure(drawn: Drawn, path: Path | None) -> str:
    words = f"{text(drawn.model)}: {text(drawn.words)}"
    if path is None:
        return f'<p class="aside">{words}</p>'
    return f'<div style="max-width:100%">{embedded(path.read_bytes(), words)}<p class="aside">{words}</p></div>'
