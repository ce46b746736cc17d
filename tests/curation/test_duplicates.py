"""Pairs and groups of duplicates against nested loops and planted copies."""

import io
import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from raydino.curation import duplicates
from raydino.curation.components import components, groups
from raydino.curation.duplicates import between, within
from raydino.curation.fingerprint import KEYS, MIRROR, PICTURE, fingerprint
from raydino.curation.second_look import AGREEMENT, agreement, correlation, seen
from raydino.curation.synthetic import scene
from raydino.curation.table import Table


def jpeg(image: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=40)
    return np.asarray(Image.open(buffer))


def table(images: list[np.ndarray]) -> Table:
    return Table.of([fingerprint(np.ascontiguousarray(image)) for image in images])


def slow(one: Table, other: Table, radius: int) -> dict[tuple[int, int], int]:
    """Every pair and every key, in Python."""
    out = {}
    for i in range(len(one)):
        for j in range(len(other)):
            if one.pixels[i] == other.pixels[j]:
                out[i, j] = 0
            if not (one.comparable[i] and other.comparable[j]):
                continue
            for (whole, a), (keyed, b) in (((one, i), (other, j)), ((other, j), (one, i))):
                for view, key in itertools.product((0, PICTURE), range(len(KEYS))):
                    apart = int(np.bitwise_count(whole.hashes[a, view] ^ keyed.hashes[b, key]).sum())
                    looks = look(whole, a, view), look(keyed, b, key)
                    if apart <= radius and agreement(*looks)[0] >= AGREEMENT:
                        out[i, j] = min(apart, out.get((i, j), 999))
    return out


def look(table: Table, row: int, key: int) -> np.ndarray:
    """A thumbnail as a key sees it, [1, 32, 32]."""
    return seen(table, np.array([row]), np.array([key]))


IMAGES = [scene(seed) for seed in range(6)]
COPIES = [
    jpeg(IMAGES[0]),
    IMAGES[1][:, ::-1],
    IMAGES[2][2:, 2:],
    IMAGES[3],
    np.pad(IMAGES[4], ((4, 4), (4, 4), (0, 0))),
]
FLAT = np.full((50, 50, 3), 90, np.uint8)


@pytest.mark.parametrize("radius", [0, 20, 48, 90])
def test_between__equals_every_pair_and_every_key(radius: int):
    one, other = table([*IMAGES, FLAT]), table([*COPIES, FLAT, scene(99)])
    found = between(one, other, radius=radius)
    assert dict(
        zip(zip(found.first.tolist(), found.second.tolist(), strict=True), found.distance.tolist(), strict=True)
    ) == slow(one, other, radius)


def test_within__finds_each_planted_copy_and_nothing_else():
    found = within(table([*IMAGES, *COPIES]))
    pairs = set(zip(found.first.tolist(), found.second.tolist(), strict=True))
    assert pairs == {(number, len(IMAGES) + number) for number in range(len(COPIES))}


def test_within__flat_images_meet_by_equal_pixels_only():
    darker = np.full((50, 50, 3), 80, np.uint8)
    found = within(table([FLAT, darker, FLAT, darker]))
    assert sorted(zip(found.first.tolist(), found.second.tolist(), strict=True)) == [(0, 2), (1, 3)]


def test_within__pictures_whose_hashes_agree_by_chance_are_told_apart():
    """The second look decides: other thumbnails under the same hashes, as of a hash collision."""
    pair = table([IMAGES[0], IMAGES[1]])
    forged = replace(pair, hashes=np.stack([pair.hashes[0], pair.hashes[0]]))
    assert len(within(forged)) == 0
    assert len(within(replace(forged, thumbs=np.stack([pair.thumbs[0], pair.thumbs[0]])))) == 1


