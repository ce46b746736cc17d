"""Account: what a screening found, put together for the report page."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydino.curation.findings import LARGEST
from raydino.curation.judge import LARGE, Limits
from raydino.curation.ledger import QUARANTINE
from raydino.curation.report import Group, Histogram, Leak, Quality, Refused, Report, Shown, ShownPair, Step
from raydino.curation.review import stratified
from raydino.curation.screen import TRAIN, Screening
from raydino.curation.second_look import AGREEMENT
from raydino.data.decode import Undecodable, header
from raydino.shards.reader import Collection

GROUPS, MEMBERS = 50, 8  # largest groups, and images of each, that are shown
EACH = 40  # pairs on either side of a threshold
EXAMPLES = 6  # images at each end of a score, and of each reason in quarantine
BINS = 40  # of a score
_BITS = tuple(range(0, LARGEST + 5, 4))
_SCORES = {
    "sharpness": ("Sharpness", "variance of the Laplacian", "min_sharpness", None),
    "entropy": ("Entropy", "bits", "min_entropy", None),
    "mean": ("Brightness", "mean grey level", "min_mean", "max_mean"),
    "std": ("Contrast", "standard deviation, grey levels", None, None),
}


@dataclass(frozen=True)
class _Pair:
    """Two images to be shown: a training row and a row of `other`."""

    first: int
    other: str
    second: int
    tier: str
    value: float
    accepted: bool


def account(screening: Screening, *, title: str, created: str, command: str) -> Report:
    """The report on a screening; reads the images that it shows."""
    pairs = [*_pairs(screening), *_leak_pairs(screening)]
    heads = _largest(screening.verdict.representative)
    members = {head: _members(screening.verdict.representative, head)[:MEMBERS] for head in heads}
    ends = {name: _ends(screening.findings.train.features.scores[name]) for name in _SCORES}
    wanted: dict[str, set[int]] = defaultdict(set)
    wanted[TRAIN] |= {row for rows in members.values() for row in rows} | set(heads)
    wanted[TRAIN] |= {row for low, high in ends.values() for row in (*low, *high)}
    for pair in pairs:
        wanted[TRAIN].add(pair.first)
        wanted[pair.other].add(pair.second)
    shown = {name: _shown(screening.collections[name], rows) for name, rows in wanted.items()}
    stages = [
        stage for stage in screening.manifest.stages if stage.name in ("validate", "deduplicate", screening.stage)
    ]
    return Report(
        title=title,
        created=created,
        digest=screening.manifest.digest,
        command=command,
        steps=[Step(s.name, s.rows_in, s.rows_out, s.by_reason, s.parameters, s.versions, s.seed) for s in stages],
        distances=_distances(screening),
        groups=[_group(screening, head, members[head], shown[TRAIN]) for head in heads],
        groups_found=int((np.bincount(screening.verdict.representative) > 1).sum()),
        pairs=[
            ShownPair(
                first=shown[TRAIN][p.first],
                second=shown[p.other][p.second],
                tier=p.tier,
                value=p.value,
                unit="bits",
                accepted=p.accepted,
                with_set=p.other,
            )
            for p in pairs
        ],
        leaks=_leaks(screening),
        quality=[_quality(screening, name, ends[name], shown[TRAIN]) for name in _SCORES],
        refused=_refused(screening),
    )


def _distances(screening: Screening) -> list[Histogram]:
    found, limits = screening.findings, screening.limits
    sets = [("Training images", found.near, limits.radius)]
    sets += [(f"Training images and {m.images.name}", m.leaks, limits.leak_radius) for m in found.meetings]
    out = []
    for name, pairs, radius in sets:
        counts = np.histogram(pairs.bits[pairs.agreement >= AGREEMENT], bins=_BITS)[0]
        out.append(Histogram(name, "bits of 256", _BITS, counts.tolist(), below=radius))
    if found.alike is not None:
        edges = np.linspace(0.4, 1.0, 31)
        counts = np.histogram(found.alike.cosine, bins=edges)[0]
        above = limits.cosine
        out.append(Histogram("Training images, by descriptors", "cosine", edges.tolist(), counts.tolist(), above=above))
    return out


def _pairs(screening: Screening) -> list[_Pair]:
    """From both sides of the radius, in the training split."""
    near, radius, ids = screening.findings.near, screening.limits.radius, screening.findings.train.features.ids
    agreed = np.flatnonzero(near.agreement >= AGREEMENT)
    keys = [ids[one] + ids[other] for one, other in zip(near.first[agreed], near.second[agreed], strict=True)]
    drawn = agreed[stratified(near.bits[agreed], radius, each=EACH, keys=keys, unit="bits")] if len(agreed) else agreed
    return [
        _Pair(
            int(near.first[e]), TRAIN, int(near.second[e]), "same picture", float(near.bits[e]), near.bits[e] <= radius
        )
        for e in drawn
    ]


def _leak_pairs(screening: Screening) -> list[_Pair]:
    radius, ids, out = screening.limits.leak_radius, screening.findings.train.features.ids, []
    for meeting in screening.findings.meetings:
        leaks, others = meeting.leaks, meeting.images.features.ids
        agreed = np.flatnonzero(leaks.agreement >= AGREEMENT)
        keys = [ids[one] + others[other] for one, other in zip(leaks.first[agreed], leaks.second[agreed], strict=True)]
        if not len(agreed):
            continue
        drawn = set(agreed[stratified(leaks.bits[agreed], radius, each=EACH, keys=keys, unit="bits")].tolist())
        drawn |= set(agreed[np.argsort(leaks.bits[agreed], kind="stable")[:EXAMPLES]].tolist())
        for e in sorted(drawn):
            bits = float(leaks.bits[e])
            out.append(
                _Pair(int(leaks.first[e]), meeting.images.name, int(leaks.second[e]), "leaked", bits, bits <= radius)
            )
    return out


def _leaks(screening: Screening) -> list[Leak]:
    verdict = screening.verdict
    return [
        Leak(name, len(m.images.features.ids), verdict.leaks[name], verdict.leaked[name], verdict.inside[name])
        for m in screening.findings.meetings
        for name in (m.images.name,)
    ]


def _largest(representative: NDArray[np.int64]) -> list[int]:
    """Representatives of the largest groups, the largest first; groups of one are none."""
    sizes = np.bincount(representative)
    order = np.argsort(-sizes, kind="stable")[:GROUPS]
    return order[sizes[order] > 1].tolist()


def _members(representative: NDArray[np.int64], head: int) -> list[int]:
    return [row for row in np.flatnonzero(representative == head).tolist() if row != head]


def _group(screening: Screening, head: int, rows: Sequence[int], shown: dict[int, Shown]) -> Group:
    mask, size = screening.mask, int((screening.verdict.representative == head).sum())
    notes = [f"{mask.reason[row]}, {mask.distance[row]:g}" for row in rows]
    return Group(shown[head], [shown[row] for row in rows], size, flagged=size > LARGE, notes=notes)


def _ends(scores: NDArray[np.float32]) -> tuple[list[int], list[int]]:
    order = np.argsort(scores, kind="stable")
    return order[:EXAMPLES].tolist(), order[::-1][:EXAMPLES].tolist()


def _quality(screening: Screening, name: str, ends: tuple[list[int], list[int]], shown: dict[int, Shown]) -> Quality:
    title, unit, least, most = _SCORES[name]
    scores = screening.findings.train.features.scores[name].astype(np.float64)
    top = float(np.quantile(scores, 0.99)) if name == "sharpness" else float(scores.max())  # its tail is very long
    low = min(float(scores.min()), top)
    edges = np.linspace(low, max(top, low + 1e-3), BINS + 1)
    counts = np.histogram(scores.clip(edges[0], edges[-1]), bins=edges)[0]
    histogram = Histogram(
        title,
        unit,
        edges.tolist(),
        counts.tolist(),
        below=_said(screening.limits, least),
        above=_said(screening.limits, most),
    )
    lowest, highest = ([(float(scores[row]), shown[row]) for row in rows] for rows in ends)
    return Quality(histogram, lowest, highest)


def _said(limits: Limits, name: str | None) -> float | None:
    """A threshold, where one was given."""
    return None if name is None or name not in limits.changed else float(limits.changed[name])


def _refused(screening: Screening) -> list[Refused]:
    """Some of each reason; their bytes were not kept."""
    table = screening.folder.read_table(QUARANTINE, columns=["path", "reason", "detail"])
    seen: Counter[str] = Counter()
    out = []
    for row in table.to_pylist():
        seen[row["reason"]] += 1
        if seen[row["reason"]] <= EXAMPLES:
            out.append(Refused(row["path"], row["reason"], row["detail"] or ""))
    return out


def _shown(collection: Collection, rows: set[int]) -> dict[int, Shown]:
    """The images to be shown, by row."""
    order = np.array(sorted(rows), dtype=np.int64)
    found: pa.Table = collection.rows(order)
    out = {}
    for row, one in zip(order.tolist(), found.to_pylist(), strict=True):
        height, width = _size(one["bytes"])
        out[row] = Shown(one["id"], one["path"] or "", width, height, len(one["bytes"]), one["bytes"])
    return out


def _size(data: bytes) -> tuple[int, int]:
    try:
        about = header(data)
    except Undecodable:
        return 0, 0
    return about.height, about.width
