"""The groups that a fairness study compares: columns that the images come with, and thirds of what can be measured of them.

What is measured says nothing of who or what is shown: such groups are of image quality, not demographics.
"""

import difflib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from raydino.config import ConfigError

if TYPE_CHECKING:
    import numpy as np

    from raydino.evals.evaluation import Labelled
    from raydino.evals.images import ImageSet
    from raydino.shards.reader import Collection as Images

MISSING = "(missing)"
MOST_GROUPS = 50
DERIVED: Mapping[str, str] = {
    "size": "width times height, pixels",
    "brightness": "mean grey level, 0 to 255",
    "sharpness": "variance of the Laplacian at a shorter side of at most 128 pixels",
    "bytes-per-pixel": "encoded bytes by pixel",
}
"""What can be measured of any image, in words."""
NOT_GROUPS = frozenset({"image", "id"})
"""Columns that name images, not groups."""


@dataclass(frozen=True)
class Groups:
    """In which group each of the judged images is."""

    column: str
    origin: str
    """Where the groups come from, in words."""
    measured: bool
    """Whether they are thirds of something measured, not a column of the images."""
    names: tuple[str, ...]
    """In the order in which they are shown."""
    of: list[str]
    """The group of each image, in the order of its set."""

    def part(self, places: "np.ndarray") -> "Groups":
        """The groups of the images at `places`; a value that no image has any more is still a group, of none."""
        of = [self.of[place] for place in places]
        # What is measured is missing of undecodable images alone, and those have gone.
        names = tuple(name for name in self.names if name in of or not self.measured)
        return replace(self, names=names, of=of)


def check_known(names: Sequence[str], columns: Collection[str], *, path: str) -> None:
    """Raises ConfigError for a name that is neither a column nor measured."""
    known = sorted((set(columns) - NOT_GROUPS) | set(DERIVED))
    for name in names:
        if name not in known:
            raise ConfigError(
                f"by = {name!r}: {path} has no such column, and it cannot be measured; {near(name, known)}"
            )


def near(name: str, known: Sequence[str]) -> str:
    """The known names most like a wrong one, in words."""
    found = difflib.get_close_matches(name, known, n=3)
    return f"did you mean {' or '.join(found)}?" if found else f"there are {', '.join(known)}."


def is_stored(name: str, images: "Images") -> bool:
    """Whether the images come with it; a column of their own goes before what is measured."""
    return name in images.columns


def evened(labelled: "Labelled", columns: Sequence[str], *, field: str = "by") -> "Labelled":
    """Where queries were held back from a single split: halves to learn from and to judge, even by class and stored columns."""
    import numpy as np

    from raydino.evals.fairness import halves
    from raydino.evals.images import ImageSet

    if labelled.keep is None:
        return labelled
    images, (channels, high, wide) = labelled.bank.collection, labelled.queries.shape
    rows = np.concatenate([labelled.bank.rows, labelled.queries.rows])
    order = np.argsort(rows)
    rows, labels = rows[order], np.concatenate([labelled.bank.labels, labelled.queries.labels])[order]
    values = [stored(n, images, rows, labelled.classes, field=field) for n in columns if is_stored(n, images)]
    learn = halves(list(zip(labels.tolist(), *values, strict=True)), seed=labelled.seed)
    bank, queries = (
        ImageSet(images, rows[part], labels[part], size=(high, wide), channels=channels) for part in (learn, ~learn)
    )
    return replace(labelled, bank=bank, queries=queries)


def read_groups(columns: Sequence[str], images: "ImageSet", classes: Sequence[str]) -> list[Groups]:
    """The groups of a set by each column. Raises ConfigError for one of a single group, of more than MOST_GROUPS or no values."""
    measured = {} if all(is_stored(name, images.collection) for name in columns) else _measured(images)
    return [_groups(name, images, classes, measured) for name in columns]


