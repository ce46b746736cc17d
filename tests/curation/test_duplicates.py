"""Pairs and groups of duplicates against nested loops and planted copies."""

import io
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from raydino.curation.components import components, groups
from raydino.curation.duplicates import CORRELATION, Edges, Table, between, correlation, within
from raydino.curation.fingerprint import KEYS, fingerprint
from raydino.curation.synthetic import scene


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
                for key in range(len(KEYS)):
                    apart = int(np.bitwise_count(whole.hashes[a, 0] ^ keyed.hashes[b, key]).sum())
                    same = correlation(whole.thumbs[a][None], keyed.thumbs[b][None], np.array([key]))[0] >= CORRELATION
                    if apart <= radius and same:
                        out[i, j] = min(apart, out.get((i, j), 999))
    return out


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
    a, b = (np.random.default_rng(n).integers(0, 256, (3, 32, 32), dtype=np.uint8) for n in range(2))
    expected = [np.corrcoef(x.reshape(-1), y[:, ::-1].reshape(-1))[0, 1] for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(correlation(a, b, np.full(3, KEYS.index("flip"))), expected, atol=1e-5)


def test_between__empty_tables_have_no_pairs():
    assert len(between(table([]), table(IMAGES))) == len(between(table(IMAGES), table([]))) == 0


def test_correlation__tells_other_pictures_whatever_their_hashes_say():
    """The second look: thumbnails of different pictures do not correlate, those of a copy do."""
    one, other = table(IMAGES[:5]), table(COPIES)
    keys = np.array([0, KEYS.index("flip"), 0, 0, 2])
    assert (correlation(one.thumbs, other.thumbs, keys) > CORRELATION).all()
    assert (correlation(one.thumbs, np.roll(other.thumbs, 1, axis=0), keys) < 0.8).all()


@given(st.data())
def test_groups__every_member_matches_its_representative_and_the_best_copy_stays(data: st.DataObject):
    count = data.draw(st.integers(1, 14))
    possible = [(i, j) for i in range(count) for j in range(i + 1, count)]
    chosen = data.draw(st.lists(st.sampled_from(possible), unique=True)) if possible else []
    rank = np.array(data.draw(st.permutations(range(count))))
    first, second = (np.array([pair[side] for pair in chosen], dtype=np.int64) for side in (0, 1))
    edges = Edges(first, second, np.arange(1, len(chosen) + 1))
    found = groups(edges, rank)
    joined = {frozenset(pair): number + 1 for number, pair in enumerate(chosen)}
    for row, head in enumerate(found.representative.tolist()):
        assert found.representative[head] == head  # nobody is represented by a copy that is itself dropped
        if head == row:
            assert found.distance[row] == 0
            continue
        assert joined[frozenset((row, head))] == found.distance[row]
        assert rank[head] < rank[row]
    kept = set(np.flatnonzero(found.kept).tolist())
    assert not [pair for pair in joined if pair <= kept]  # no two copies of a picture stay


def test_groups__a_chain_is_cut_where_members_no_longer_match():
    chain = Edges(np.array([0, 1, 2, 3]), np.array([1, 2, 3, 4]), np.array([5, 5, 5, 5]))
    assert groups(chain, np.array([0, 1, 2, 3, 4])).representative.tolist() == [0, 0, 2, 2, 4]
    assert groups(chain, np.array([4, 3, 0, 2, 1])).representative.tolist() == [0, 2, 2, 2, 4]


@given(st.permutations(range(8)))
def test_groups__does_not_depend_on_the_order_of_rows_or_edges(order: list[int]):
    pairs, rank = [(0, 1), (1, 2), (2, 3), (4, 5), (5, 6), (4, 6)], [3, 0, 5, 1, 2, 7, 6, 4]
    expected = groups(Edges(*np.array(pairs).T, np.ones(6, int)), np.array(rank))
    place = np.argsort(order)  # row `order[i]` of before is row i now
    moved = Edges(*place[np.array(pairs[::-1])].T, np.ones(6, int))
    found = groups(moved, np.array(rank)[order])
    assert [order[head] for head in found.representative] == [expected.representative[row] for row in order]


def test_components__follow_chains():
    chain = Edges(np.array([0, 1, 4]), np.array([1, 2, 5]), np.ones(3, int))
    assert len(set(components(chain, 6)[[0, 1, 2]])) == len(set(components(chain, 6)[[4, 5]])) == 1
    assert len(set(components(chain, 6))) == 3


def test_groups__refuses_ranks_that_tie():
    with pytest.raises(ValueError, match="permutation"):
        groups(Edges(*(np.empty(0, int) for _ in range(3))), np.array([0, 0, 1]))
