"""What goes into the report of a curation: plain data, so that the pipeline and the page may change without each other.

`page.page` turns a `Report` into one HTML file. Nothing here is read from disk, and no clock is asked: the same data gives the
same bytes. Everything is a sample chosen by the caller except the counts, which are of all images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Encoded = bytes
Id = bytes
Unit = Literal["bits", "cosine"]
TRAIN = "train"
"""The set that is not an evaluation set."""
LEAKED = "leaked"
"""Reasons that begin so have a colour and a number of their own."""


@dataclass(frozen=True)
class Shown:
    """An image to show."""

    id: Id
    """16 bytes of the sha256 of the original."""
    path: str
    """Where it came from; shown as text, whatever it holds."""
    width: int
    """Pixels, of the original."""
    height: int
    """Pixels, of the original."""
    bytes: int
    """Size of the original file."""
    data: Encoded
    """The original, or a smaller copy of at least 160 pixels, as decoding thousands of large photographs takes minutes."""


@dataclass(frozen=True)
class ShownPair:
    """Two images that were compared."""

    first: Shown
    second: Shown
    """Of `with_set` where that is not the training split."""
    tier: str
    """What compared them: same bytes, same pixels, same picture, same by embedding, leaked."""
    value: float
    """Distance in bits, or cosine."""
    unit: Unit
    accepted: bool
    """Whether they were joined: taken for the same picture."""
    with_set: str = TRAIN
    """`train` or the evaluation set."""


@dataclass(frozen=True)
class Step:
    """One stage of curation. The reasons must explain the difference; where they do not, the page says so."""

    name: str
    rows_in: int
    """Images it judged, which need not be all: evaluation splits are not screened."""
    rows_out: int
    by_reason: Mapping[str, int] = field(default_factory=dict)
    """Images left out, by reason."""
    parameters: Mapping[str, object] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True)
class Histogram:
    """Counts of a distance or a score. Whole numbers (bits) belong into bins [edge, next edge) with whole edges."""

    name: str
    unit: str
    edges: Sequence[float]
    """Ascending, one more than there are counts."""
    counts: Sequence[int]
    below: float | None = None
    """Threshold of a rule that takes values up to and including it: distances that join, images too blurred."""
    above: float | None = None
    """Threshold of a rule that takes values from it on: similarities that join, images too bright."""

    def __post_init__(self) -> None:
        if len(self.edges) != len(self.counts) + 1 or any(
            low >= high for low, high in zip(self.edges, self.edges[1:], strict=False)
        ):
            raise ValueError(f"{self.name}: {len(self.counts)} counts need one edge more, ascending: {self.edges!r}")


@dataclass(frozen=True)
class Quality:
    """The distribution of a score and the images at its ends."""

    histogram: Histogram
    lowest: Sequence[tuple[float, Shown]] = ()
    highest: Sequence[tuple[float, Shown]] = ()


@dataclass(frozen=True)
class Group:
    """Images that show one picture."""

    representative: Shown
    """The copy that stays."""
    members: Sequence[Shown]
    """Others, as many as are to be shown."""
    size: int
    """All images of the group, the representative among them."""
    flagged: bool = False
    """Whether it is so large that someone should look at it."""
    notes: Sequence[str] = ()
    """A few words for each of `members`: reason and distance."""
    why: str = ""
    """Why this copy stays; empty leaves it to what the sizes show."""


@dataclass(frozen=True)
class Leak:
    """What one evaluation set shares with the training images."""

    evaluation: str
    images: int
    """Of the evaluation set."""
    pairs: int
    """Of a training image and one of this set."""
    dropped: int
    """Training images left out for it; one that meets several sets counts for each."""
    inside: int
    """Duplicate pairs within the set. They stay."""


@dataclass(frozen=True)
class Refused:
    """An image that cannot be used."""

    path: str
    reason: str
    detail: str = ""
    data: Encoded = b""
    """Its first bytes, or all."""


@dataclass(frozen=True)
class Report:
    """Everything on the page."""

    title: str
    created: str
    """When, in the words of the caller."""
    digest: str
    """Of the collection as it is trained on."""
    command: str
    """That repeats it."""
    steps: Sequence[Step] = ()
    """In order; the images that came in are those of the first."""
    distances: Sequence[Histogram] = ()
    groups: Sequence[Group] = ()
    """Largest first."""
    groups_found: int | None = None
    """How many there are, where `groups` is a part of them."""
    pairs: Sequence[ShownPair] = ()
    """From both sides of each threshold, see `review.stratified`."""
    leaks: Sequence[Leak] = ()
    quality: Sequence[Quality] = ()
    refused: Sequence[Refused] = ()
    """Examples for each reason; the counts are those of the steps."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of the software, beside those of the steps."""

    @property
    def images(self) -> int:
        """Images that came in."""
        return self.steps[0].rows_in if self.steps else 0

    @property
    def by_reason(self) -> dict[tuple[str, str], int]:
        """Images left out by step and reason, most first."""
        counts = {(step.name, reason): n for step in self.steps for reason, n in step.by_reason.items() if n}
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    @property
    def dropped(self) -> int:
        """Images left out."""
        return sum(self.by_reason.values())

    @property
    def leaked(self) -> int:
        """Images left out since they repeat an evaluation image, each once."""
        return sum(count for (_, reason), count in self.by_reason.items() if reason.startswith(LEAKED))

    def gaps(self) -> list[str]:
        """Sentences on numbers that do not add up; empty for a sound report."""
        found, left = [], self.images
        for step in self.steps:
            explained = sum(step.by_reason.values())
            if step.rows_in - step.rows_out != explained:
                found.append(
                    f"{step.name}: {step.rows_in:,} images in and {step.rows_out:,} out, but the reasons explain {explained:,}."
                )
            if step.rows_in > left:
                found.append(f"{step.name}: {step.rows_in:,} images in, but only {left:,} were left.")
            left -= explained
        return found
