"""The data card of a run: which images it was trained on, and what curation left out of them, by stage and reason.

It is written into the run's folder at its start (data.json), so that a page needs neither the images nor their storage.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydino.config import ConfigError
from raydino.launch.resume import read_run, write
from raydino.shards.keep import masked
from raydino.shards.manifest import Manifest
from raydino.shards.manifest import load as load_manifest
from raydino.shards.schema import Folder, ShardError
from raydino.tracking.opening import Opening
from raydino.tracking.redact import redact_text

if TYPE_CHECKING:
    from raydino.launch.inputs import Inputs

CARD = "data.json"
"""File in the run's folder."""


@dataclass(frozen=True)
class Stage:
    """One stage of curation."""

    name: str
    rows_in: int
    rows_out: int
    by_reason: dict[str, int]
    """Images left out, by reason."""


@dataclass(frozen=True)
class Card:
    """The images of a run."""

    path: str
    """Where they lay."""
    digest: str
    """Of what was trained on."""
    rows: int
    """In the split that was trained on."""
    kept: int | None
    """Of them, after keep-masks and what is held back as queries; None where that is not known."""
    classes: int
    """With names; 0 without."""
    labelled: bool
    stages: tuple[Stage, ...]


def card_of(manifest: Manifest, *, path: str, kept: int | None) -> Card:
    """The card of a collection; `manifest` is that of the split which is trained on."""
    stages = [Stage(each.name, each.rows_in, each.rows_out, dict(each.by_reason)) for each in manifest.stages]
    return Card(
        path=redact_text(path),
        digest=manifest.digest,
        rows=manifest.rows,
        kept=kept,
        classes=len(manifest.classes),
        labelled=manifest.labelled,
        stages=tuple(stages),
    )


def write_card(run_dir: Path, inputs: "Inputs", path: str) -> None:
    """Keep the card of a run that begins."""
    card = card_of(inputs.collection.manifest, path=path, kept=inputs.plan.kept)
    write(run_dir / CARD, json.dumps(asdict(card), indent=1))


def read_card(run_dir: Path, recipe: Mapping[str, Any], opening: Opening | None, missing: list[str]) -> Card | None:
    """The card of a run; of one from before there were any, that of its images, if they lie on this machine as they were."""
    try:
        data: dict[str, Any] = json.loads((run_dir / CARD).read_text())
        return Card(**{**data, "stages": tuple(Stage(**each) for each in data["stages"])})
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError) as error:
        missing.append(f"{CARD} cannot be read ({error}): the images are not described.")
        return None
    source = None if opening is None or opening.dataset is None else opening.dataset.source
    if source is None or "://" in source or not Path(source).is_dir():
        missing.append(f"{CARD} is not there, nor are the images: they are not described.")
        return None
    try:
        folder = Folder(source)
        manifest, mask = load_manifest(folder), recipe.get("data.keep")
        manifest = masked(folder, manifest, mask) if mask else manifest
        manifest = manifest.of_split(recipe.get("data.split") or "train")
    except (ShardError, ConfigError, OSError):
        missing.append(f"{CARD} is not there, and {source} has no manifest: the images are not described.")
        return None
    if (was := read_run(run_dir).get("data_digest")) not in (None, manifest.digest):
        missing.append(
            f"the images in {source} have changed since ({was[:16]}… then): what is said of them may not hold."
        )
    return card_of(manifest, path=source, kept=opening.dataset.rows if opening and opening.dataset else None)