def test_correlation__is_pearsons_of_the_pixels():
    a, b = (np.random.default_rng(n).integers(0, 256, (3, 32, 30)).astype(np.float32) for n in range(2))
    expected = [np.corrcoef(x.reshape(-1), y.reshape(-1))[0, 1] for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(correlation(a, b), expected, atol=1e-5)


def test_agreement__sees_through_a_shift_and_a_bar_but_not_through_another_picture():
    thumbs = table(IMAGES).thumbs.astype(np.float32)
    moved = np.roll(thumbs, (1, -1), (1, 2))
    barred = thumbs.copy()
    barred[:, 27:] = 0
    assert (correlation(thumbs, barred) < AGREEMENT).all()
    for changed in (moved, barred):
        assert (agreement(thumbs, changed) >= AGREEMENT).all()
        assert (agreement(thumbs, np.roll(changed, 1, axis=0)) < 0.8).all()


def test_seen__is_the_crop_that_the_key_names():
    """Thumbnails cropped afterwards beside thumbnails of cropped images; mirrored ones beside those of the mirror image."""
    image = scene(8, height=160, width=160)
    whole = table([image])
    for key, part in ((6, image[8:152, 8:152]), (3, image[:152, 8:]), (MIRROR, image[:, ::-1])):
        assert correlation(look(whole, 0, key), table([part]).thumbs.astype(np.float32))[0] > 0.995


@pytest.mark.parametrize("exact", [True, False])
def test_within__borders_are_looked_behind(exact: bool, monkeypatch: pytest.MonkeyPatch):
    """Two frames of different width around one picture, and the cells of a large collection in place of all pairs."""
    framed = [np.pad(IMAGES[0], ((w, w), (2 * w, w), (0, 0)), constant_values=250) for w in (4, 9)]
    if not exact:
        monkeypatch.setattr(duplicates, "EXACT", 10)
        monkeypatch.setattr(duplicates, "CELL", 16)
    found = within(table([IMAGES[0], *framed, *IMAGES[1:], *(scene(seed) for seed in range(20, 60))]))
    pairs = list(zip(found.first.tolist(), found.second.tolist(), strict=True))
    assert pairs == [(0, 1), (0, 2), (1, 2)]


def test_between__empty_tables_have_no_pairs():
    assert len(between(table([]), table(IMAGES))) == len(between(table(IMAGES), table([]))) == 0


@given(st.data())
def test_groups__every_member_matches_its_representative_and_the_best_copy_stays(data: st.DataObject):
    count = data.draw(st.integers(1, 14))
    possible = [(i, j) for i in range(count) for j in range(i + 1, count)]
    chosen = data.draw(st.lists(st.sampled_from(possible), unique=True)) if possible else []
    rank = np.array(data.draw(st.permutations(range(count))))
    first, second = (np.array([pair[side] for pair in chosen], dtype=np.int64) for side in (0, 1))
    found = groups(first, second, rank)
    joined = {frozenset(pair): number for number, pair in enumerate(chosen)}
    for row, head in enumerate(found.representative.tolist()):
        assert found.representative[head] == head  # nobody is represented by a copy that is itself dropped
        if head == row:
            assert found.edge[row] == -1
            continue
        assert joined[frozenset((row, head))] == found.edge[row]
        assert rank[head] < rank[row]
    kept = set(np.flatnonzero(found.kept).tolist())
    assert not [pair for pair in joined if pair <= kept]  # no two copies of a picture stay


def test_groups__a_chain_is_cut_where_members_no_longer_match():
    chain = np.array([0, 1, 2, 3]), np.array([1, 2, 3, 4])
    assert groups(*chain, np.array([0, 1, 2, 3, 4])).representative.tolist() == [0, 0, 2, 2, 4]
    assert groups(*chain, np.array([4, 3, 0, 2, 1])).representative.tolist() == [0, 2, 2, 2, 4]


@given(st.permutations(range(8)))
def test_groups__does_not_depend_on_the_order_of_rows_or_edges(order: list[int]):
    pairs, rank = [(0, 1), (1, 2), (2, 3), (4, 5), (5, 6), (4, 6)], [3, 0, 5, 1, 2, 7, 6, 4]
    expected = groups(*np.array(pairs).T, np.array(rank))
    place = np.argsort(order)  # row `order[i]` of before is row i now
    found = groups(*place[np.array(pairs[::-1])].T, np.array(rank)[order])
    assert [order[head] for head in found.representative] == [expected.representative[row] for row in order]


def test_components__follow_chains():
    chain = np.array([0, 1, 4]), np.array([1, 2, 5])
    assert len(set(components(*chain, 6)[[0, 1, 2]])) == len(set(components(*chain, 6)[[4, 5]])) == 1
    assert len(set(components(*chain, 6))) == 3


def test_groups__refuses_ranks_that_tie():
    with pytest.raises(ValueError, match="permutation"):
        groups(np.empty(0, int), np.empty(0, int), np.array([0, 0, 1]))
