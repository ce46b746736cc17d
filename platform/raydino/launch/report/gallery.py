"""Pictures of runs inside the page, before and after training beside each other, in a bounded number of bytes."""

import io
from collections.abc import Sequence

from PIL import Image

from raydino.curation.document import embedded
from raydino.curation.markup import text
from raydino.launch.report.groups import Group

ROOM = 4_000_000
"""Bytes of pictures in a page."""
LARGE, SIDE = 300_000, 1200
"""Bytes from which a picture is brought to at most so many pixels a side, as JPEG."""
MOST_RUNS = 6


def pictures(groups: Sequence[Group]) -> str:
    """Of each kind of picture the first and the last; of several runs the last of each."""
    room, left_out, parts = ROOM, 0, []
    chosen = [group.runs[0] for group in groups[:MOST_RUNS]]
    for name in dict.fromkeys(name for run in chosen for name, _, _ in run.pictures):
        shots = []
        for run in chosen:
            steps = {step: path for kind, path, step in run.pictures if kind == name}
            if not steps:
                continue
            for step in [max(steps)] if len(groups) > 1 else sorted({min(steps), max(steps)}):
                words = text(f"{name.replace('_', ' ')} of {run.name} at step {step:,}")
                shown = _small(steps[step].read_bytes())
                if shown is None or len(shown) > room:
                    left_out += 1
                    continue
                room -= len(shown)
                shots.append(f'<div>{embedded(shown, words)}<p class="aside">{words}</p></div>')
        if shots:
            parts.append(f'<h3>{text(name.replace("_", " "))}</h3><div class="shots">{"".join(shots)}</div>')
    if left_out:
        parts.append(
            f'<p class="aside">{left_out} pictures are left out: no room in the page, or no pictures. They lie in pictures/.</p>'
        )
    return "".join(parts) or '<p class="aside">No pictures were drawn.</p>'


def _small(picture: bytes) -> bytes | None:
    """The picture, or a smaller copy of a large one; None where it is none."""
    try:
        with Image.open(io.BytesIO(picture), formats=["PNG"]) as image:
            if len(picture) <= LARGE:
                image.verify()
                return picture
            copy = image.convert("RGB")
    except (OSError, ValueError, SyntaxError):
        return None
    copy.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    copy.save(out, "JPEG", quality=85)
    return out.getvalue()