def _groups(name: str, images: "ImageSet", classes: Sequence[str], measured: Mapping[str, "np.ndarray"]) -> Groups:
    measured_here = not is_stored(name, images.collection)
    if not measured_here:
        of = stored(name, images.collection, images.rows, classes)
        origin = f"column {name!r} of the images"
        names = sorted(set(of) - {MISSING}, key=_numbers_first)
    else:
        from raydino.evals.fairness import TERCILES, terciles

        try:
            thirds, (first, second) = terciles(measured[name])
        except ValueError as error:
            raise ConfigError(f"by = {name!r}: {error}; give images that can be decoded.") from error
        of = [MISSING if third is None else third for third in thirds]
        origin = (
            f"thirds of the judged images by {DERIVED[name]}: low up to {first:.4g}, middle up to {second:.4g}, high above; "
            "measured, and no demographics"
        )
        names = [third for third in TERCILES if third in of]
    names += [MISSING] * (MISSING in of)
    if len(names) < 2:
        what = "alike in it" if measured_here else repr(names[0])
        raise ConfigError(
            f"by = {name!r}: all {len(of)} judged images are {what}; give a column of two or more groups."
        )
    if len(names) > MOST_GROUPS:
        raise ConfigError(
            f"by = {name!r}: {len(names)} values among {len(of)} judged images; give a column of at most {MOST_GROUPS}."
        )
    return Groups(name, origin, measured_here, tuple(names), of)


def stored(name: str, images: "Images", rows: "np.ndarray", classes: Sequence[str], *, field: str = "by") -> list[str]:
    """The values of a column at `rows` (ascending) in words: null, NaN and blank ones are MISSING, labels their classes.

    `field` is the flag that named it. Raises ConfigError for a column of another kind than text, numbers, dates or truth values.
    """
    found: list[str] = []
    start = 0
    for group, count in enumerate(images.row_groups):
        here = rows[(rows >= start) & (rows < start + count)] - start
        if len(here):
            values = images.column(group, name).take(here).to_pylist()
            if (strange := next((v for v in values if isinstance(v, bytes | dict | list)), None)) is not None:
                raise ConfigError(
                    f"{field} = {name!r}: holds {type(strange).__name__}s; give a column of text, numbers or truth values."
                )
            found += [_in_words(value, classes if name == "label" else ()) for value in values]
        start += count
    return found


def _in_words(value: Any, classes: Sequence[str]) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return MISSING
    if classes and isinstance(value, int):
        return classes[value]
    return " ".join(str(value).split()) or MISSING


def _numbers_first(name: str) -> tuple[float, str]:
    try:
        return float(name), name
    except ValueError:
        return math.inf, name


def _measured(images: "ImageSet") -> dict[str, "np.ndarray"]:
    """All that can be measured, by name, of each image of a set, float64 [images]; NaN where it cannot be decoded."""
    import numpy as np

    from raydino.curation.fingerprint import fingerprint
    from raydino.data.decode import Undecodable, decode
    from raydino.evals.dense import rows_with

    found: dict[str, list[float]] = {name: [] for name in DERIVED}
    for _, values in rows_with(images.collection, [], images.rows):
        try:
            pixels = decode(values["bytes"])
        except Undecodable:
            measured = dict.fromkeys(DERIVED, math.nan)
        else:
            area, seen = pixels.shape[0] * pixels.shape[1], fingerprint(pixels)
            measured = {"size": area, "brightness": seen.mean, "sharpness": seen.sharpness}
            measured["bytes-per-pixel"] = len(values["bytes"]) / area
        for name, value in measured.items():
            found[name].append(float(value))
    return {name: np.array(values) for name, values in found.items()}


def parse_associations(given: Sequence[str]) -> dict[str, list[str]]:
    """Groups of classes by name, of "NAME=CLASS,CLASS". Raises ConfigError for another form or a name that is there twice."""
    found: dict[str, list[str]] = {}
    for text in given:
        name, equals, words = text.partition("=")
        classes = [word.strip() for word in words.split(",") if word.strip()]
        if not (equals and name.strip() and classes):
            raise ConfigError(f"association = {text!r}: write NAME=CLASS,CLASS, such as object=car,truck.")
        if name.strip() in found:
            raise ConfigError(f"association = {text!r}: {name.strip()!r} is there twice; give another name.")
        found[name.strip()] = classes
    return found


def numbered(associations: Mapping[str, Sequence[str]], classes: Sequence[str]) -> dict[str, list[int]]:
    """The same by number of the class. Raises ConfigError for a class that the images do not have."""
    for name, words in associations.items():
        if unknown := next((word for word in words if word not in classes), None):
            raise ConfigError(
                f"association = '{name}={','.join(words)}': the images have no class {unknown!r}; "
                f"{near(unknown, list(classes))}"
            )
    return {name: [classes.index(word) for word in words] for name, words in associations.items()}
