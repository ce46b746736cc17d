"""The page of an ablation: its table, its picture and the curves of all variants, from what lies in its folder."""

import json
from pathlib import Path
from typing import Any

from raydino.config import ConfigError
from raydino.curation.document import document, embedded
from raydino.curation.markup import table, text
from raydino.launch.ablation.table import PICTURE, TABLE
from raydino.launch.job import TRIALS
from raydino.launch.report.curves import STYLE
from raydino.launch.report.page import trial_curves


def ablation_page(folder: Path) -> str | None:
    """The ablation in `folder` as an HTML document; None where it has no table yet. Raises ConfigError for a damaged one."""
    path = folder / f"{TABLE}.json"
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
        ranking, head = _ranking(found), _head(folder.name, found)
        labels = {f"{row['variant']}-seed{seed}": row["variant"] for row in found["rows"] for seed in found["seeds"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({type(error).__name__}: {error}); --resume auto of the ablation writes it anew."
        ) from None
    picture = folder / PICTURE
    drawn = embedded(picture.read_bytes(), "Difference of each variant to the full recipe") if picture.exists() else ""
    sections = [
        ("table", "Variants", ranking),
        *([("picture", "Picture", drawn)] if drawn else []),
        ("curves", "Curves", trial_curves(folder / TRIALS, labels) or '<p class="aside">There is nothing to draw.</p>'),
    ]
    return document(folder.name, head, sections, style=STYLE.read_text())


def _head(title: str, found: dict[str, Any]) -> str:
    seeds = ", ".join(map(str, found["seeds"]))
    words = (
        f"{found['recipe']} ({found['fingerprint']}), {found['steps']:,} steps, {found['images_per_run']:,} images a run, seeds "
        f"{seeds}, {found['trial_hours']:.3g} hours of runs"
    )
    return f'<header><h1>{text(title)}</h1><p class="aside">{text(words)}</p></header>'


def _ranking(found: dict[str, Any]) -> str:
    rows = []
    for row in found["rows"]:
        alarm = f"{len(row['alarmed'])} of {row['watched']}" if row["watched"] else "not judged"
        change = f'<span class="aside">{text(row["change"])}</span>' if row["change"] else ""
        rows.append(
            (
                f"{text(row['variant'])}{change}",
                text(row["component"]),
                text(row["expected"] or "–"),
                text(row["agrees"] or "–"),
                _with(row["mean"], row["spread"]),
                _with(row["difference"], row["half_width"], sign="+"),
                alarm,
            )
        )
    head = ["variant", "component", "expected", "agrees", text(found["objective"]), "difference", "collapse alarm"]
    failures = "".join(
        f"<li>{text(row['variant'])}: {text(said)}</li>" for row in found["rows"] for said in row["failures"]
    )
    left_out = "".join(f"<li>{text(part['name'])}: {text(part['reason'])}</li>" for part in found["left_out"])
    return (
        '<p class="aside">Means over seeds ± their standard deviation; differences to the full recipe at equal seeds ± the half '
        "width of their 95 % interval.</p>"
        + table("Each component off in turn", head, rows, words=4)
        + (f"<h3>Failed</h3><ul>{failures}</ul>" if failures else "")
        + (f"<h3>Left out</h3><ul>{left_out}</ul>" if left_out else "")
    )


def _with(value: float | None, spread: float | None, *, sign: str = "") -> str:
    if value is None:
        return "–"
    return f"{value:{sign}.3f}" + ("" if spread is None else f" ± {spread:.3f}")
