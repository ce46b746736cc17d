"""The frame of every page: one HTML file without scripts that loads nothing from elsewhere, light and dark, for phone and paper.

What goes into it is made of `markup` and `charts`; a page adds a style of its own where it has something new to show.
"""

import base64
from collections.abc import Sequence
from pathlib import Path

from raydino.curation.markup import text

_STYLE = Path(__file__).with_name("page.css")
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # a second wall behind escaping

Section = tuple[str, str, str]
"""Name of its anchor, heading and content, the last two finished."""


def document(title: str, head: str, sections: Sequence[Section], *, style: str = "") -> str:
    """The whole page: `title` in plain words, `head` and `sections` finished, `style` CSS that comes last."""
    links = "".join(f'<li><a href="#{name}">{heading}</a></li>' for name, heading, _ in sections)
    body = "".join(
        f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{heading}</h2>{content}</section>'
        for name, heading, content in sections
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{text(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<style>{_STYLE.read_text()}{style}</style></head>\n"
        f'<body><a class="skip" href="#main">Skip to the content</a><nav aria-label="Sections"><ol>{links}</ol></nav>'
        f'<main id="main" tabindex="-1">{head}{body}</main></body></html>\n'
    )


def tiles(found: Sequence[tuple[str, str, str, str]]) -> str:
    """Headline figures: class (in, kept, dropped, leaked), what it is, the figure, and a note below it; all finished."""
    cells = "".join(
        f'<div class="{kind}"><dt>{name}</dt><dd>{figure}</dd><dd class="aside">{note}</dd></div>'
        for kind, name, figure, note in found
    )
    return f'<dl class="tiles">{cells}</dl>'


def embedded(picture: bytes, words: str) -> str:
    """A PNG or JPEG inside the page, at most as wide as its place; `words` say what it shows, and are finished."""
    kind = "png" if picture.startswith(b"\x89PNG") else "jpeg"
    source = base64.b64encode(picture).decode()
    return f'<img class="picture" src="data:image/{kind};base64,{source}" alt="{words}">'
