"""The page: complete, self-contained, equal for equal data, bounded, and inert whatever strangers call their files."""

import base64
import csv
import dataclasses
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from raydino.curation.markup import SIDE, thumbnail
from raydino.curation.page import page
from raydino.curation.report import Group, Histogram, Leak, Quality, Refused, Report, Shown, ShownPair, Step
from raydino.curation.synthetic import scene
from raydino.shards.schema import content_id

VOID = {"meta", "img", "br", "line", "rect", "link"}
EVIL = "<script>alert('1')</script>\"onerror=x/\x1b[31m\u202e<img src=http://evil.test/x>'"


def encoded(image: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, kind)
    return buffer.getvalue()


def shown(seed: int, path: str | None = None) -> Shown:
    data = encoded(scene(seed))
    return Shown(content_id(data), path or f"a/{seed:02d}.png", 100, 80, len(data), data)


def pair(first: int, value: float, *, accepted: bool, unit="bits", tier="same picture", with_set="train") -> ShownPair:
    return ShownPair(shown(first), shown(first + 1), tier, value, unit, accepted, with_set)


REPORT = Report(
    title="Photos",
    created="2026-01-31",
    digest="0123456789abcdef" * 4,
    command="python recipes/curate.py --source photos/ --out curated/",
    steps=[
        Step("validate", 1000, 990, {"truncated": 7, "empty": 3}, {"max_bad": 0.05}, {"pillow": "12"}, 3),
        Step("deduplicate", 990, 940, {"duplicate": 50}),
        Step("screen", 840, 800, {"same picture": 25, "leaked": 15}, {"radius": 48}),
    ],
    distances=[Histogram("Distance", "bits", [0, 24, 49, 73], [5, 20, 8], below=48)],
    groups=[
        Group(shown(0), [shown(1), shown(2)], 3, notes=["same picture, 3 bits", "same pixels"]),
        Group(shown(3), [shown(4)], 40, flagged=True, why="Least upscaled."),
    ],
    groups_found=12,
    pairs=[
        *(pair(10, 40, accepted=True), pair(12, 47, accepted=True), pair(14, 55, accepted=False)),
        pair(16, 0.9, accepted=True, unit="cosine", tier="same by embedding"),
        pair(18, 60, accepted=True, tier="leaked", with_set="bench"),
    ],
    leaks=[Leak("bench", 500, 21, 15, 9)],
    quality=[Quality(Histogram("Sharpness", "", [0, 1, 2], [4, 6], below=0.5), [(0.25, shown(5))], [(1.5, shown(6))])],
    refused=[
        Refused("b/cut.jpg", "truncated", "image file is truncated", b"\xff\xd8\xff"),
        Refused("b/no.jpg", "empty"),
    ],
    versions={"raydino": "0.1.0"},
)


