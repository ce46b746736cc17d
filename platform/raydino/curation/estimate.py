"""Estimate: what a curation will take, from the listing of its sources and the first images of each."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from raydino.curation.duplicates import EXACT
from raydino.curation.features import measured
from raydino.curation.fingerprint import KEYS
from raydino.curation.sources import open_source

PROBED = 64  # images of each source, about a second
COMPARED = 7e8  # hashes a second and core
FEATURE_BYTES = 1_800  # of an image on disk
KEPT_BYTES = 2_900  # of an image in memory while it is compared


@dataclass(frozen=True)
class Estimate:
    """What was listed, and what follows."""

    images: int
    bytes: int
    """Of all images, from the mean of the probed ones."""
    ingest: float
    """Core-seconds to read, decode and measure."""
    compare: float
    """Core-seconds to compare all with all; 0 above the number from which cells are searched instead."""

    def __str__(self) -> str:
        compare = _time(self.compare) if self.compare else "by cells, see docs/curation.md"
        rows = [
            ("images", f"{self.images:,}"),
            ("to read, and to write", _size(self.bytes)),
            ("features", _size(self.images * FEATURE_BYTES)),
            ("ingest", _time(self.ingest)),
            ("compare", compare),
            ("memory to compare", _size(self.images * KEPT_BYTES)),
        ]
        return "\n".join(f"{name:<28}{value:>24}" for name, value in rows)


def _time(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} core-hours" if seconds >= 3600 else f"{max(1, round(seconds)):,} core-seconds"


def _size(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{max(1, round(size / 1e6))} MB"


def estimate(sources: Sequence[str]) -> Estimate:
    """List the sources, read and measure the first images of each. Raises SourceError for a bad source."""
    total, size, seconds = 0, 0.0, 0.0
    for address in sources:
        source = open_source(address)
        start, probed = time.thread_time(), 0
        read = 0
        for image in islice(source.images(), PROBED):
            measured(image.data)
            read, probed = read + len(image.data), probed + 1
        share = source.total / max(probed, 1)
        total, size, seconds = total + source.total, size + read * share, seconds + (time.thread_time() - start) * share
    keys = len(KEYS) - 1
    compare = keys * total**2 / COMPARED if keys * total <= EXACT else 0.0
    return Estimate(total, round(size), seconds, compare)
