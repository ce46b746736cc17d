"""What a curation leaves for people: a page in the folder, a run in MLflow."""

import shlex
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from raydino.curation.account import account
from raydino.curation.judge import Limits
from raydino.curation.page import page
from raydino.curation.screen import TRAIN, Screening, screen
from raydino.curation.synthetic import write_builtin
from raydino.shards.keep import mask_path
from raydino.tracking.mlflow_run import TrackerUnavailable, record_files

BUILTIN_LIMITS = {"radius": 8, "leak_radius": 8}
"""Textures of a few parameters repeat themselves: from 10 bits on different ones meet, and at 48 a fifth of them would leak."""


def write_curated_builtin(out: str, *, seed: int = 0) -> None:
    """The built-in images with copies and a leak planted among them, screened, with a report. Raises ConfigError."""
    write_builtin(out, seed=seed, copies=True)
    _page(
        screen(out, limits=Limits(**BUILTIN_LIMITS)),
        name="built-in images",
        words=["--source", "builtin", "--out", "NEW"],
    )


def write_report(found: Screening, *, out: str, tracker: str) -> None:
    """Write report.html into the curated folder and, unless the tracker is `none`, record it as a run in MLflow."""
    out = out.rstrip("/")
    name = out.rpartition("/")[2]
    _page(found, name=name, words=sys.argv[1:])
    print(f"\nreport      {out}/report.html\nkeep-mask   {out}/{mask_path(TRAIN, found.name)}")
    print(f"digest      {found.manifest.digest}")
    if tracker != "none":
        _recorded(found, out=out, name=name, tracker=tracker)
    chosen = f" --data.keep {found.name}" if found.name else ""
    print(f"\nTrain on them: python recipes/dinov2.py --data {shlex.quote(out)}{chosen}")


def _page(found: Screening, *, name: str, words: Sequence[str]) -> None:
    command = f"python recipes/curate.py {shlex.join(words)}"
    created = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    found.folder.write_bytes("report.html", page(account(found, title=name, created=created, command=command)).encode())


def _recorded(found: Screening, *, out: str, name: str, tracker: str) -> None:
    counts = found.mask.counts()
    metrics = {f"curation/{reason.replace(' ', '_')}": float(count) for reason, count in counts.items()}
    metrics |= {"curation/train": float(len(found.mask.keep)), "curation/trained_on": float(found.mask.keep.sum())}
    parameters = next(s.parameters for s in reversed(found.manifest.stages) if s.name == found.stage)
    with tempfile.TemporaryDirectory() as scratch:
        files = []
        for path in ("report.html", "manifest.json"):
            files.append(Path(scratch) / path)
            files[-1].write_bytes(found.folder.read_bytes(path))
        try:
            record_files(
                tracking_uri=tracker,
                experiment="curation",
                run_name=name,
                params={**parameters, "digest": found.manifest.digest, "out": out},
                metrics=metrics,
                files=files,
            )
        except TrackerUnavailable as error:  # the report is in the folder all the same
            print(f"warning: {error}", file=sys.stderr)
            return
    print(f"MLflow      {tracker}, experiment curation, run {name}")
