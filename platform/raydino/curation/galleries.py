"""The galleries of a report: what decisions look like. Groups of copies, pairs on both sides of a threshold, leaks, the ends of
quality scores, and files that could not be used.

Each takes an `Album`, which holds its share of the page's weight, and returns a fragment.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import groupby

from raydino.curation.charts import charts
from raydino.curation.markup import Album, lines, number, table, text
from raydino.curation.report import TRAIN, Group, Refused, Report, Shown, ShownPair
from raydino.curation.review import label_table, wilson

GROUPS, MEMBERS = 50, 11  # galleries, and pictures in each beside the copy that stays: two rows of a laptop's screen
PAIRS = 200  # of 100 joined ones, 95 right ones leave .89 to .98 for the precision
ENDS = 6  # images at each end of a score: a row
BAD = 12  # files of each reason in quarantine
FIRST_BYTES = 24  # of a bad file: signatures lie there
ROW = 1200  # characters of a line of the label table: four cells of 240 and the rest


def groups(report: Report, album: Album) -> str:
    """The largest groups of copies."""
    shown = sorted(report.groups, key=lambda group: (-group.size, group.representative.id))[:GROUPS]
    if not shown:
        return '<p class="aside">No image has a copy.</p>'
    found = max(report.groups_found or 0, len(report.groups))
    which = f"The {len(shown):,} largest of {found:,} groups" if found > len(shown) else f"All {found:,} groups"
    body = "".join(_group(place, group, album) for place, group in enumerate(shown, 1))
    words = f"<p>{which}. The copy that stays is framed and comes first.</p>"
    return f'{words}{album.apology()}<div class="groups">{body}</div>'


def _group(place: int, group: Group, album: Album) -> str:
    notes = [*group.notes, *[""] * len(group.members)]
    figures = [album.figure(group.representative, badge="stays")]
    figures += [album.figure(one, note=text(note)) for one, note in zip(group.members[:MEMBERS], notes, strict=False)]
    more = group.size - len(figures)
    rest = f'<p class="aside">and {more:,} more</p>' if more > 0 else ""
    flag = ' <span class="flag">flagged for its size</span>' if group.flagged else ""
    why = text(group.why) if group.why else advantage(group.representative, group.members)
    return (
        f'<article class="group"><h3>Group {place} · {group.size:,} images{flag}</h3><p class="aside">{why}</p>'
        f'<div class="gallery">{"".join(figures)}</div>{rest}</article>'
    )


def advantage(best: Shown, others: Sequence[Shown]) -> str:
    """What the sizes show of a copy beside the others, in a sentence; no claim about the rule that chose it."""
    if not others:
        return ""
    area, most = best.width * best.height, max(one.width * one.height for one in others)
    if area > most:
        return f"More pixels than any other shown: {number(area)}, the next has {number(most)}."
    if area < most:
        return f"Fewer pixels than another: {number(area)} beside {number(most)}."
    density = best.bytes / max(area, 1)
    next_best = max(one.bytes for one in others if one.width * one.height == area) / max(area, 1)
    if density != next_best:
        word = "more" if density > next_best else "fewer"
        return f"As many pixels as the next, and {word} bytes for each of them: {density:.3g}, the next has {next_best:.3g}."
    return "Equal to the next in pixels and bytes."


def ranked(pairs: Sequence[ShownPair]) -> list[ShownPair]:
    """At most `PAIRS`, as many of each tier, set and side; within a side the most doubtful first."""

    def side(pair: ShownPair) -> tuple[bool, str, str, str, bool]:
        return pair.with_set != TRAIN, pair.with_set, pair.tier, pair.unit, not pair.accepted

    def doubt(pair: ShownPair) -> tuple[float, bytes, bytes]:
        distant = pair.accepted == (
            pair.unit == "bits"
        )  # joined by many bits, apart by few; cosines the other way round
        return (-pair.value if distant else pair.value), pair.first.id, pair.second.id

    strata = [sorted(group, key=doubt) for _, group in groupby(sorted(pairs, key=side), key=side)]
    each = max(PAIRS // max(len(strata), 1), 1)
    return [pair for stratum in strata for pair in stratum[:each]]


def pairs(report: Report, shown: Sequence[ShownPair], album: Album) -> str:
    """Pairs of training images, joined and kept apart, and the table for labels of all of `shown`, see `ranked`."""
    if not shown:
        return '<p class="aside">No pairs were sampled.</p>'
    low, high = wilson(48, 50)
    found = len(report.pairs)
    which = f"{len(shown):,} of {found:,} sampled pairs" if found > len(shown) else f"All {found:,} sampled pairs"
    here = [(place, pair) for place, pair in enumerate(shown, 1) if pair.with_set == TRAIN]
    return (
        f"<p>{which}, the most doubtful of each side first. Those with evaluation images stand in the next section.</p>"
        f"{_sides(here, album)}{album.apology()}"
        f"<details><summary>Table for labels: {len(shown):,} pairs as CSV</summary><p>Copy it into a file, look at each pair "
        "and write yes or no into the column <code>same</code>. If k of n joined pairs are the same, the precision close to "
        "the threshold is k/n, and the Wilson interval holds the true one with 95 % confidence: "
        f"48 of 50 means {low:.3f} to {high:.3f}. Of pairs kept apart, k/n is the share that are copies after "
        "all. Pairs far from the threshold are surer on both sides, so neither is the figure for all pairs. "
        "<code>raydino.curation.review</code> computes both from the filled table (<code>judged</code>, "
        f'<code>wilson</code>).</p><pre tabindex="0">{lines(label_table(shown), longest=ROW)}</pre></details>'
    )


def _sides(shown: Sequence[tuple[int, ShownPair]], album: Album) -> str:
    """Numbered pairs by tier and set, joined ones in one column and those kept apart in the other."""
    out = []
    for (tier, with_set), stratum in groupby(shown, key=lambda item: (item[1].tier, item[1].with_set)):
        halves = {True: "", False: ""}
        for place, pair in stratum:
            halves[pair.accepted] += _pair(place, pair, album)
        columns = [
            f'<div class="half {kind}"><h4>{name}</h4>{halves[joined]}</div>'
            for joined, kind, name in ((True, "joined", "Joined"), (False, "parted", "Kept apart"))
            if halves[joined]
        ]
        where = "among training images" if with_set == TRAIN else f"with {text(with_set)}"
        out.append(f'<h3>{text(tier)}, {where}</h3><div class="halves">{"".join(columns)}</div>')
    return "".join(out)


def _pair(place: int, pair: ShownPair, album: Album) -> str:
    value = f"{pair.value:g} bits" if pair.unit == "bits" else f"cosine {pair.value:.3f}"
    second = "" if pair.with_set == TRAIN else text(pair.with_set, longest=40)
    return (
        f'<div class="pair" role="group" aria-label="pair {place}, {value}"><h5>{place} · {value}</h5><div class="gallery">'
        f"{album.figure(pair.first)}{album.figure(pair.second, note=second)}</div></div>"
    )


def leaks(report: Report, shown: Sequence[ShownPair], album: Album) -> str:
    """What each evaluation set shares with the training images, and pairs of them."""
    if not report.leaks:
        return '<p class="aside">No evaluation set was compared.</p>'
    rows = [
        (text(leak.evaluation), *(f"{count:,}" for count in (leak.images, leak.pairs, leak.dropped, leak.inside)))
        for leak in report.leaks
    ]
    head = ["evaluation set", "its images", "pairs with training", "training images left out", "pairs inside it"]
    here = [(place, pair) for place, pair in enumerate(shown, 1) if pair.with_set != TRAIN]
    return (
        f"{table('Training images that repeat evaluation images', head, rows)}"
        '<p class="aside">A training image that meets several sets counts for each. Evaluation images stay, those that repeat '
        f"each other too.</p>{_sides(here, album)}{album.apology()}"
    )


def quality(report: Report, album: Album) -> str:
    """The distribution of each score and the images at its ends."""
    if not report.quality:
        return '<p class="aside">No scores were recorded.</p>'
    ends = []
    for one in report.quality:
        for name, images in (("lowest", one.lowest), ("highest", one.highest)):
            if images:
                figures = "".join(album.figure(image, note=number(value)) for value, image in images[:ENDS])
                ends.append(f'<h3>{text(one.histogram.name)}, {name}</h3><div class="gallery">{figures}</div>')
    return (
        "<p>Scores are stored with every image. Thresholds are applied afterwards and move without reading an image again.</p>"
        f"{charts([one.histogram for one in report.quality])}{album.apology()}{''.join(ends)}"
    )


def quarantine(report: Report, album: Album) -> str:
    """Files that could not be used, by reason, with their first bytes."""
    if not report.refused:
        return '<p class="aside">Every file could be used.</p>'
    counted: Counter[str] = Counter()
    for (_, reason), count in report.by_reason.items():
        counted[reason] += count
    out = []
    for reason, group in groupby(
        sorted(report.refused, key=lambda one: (one.reason, one.path)), lambda one: one.reason
    ):
        files = list(group)
        total = max(counted[reason], len(files))
        some = f", {len(files[:BAD])} shown" if total > len(files[:BAD]) else ""
        shown = "".join(_bad(one, album) for one in files[:BAD])
        out.append(f'<h3>{text(reason)} · {total:,}{some}</h3><div class="gallery">{shown}</div>')
    return "".join(out) + album.apology()


def _bad(one: Refused, album: Album) -> str:
    start = one.data[:FIRST_BYTES]
    readable = "".join(chr(byte) if 32 <= byte < 127 else "·" for byte in start)
    first = f"<code>{start.hex(' ')}</code><code>{text(readable)}</code>" if start else "<span>0 bytes</span>"
    return (
        f'<figure class="bad">{album.picture(one.data, one.path)}<figcaption>'
        f'<span class="path" title="{text(one.path)}">{text(one.path, longest=80)}</span>'
        f"<span>{text(one.detail)}</span>{first}</figcaption></figure>"
    )
