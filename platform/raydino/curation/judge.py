"""Judge: from findings to the rows that training should not see. A pure function of both and of thresholds, and fast.

Of several reasons the first of these counts: the image leaked from an evaluation set, and then all its duplicates go too, since a
missed leak raises a score and an image too few costs little (DINOv2, section 3); it is a placeholder, one picture many times
over, and none of its copies stays; it fails a rule of quality; the same pixels, or the same picture, stand in a better copy.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from raydino.config import ConfigError
from raydino.curation.components import components, groups
from raydino.curation.cosine import CosinePairs
from raydino.curation.duplicates import RADIUS
from raydino.curation.features import Features
from raydino.curation.findings import LARGEST, LEAST_COSINE, Findings, Meeting
from raydino.shards.keep import KeepMask

LEAKED, LEAKED_ALIKE, PLACEHOLDER = "leaked", "leaked by embedding", "placeholder"
SAME_PIXELS, SAME_PICTURE, SAME_ALIKE = "same pixels", "same picture", "same by embedding"
LEAK_RADIUS = 64  # bits; looser than between training images, as for LVD-142M
LARGE = 1000  # images of a group that someone should look at
PALETTE = 256  # colours of a grey image or a palette, at most; a copy with twice as many lost none
WIDER, ALIKE = 1.05, 1.02  # area of an image over that of a copy with as much of the picture: the rest is a border
SMALLER, FINER = 0.6, 2.0  # area and fineness of the copy from which an image was enlarged, over its own


@dataclass(frozen=True)
class Limits:
    """The thresholds. Those of quality are off where nothing is said."""

    radius: int = RADIUS
    """Bits of 256 by which training images may differ and show the same picture."""
    leak_radius: int = LEAK_RADIUS
    """The same between a training and an evaluation image."""
    cosine: float | None = None
    """Least cosine of descriptors of training images that count as the same; None for no descriptors."""
    leak_cosine: float | None = None
    """The same to an evaluation image."""
    copies: int = 100
    """Files with the same pixels from which on a picture is a placeholder, such as `image not found`."""
    min_side: int = 0
    """Least shorter side, pixels."""
    max_aspect: float = float("inf")
    """Largest longer side over the shorter."""
    min_sharpness: float = 0.0
    """Least variance of the Laplacian at a shorter side of 128 pixels; below about 50 photographs look blurred."""
    min_entropy: float = 0.0
    """Least entropy of grey, bits; below about 3 there is little but one tone."""
    min_mean: float = 0.0
    """Least mean grey, 0 to 255."""
    max_mean: float = 255.0
    """Largest mean grey."""

    def __post_init__(self) -> None:
        for name, least, most in (
            ("radius", 0, LARGEST),
            ("leak_radius", 0, LARGEST),
            ("cosine", LEAST_COSINE, 1),
            ("leak_cosine", LEAST_COSINE, 1),
            ("copies", 2, float("inf")),
        ):
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                hint = "; bits of 256, and other pictures begin at 80" if "radius" in name else ""
                raise ConfigError(f"{name} = {value}: give {least:g} to {most:g}{hint}.")

    @property
    def changed(self) -> dict[str, float]:
        """Those that matter or differ from the default, for records; infinity has no place in JSON."""
        always = ("radius", "leak_radius")
        return {
            one.name: getattr(self, one.name)
            for one in fields(self)
            if one.name in always or getattr(self, one.name) != one.default
        }


@dataclass(frozen=True)
class Verdict:
    """The decisions on the training images, and what they rest on."""

    mask: KeepMask
    representative: NDArray[np.int64]
    """[N], the row that stays for each row; itself for rows that stay, and for those no copy of which does."""
    leaks: Mapping[str, int]
    """By evaluation set: pairs of a training image and one of that set."""
    leaked: Mapping[str, int]
    """By evaluation set: training images left out for it; one that meets several sets counts for each."""
    inside: Mapping[str, int]
    """By evaluation set: duplicate pairs within it. They stay."""

    @property
    def large_groups(self) -> int:
        """Groups of more than `LARGE` images, which someone should look at."""
        return int((np.bincount(self.representative) > LARGE).sum())


def judge(found: Findings, limits: Limits) -> Verdict:
    """The decisions, whatever the order of rows."""
    features, count = found.train.features, len(found.train.features.ids)
    reason: list[str | None] = [None] * count
    evidence: list[bytes | None] = [None] * count
    distance, representative = np.zeros(count, np.float32), np.arange(count)
    near = found.near.joined(limits.radius)
    alike = _alike(found.alike, limits.cosine)
    first, second = np.concatenate([near.first, alike.first]), np.concatenate([near.second, alike.second])
    apart = np.concatenate([near.distance, 1 - alike.cosine])
    rank = best_copy_rank(features, first, second)
    original = _best_of_equal_pixels(features.table.pixels, rank)
    failing = quality(features, limits)
    placeholder = np.bincount(original, found.copies, count)[original] > limits.copies
    usable = (original == np.arange(count)) & (failing == "") & ~placeholder
    both = np.flatnonzero(usable[first] & usable[second])
    group = groups(first[both], second[both], rank)
    for row in np.flatnonzero(group.edge >= 0).tolist():
        edge, head = int(both[group.edge[row]]), int(group.representative[row])
        reason[row] = SAME_PICTURE if edge < len(near) else SAME_ALIKE
        evidence[row], distance[row], representative[row] = features.ids[head], apart[edge], head
    for row in np.flatnonzero(original != np.arange(count)).tolist():
        head = int(original[row])
        reason[row], evidence[row], representative[row] = SAME_PIXELS, features.ids[head], representative[head]
    for row in np.flatnonzero((failing != "") | placeholder).tolist():
        reason[row], evidence[row], representative[row] = (
            PLACEHOLDER if placeholder[row] else str(failing[row]),
            None,
            row,
        )
    component = components(np.append(first, np.arange(count)), np.append(second, original), count)
    direct = _leaks(found, limits)
    nearest: dict[int, tuple[str, float, bytes]] = {}
    for row, one in sorted(direct.items(), key=lambda item: item[1]):
        nearest.setdefault(int(component[row]), one)
    for row in range(count):
        if (one := direct.get(row) or nearest.get(int(component[row]))) is not None:
            (reason[row], distance[row], evidence[row]), representative[row] = one, row
    return Verdict(
        KeepMask(tuple(reason), tuple(evidence), distance),
        representative,
        {m.images.name: len(_meets(m, limits)) for m in found.meetings},
        {m.images.name: _dropped_for(component, {row for row, *_ in _meets(m, limits)}) for m in found.meetings},
        {m.images.name: len(m.inside.joined(limits.radius)) for m in found.meetings},
    )


def quality(features: Features, limits: Limits) -> NDArray[np.str_]:
    """[N], the first rule of quality that each image fails; empty where it fails none."""
    scores = features.scores
    out = np.full(len(features.ids), "", dtype="U16")
    for name, fails in (
        ("too bright", scores["mean"] > limits.max_mean),
        ("too dark", scores["mean"] < limits.min_mean),
        ("too plain", scores["entropy"] < limits.min_entropy),
        ("blurred", scores["sharpness"] < limits.min_sharpness),
        ("too long", features.sides[:, 1] > limits.max_aspect * features.sides[:, 0]),
        ("too small", features.sides[:, 0] < limits.min_side),
    ):
        out[fails] = name
    return out


def best_copy_rank(features: Features, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """[N], 0 for the copy to be preferred to all others: more pixels, then more bytes for each of them, then the lesser id.

    Of two that a pair (`first`, `second` [E]) joins, one counts for less than the other although it has more pixels: where it is
    half as fine, since it was enlarged (of 200 photographs enlarged to double size nine in ten are found so, of originals beside
    their halves less than one in a hundred); where it is larger by a border alone; and where it is grey or has a palette.
    A total order without chance: ids are content hashes, so no place or order of files counts.
    """
    area, fineness, colours = features.area, features.scores["fineness"], features.scores["colours"]
    true, picture = area.astype(float), area * features.scores["inside"].astype(float)
    for worse, better in ((first, second), (second, first)):
        grown = (fineness[better] > FINER * fineness[worse]) & (area[better] < SMALLER * area[worse])
        framed = (area[worse] > WIDER * area[better]) & (picture[worse] < ALIKE * picture[better])
        faded = (colours[worse] <= PALETTE) & (colours[better] > 2 * colours[worse])
        less = grown | framed | (faded & (area[better] > SMALLER * area[worse]))
        np.minimum.at(true, worse[less], 0.99 * true[better[less]])
    by_id = np.argsort(np.argsort([one.hex() for one in features.ids]))
    order = np.lexsort((by_id, -features.size / np.maximum(area, 1), -true))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return rank


def _best_of_equal_pixels(pixels: NDArray[np.void], rank: NDArray[np.int64]) -> NDArray[np.int64]:
    """[N], the best copy with the same pixels; itself where there is no better one."""
    order = np.argsort(rank)
    _, first, inverse = np.unique(pixels[order], return_index=True, return_inverse=True)
    best = np.empty(len(order), dtype=np.int64)
    best[order] = order[first][inverse]
    return best


def _alike(found: CosinePairs | None, least: float | None) -> CosinePairs:
    if found is None or least is None:
        nobody = np.empty(0, np.int64)
        return CosinePairs(nobody, nobody, np.empty(0, np.float32))
    near = found.cosine >= least
    return CosinePairs(found.first[near], found.second[near], found.cosine[near])


def _leaks(found: Findings, limits: Limits) -> dict[int, tuple[str, float, bytes]]:
    """By row that meets an evaluation image: reason, distance and id, by hashes before descriptors, the nearest of several."""
    out: dict[int, tuple[str, float, bytes]] = {}
    for meeting in found.meetings:
        for row, other, reason, distance in _meets(meeting, limits):
            one = (reason, distance, meeting.images.features.ids[other])
            out[row] = min(out.get(row, one), one)
    return out


def _meets(meeting: Meeting, limits: Limits) -> list[tuple[int, int, str, float]]:
    """Training row, row of the evaluation set, reason and distance of each pair."""
    near, alike = meeting.leaks.joined(limits.leak_radius), _alike(meeting.alike, limits.leak_cosine)
    pairs = [(*pair[:2], LEAKED, float(pair[2])) for pair in zip(*(c.tolist() for c in near.columns), strict=True)]
    known = {pair[:2] for pair in pairs}
    for row, other, cosine in zip(alike.first.tolist(), alike.second.tolist(), alike.cosine.tolist(), strict=True):
        if (row, other) not in known:
            pairs.append((row, other, LEAKED_ALIKE, 1 - cosine))
    return pairs


def _dropped_for(component: NDArray[np.int64], rows: set[int]) -> int:
    """Rows in the components of these rows."""
    return int(np.isin(component, component[sorted(rows)]).sum()) if rows else 0
