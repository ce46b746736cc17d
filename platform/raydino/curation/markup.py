"""Pieces of a page: text, numbers, tables and pictures, each safe whatever it was made from.

Paths, class names and error messages come from strangers. They reach the page through `text` and nothing else.
"""

import base64
import html
import io
from collections.abc import Iterable, Sequence

import cv2
import numpy as np
from PIL import Image

from raydino.curation.report import Shown
from raydino.curation.sources import escaped
from raydino.data.decode import Undecodable, decode
from raydino.shards.schema import redacted

LONGEST = 240  # characters; longer paths are cut in the middle, where they say least
SIDE = 160  # pixels of a thumbnail's longer side: sharp at the 112 it is shown at, about 5 kB
JPEG_QUALITY = 72  # where 8 × 8 blocks begin to show at this size


def text(value: object, *, longest: int = LONGEST) -> str:
    """Anything as text of a page: unprintable characters escaped, passwords left out, at most `longest` characters."""
    line = redacted(escaped(str(value)))
    if len(line) > longest:
        head = longest // 3
        line = f"{line[:head]}…{line[head + 1 - longest :]}"
    return html.escape(line, quote=True)


def lines(value: str, *, longest: int = LONGEST) -> str:
    """`text` of several lines."""
    return "\n".join(text(line, longest=longest) for line in value.split("\n"))


def number(value: float) -> str:
    """A number to be read: 12,345 or 0.4567."""
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 1000 else f"{value:.4g}"


def share(part: float, whole: float) -> str:
    """Per cent, never 0 % of something nor 100 % of less than all."""
    if not whole or part == 0:
        return "0 %"
    percent = 100 * part / whole
    if percent < 0.1:
        return "&lt; 0.1 %"
    if percent > 99.9 and part < whole:
        return "&gt; 99.9 %"
    return f"{percent:.0f} %" if 10 <= percent < 99.5 or part == whole else f"{percent:.1f} %"


def size(count: int) -> str:
    """Bytes to be read."""
    value, units = float(count), ["B", "kB", "MB", "GB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.3g}&nbsp;{units[0]}" if value < 1000 else f"{value:.0f}&nbsp;{units[0]}"


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], *, words: int = 1) -> str:
    """A table of finished cells. The first column heads its row; columns from `words` on are numbers."""
    kinds = ["" if column < words else ' class="n"' for column in range(len(head))]
    top = "".join(f'<th scope="col"{kind}>{name}</th>' for name, kind in zip(head, kinds, strict=True))
    body = []
    for row in rows:
        first, *rest = zip(row, kinds, strict=True)
        cells = "".join(f"<td{kind}>{cell}</td>" for cell, kind in rest)
        body.append(f'<tr><th scope="row">{first[0]}</th>{cells}</tr>')
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}"><table><caption>{caption}</caption>'
        f"<thead><tr>{top}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def thumbnail(data: bytes) -> tuple[bytes, int, int] | None:
    """A JPEG of at most 160 pixels a side with its width and height; None where the image cannot be decoded."""
    try:
        image = decode(data)
    except Undecodable:
        return None
    height, width = image.shape[:2]
    scale = min(1.0, SIDE / max(height, width))
    wide, high = max(1, round(width * scale)), max(1, round(height * scale))
    if scale < 1:
        image = np.asarray(cv2.resize(image, (wide, high), interpolation=cv2.INTER_AREA), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return out.getvalue(), wide, high


class Album:
    """The pictures of one section, up to `room` bytes of it. Those that do not fit are counted, and their words stay."""

    def __init__(self, room: int) -> None:
        self.room, self.missing = room, 0

    def figure(self, shown: Shown, *, badge: str = "", note: str = "") -> str:
        """A picture with where it came from, its size and its id; `badge` and `note` are finished."""
        mark = f'<span class="badge">{badge}</span>' if badge else ""
        words = f'<span class="note">{note}</span>' if note else ""
        where = shown.path.rpartition("/")[2] or shown.path
        return (
            f"<figure{' class=best' if badge else ''}>{self.picture(shown.data, shown.path)}<figcaption>{mark}"
            f'<span class="path" title="{text(shown.path)}">{text(where, longest=60)}</span>'
            f"<span>{shown.width:,}&nbsp;×&nbsp;{shown.height:,}, {size(shown.bytes)}</span>"
            f'<code title="{shown.id.hex()}">{shown.id.hex()[:12]}</code>{words}</figcaption></figure>'
        )

    def picture(self, data: bytes, path: str) -> str:
        """An image element, or words in its place."""
        if self.room <= 0:
            self.missing += 1
            return '<span class="blank">not shown</span>'
        if (small := thumbnail(data)) is None:
            return '<span class="blank">no picture</span>'
        encoded, width, height = small
        source = base64.b64encode(encoded).decode()
        self.room -= len(source)
        return (
            f'<img src="data:image/jpeg;base64,{source}" width="{width}" height="{height}" '
            f'alt="picture from {text(path)}" loading="lazy">'
        )

    def apology(self) -> str:
        """A sentence on pictures that did not fit, if any."""
        if not self.missing:
            return ""
        return f'<p class="aside">{self.missing:,} pictures are left out, to keep this page small; their ids are given.</p>'
