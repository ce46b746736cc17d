"""The page that every run leaves at its end. What goes wrong with it is a warning: the run is over, its record complete."""

import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from raydino.launch.job import PAGE
from raydino.launch.report.card import CARD
from raydino.launch.report.page import page
from raydino.launch.report.record import read
from raydino.launch.resume import write
from raydino.launch.summary import SUMMARY
from raydino.tracking.mlflow_run import add_to_run
from raydino.tracking.redact import redact_text

log = logging.getLogger(__name__)


def leave_page(run_dir: Path, *, over: str) -> list[Path]:
    """Write report.html into the folder of a run that is over, for the reason `over` ("" for none); returns it and the other
    files that tell of the run, to be recorded."""
    try:
        write(run_dir / PAGE, page([read(run_dir, over=over)], command=f"python {shlex.join(sys.argv)}"))
    except Exception as error:
        log.warning("%s was not written (%s: %s)", run_dir / PAGE, type(error).__name__, redact_text(str(error)))
    return [path for path in (run_dir / PAGE, run_dir / SUMMARY, run_dir / CARD) if path.exists()]


def add_files(files: Sequence[Path], *, tracking_uri: str, run_id: str) -> None:
    """Add files to the run in MLflow; an outage is a warning."""
    try:
        add_to_run(tracking_uri=tracking_uri, run_id=run_id, metrics={}, step=0, files=files)
    except Exception as error:
        log.warning("%s", redact_text(str(error)))