class Page(HTMLParser):
    """A page taken apart; fails where elements do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.section, self.words = "", {}
        self.tables: list[list[list[str]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.section = dict(attrs)["id"]
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words[self.section] = self.words.get(self.section, "") + data
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def number(text: str) -> int:
    return int(text.replace(",", ""))


def test_page__is_whole_accessible_and_loads_nothing():
    found = Page(page(REPORT))
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes["href"] for attributes in found.all("a")]
    assert {link[1:] for link in links} == {*(one["id"] for one in found.all("section")), "main"}
    assert all(link.startswith("#") for link in links)
    pictures = found.all("img")
    assert len(pictures) == 3 + 2 + 2 * 5 + 2  # groups, pairs, ends of the score
    for one in pictures:
        assert one["alt"].startswith("picture from a/")
        with Image.open(io.BytesIO(base64.b64decode(one["src"].removeprefix("data:image/jpeg;base64,")))) as image:
            assert image.format == "JPEG" and image.size == (int(one["width"]), int(one["height"])) == (100, 80)
    assert all(one["scope"] in ("col", "row") for one in found.all("th"))
    assert len(found.all("caption")) == len(found.all("table"))
    assert all(one["aria-label"] for one in found.all("svg"))
    assert found.all("html") == [{"lang": "en"}]


def test_page__numbers_are_those_planted():
    found = Page(page(REPORT))
    # 1,000 in; 10 bad, 50 repeats, 25 copies and 15 leaks go: 900 stay
    for words in ("images in1,000", "kept90090 %", "left out10010 %", "of them leaked151.5 %"):
        assert words in found.words[""]
    funnel, reasons = found.tables[0][1:], found.tables[1][1:]
    assert [[number(cell) for cell in row[2:]] for row in funnel] == [
        [1000, 10, 990, 990],
        [990, 50, 940, 940],
        [840, 40, 800, 900],
    ]
    assert "judged 840 of 940" in funnel[2][0]
    assert [(row[0], row[1], number(row[3])) for row in reasons] == [
        *(("duplicate", "deduplicate", 50), ("same picture", "screen", 25), ("leaked", "screen", 15)),
        *(("truncated", "validate", 7), ("empty", "validate", 3), ("all", "", 100)),
    ]
    leaks = next(table for table in found.tables if table[0][0] == "evaluation set")
    assert leaks[1] == ["bench", "500", "21", "15", "9"]
    assert "33 in all, 25 at ≤ 48." in found.words["distances"]
    assert "The 2 largest of 12 groups" in found.words["groups"] and "and 38 more" in found.words["groups"]
    assert "Least upscaled." in found.words["groups"] and "same picture, 3 bits" in found.words["groups"]
    assert "truncated · 7, 1 shown" in found.words["quarantine"] and "ff d8 ff" in found.words["quarantine"]
    assert REPORT.command in found.words["repeat"] and REPORT.digest in found.words["repeat"]
    assert [["max_bad", "0.05"], ["seed", "3"], ["version of pillow", "12"]] in [table[1:] for table in found.tables]


def test_page__numbers_that_do_not_add_up_are_said():
    assert "do not add up" not in page(REPORT)
    lost = [*REPORT.steps[:2], Step("screen", 941, 800, {"leaked": 15})]
    words = Page(page(dataclasses.replace(REPORT, steps=lost))).words[""]
    assert "screen: 941 images in and 800 out, but the reasons explain 15." in words
    assert "screen: 941 images in, but only 940 were left." in words


def test_page__strangers_words_stay_words():
    evil = shown(0, EVIL)
    report = Report(
        title=EVIL,
        created=EVIL,
        digest=EVIL,
        command=f"{EVIL} s3://user:secret@bucket/x",
        steps=[Step(EVIL, 3, 2, {EVIL: 1}, {EVIL: EVIL}, {EVIL: EVIL})],
        distances=[Histogram(EVIL, EVIL, [0, 1], [1], below=0.5, above=0.7)],
        groups=[Group(evil, [evil], 2, notes=[EVIL], why=EVIL)],
        pairs=[ShownPair(evil, evil, EVIL, 1, "bits", True, where) for where in ("train", EVIL)],
        leaks=[Leak(EVIL, 1, 1, 1, 1)],
        quality=[Quality(Histogram(EVIL, EVIL, [0, 1], [1]), [(1, evil)])],
        refused=[Refused(EVIL, EVIL, EVIL, EVIL.encode())],
        versions={EVIL: EVIL},
    )
    text = page(report)
    found = Page(text)
    assert {"script", "link", "iframe", "object", "base", "form"}.isdisjoint(tag for tag, _ in found.elements)
    for tag, attributes in found.elements:
        assert not any(name.startswith("on") for name in attributes), tag
        assert re.match(r"#|data:image/jpeg;base64,", attributes.get("src", attributes.get("href", "#")))
    assert all(
        "<script>alert('1')</script>" in found.words[section]
        for section in ("", *(one["id"] for one in found.all("section")))
    )
    assert "\x1b" not in text and "\u202e" not in text and "secret" not in text
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style and "@import" not in style
    assert "default-src 'none'" in found.all("meta")[1]["content"]


def test_page__same_data_in_any_order_give_the_same_bytes():
    turned = dataclasses.replace(
        REPORT,
        groups=REPORT.groups[::-1],
        pairs=REPORT.pairs[::-1],
        refused=REPORT.refused[::-1],
    )
    assert page(REPORT) == page(REPORT) == page(turned)


def test_page__a_report_of_nothing_is_a_page():
    found = Page(page(Report("Nothing", "", "", "")))
    assert found.all("img") == [] and len(found.all("section")) == 9


def test_page__size_is_bounded_and_what_is_missing_is_counted(monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    once = thumbnail(encoded(noise))
    monkeypatch.setattr("raydino.curation.markup.thumbnail", lambda data: once)  # the heaviest picture, made once
    long = "x" * 5000
    one = Shown(b"1" * 16, long, SIDE, SIDE, 10, b"")
    report = dataclasses.replace(
        REPORT,
        groups=[Group(one, [one] * 30, 31)] * 70,
        pairs=[ShownPair(one, one, "leaked", 1, "bits", True, f"set {n % 3}") for n in range(900)],
        quality=[Quality(Histogram("q", "", [0, 1], [1]), [(0, one)] * 90, [(0, one)] * 90)] * 5,
        refused=[Refused(long, f"reason {n % 10}", long, b"x" * 5000) for n in range(900)],
    )
    text = page(report)
    assert 6_000_000 < len(text.encode()) < 10_000_000
    found = Page(text)
    told = sum(number(n) for n in re.findall(r"([\d,]+) pictures are left out", text))
    shown_at_all = len(found.all("figure"))
    assert shown_at_all == 50 * 12 + 3 * (200 // 3) * 2 + 5 * 2 * 6 + 10 * 12
    assert told == shown_at_all - len(found.all("img")) > 0


def test_page__pictures_that_cannot_be_decoded_do_not_stop_it():
    broken = Shown(b"1" * 16, "broken.png", 1, 1, 3, b"abc")
    assert "no picture" in page(dataclasses.replace(REPORT, groups=[Group(broken, [], 1)]))


def test_pairs__table_has_the_numbers_of_the_page_and_the_doubtful_come_first():
    found = Page(page(REPORT))
    text = next(line for line in found.words["pairs"].split("wilson).") if line.startswith("pair,"))
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [(row["pair"], row["value"], row["joined"], row["with_set"], row["same"]) for row in rows] == [
        ("1", "0.9", "yes", "train", ""),
        ("2", "47", "yes", "train", ""),
        ("3", "40", "yes", "train", ""),
        ("4", "55", "no", "train", ""),
        ("5", "60", "yes", "bench", ""),
    ]
    assert rows[1]["first_id"] == shown(12).id.hex() and rows[1]["second_path"] == "a/13.png"
    for words, section in (("1 · cosine 0.900", "pairs"), ("4 · 55 bits", "pairs"), ("5 · 60 bits", "leaks")):
        assert words in found.words[section]


def test_histogram__bars_are_as_high_as_the_counts_and_split_at_the_threshold():
    rng = np.random.default_rng(2)
    values = rng.integers(0, 73, 4000)
    counts, edges = np.histogram(values, np.arange(74))
    cosines = rng.beta(2, 2, 3000)
    shares, steps = np.histogram(cosines, 20, (0, 1))
    for data, taken in (
        (Histogram("h", "bits", edges.tolist(), counts.tolist(), below=48), int((values <= 48).sum())),
        (Histogram("h", "cosine", steps.tolist(), shares.tolist(), above=0.75), int((cosines >= 0.75).sum())),
    ):
        found = Page(page(dataclasses.replace(REPORT, distances=[data], quality=[])))
        bars = [one for one in found.all("rect") if one["class"] in ("taken", "rest")]
        assert len(bars) == len([count for count in data.counts if count])
        heights = np.array([float(one["height"]) for one in bars])
        filled = np.array([count for count in data.counts if count])
        assert np.allclose(heights, np.maximum(heights.max() * filled / filled.max(), 1), atol=0.02)
        marked = np.array([one["class"] == "taken" for one in bars])
        assert filled[marked].sum() == taken
        assert f"{taken:,} at" in found.words["distances"] and "about" not in found.words["distances"]


def test_histogram__a_threshold_inside_a_bin_divides_it_and_says_about():
    found = Page(
        page(dataclasses.replace(REPORT, distances=[Histogram("h", "", [0, 10], [100], below=2.5)], quality=[]))
    )
    parts = {one["class"]: float(one["width"]) for one in found.all("rect") if one["class"] in ("taken", "rest")}
    assert parts["taken"] / (parts["taken"] + parts["rest"]) == pytest.approx(0.25, abs=0.01)
    assert "about 25 at ≤ 2.5" in found.words["distances"]


def test_histogram__refuses_edges_that_do_not_fit():
    with pytest.raises(ValueError, match="one edge more"):
        Histogram("h", "", [0, 1], [1, 2])
    with pytest.raises(ValueError, match="ascending"):
        Histogram("h", "", [0, 2, 1], [1, 2])
