"""Copies and evaluation images while training streams: one winner an id, whatever is asked twice, killed or shuffled."""

import hashlib
import io
import sys
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from raydino.config import ConfigError
from raydino.data import claims
from raydino.data.batches import batches
from raydino.data.claims import LOOK_AHEAD, NOBODY, SPARE, Claims, admit
from raydino.data.config import DataConfig
from raydino.data.fetch import TooManyBadImages, local_windows
from raydino.data.plan import Plan
from raydino.launch.engine.owners import make_owners
from raydino.views import Crops, Views

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's processes cannot import a test module

VIEWS = Views(crops={"global": Crops(count=1, size=16, scale=(0.3, 1))})
BROKEN = 1000  # pictures from here on cannot be decoded


def encoded(picture):
    if picture >= BROKEN:
        return b"no image %d" % picture
    pixels, out = np.random.default_rng(picture).integers(0, 256, (16, 16, 3), dtype=np.uint8), io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG")
    return out.getvalue()


def identity(picture):
    return hashlib.sha256(encoded(picture)).digest()[:16]


def ids_of(pictures):
    return np.array([identity(picture) for picture in pictures], dtype="S16")


class Shelf:
    """A folder in memory whose row r is the picture with number `pictures[r]`; equal numbers are byte-identical copies."""

    def __init__(self, pictures, *, group_rows):
        self.pictures, self.group_rows = pictures, group_rows
        self.row_groups = (group_rows,) * (len(pictures) // group_rows)

    def read(self, group):
        rows = self.pictures[group * self.group_rows : (group + 1) * self.group_rows]
        return pa.table(
            {
                "id": pa.array([identity(picture) for picture in rows], type=pa.binary(16)),
                "bytes": pa.array([encoded(picture) for picture in rows], type=pa.binary()),
                "path": pa.nulls(len(rows), pa.string()),  # as in folders of bare images
                "label": pa.nulls(len(rows), pa.int64()),
            }
        )


def stream(shelf, claim, *, told, rank=0, world=1, start=0, steps=None, window=8, **options):
    plan = Plan(shelf.row_groups, seed=3, global_batch=8, lanes=2, window=window)
    steps = plan.steps_per_epoch if steps is None else steps
    options = {"read": local_windows, "max_bad": 0.0, **options}
    return batches(
        shelf, plan, VIEWS, seed=0, rank=rank, world=world, start_step=start, steps=steps, on_bad=told.append,
        claim=claim, **options,
    )  # fmt: skip


class Book:
    """The slow version: a dict."""

    def __init__(self, forbidden=()):
        self.owner = dict.fromkeys(forbidden, NOBODY)

    def __call__(self, ids, rows):
        asked = zip([bytes(i).ljust(16, b"\0") for i in ids.tolist()], rows.tolist(), strict=True)
        return np.array([self.owner.setdefault(name, row) for name, row in asked], dtype=np.int64)


names = st.integers(0, 40).map(lambda n: bytes([n % 7, n]) + bytes(14))  # NumPy hides the zeros at the end


@given(
    st.lists(st.tuples(st.sampled_from(["claim", "forbid", "restart"]), st.lists(names, max_size=12)), max_size=12),
    st.integers(0, 20),
)
def test_claims__answer_as_a_dict_does(tmp_path_factory, calls, least):
    path = tmp_path_factory.mktemp("claims") / "0.npz"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claims, "LEAST_NEW", least)
        found, book, row = Claims(path), Book(), 0
        for kind, asked in calls:
            ids, rows = np.array(asked, dtype="S16"), np.arange(row, row + len(asked))
            row += len(asked)
            if kind == "claim":
                assert found.claim(ids, rows).tolist() == book(ids, rows).tolist()
            elif kind == "forbid":
                found.forbid(ids)
                book.owner.update(dict.fromkeys(asked, NOBODY))
            else:
                found.save()
                found = Claims(path)
        assert len(found) == len(book.owner)


@pytest.mark.parametrize("seed", range(40))
def test_claims__one_winner_however_windows_arrive_are_killed_and_come_again(tmp_path, seed):
    """Three epochs; every window is asked for once to three times, with its rows in any order, and once the owner is lost
    with its last claims. Before that and after it each picture has one winner, and no evaluation image ever has one."""
    random = np.random.default_rng(seed)
    pictures, forbidden = random.integers(0, 12, 50), set(random.integers(0, 12, 3).tolist())
    names, windows = ids_of(pictures), np.array_split(random.permutation(50), 7)
    asked = [(epoch, one) for epoch in range(3) for one in range(7) for _ in range(random.integers(1, 4))]
    found, winners = Claims(tmp_path / "0.npz"), {}  # of each picture, the rows that ever won it
    found.forbid(ids_of(forbidden))
    lost = random.integers(0, len(asked))
    for number, (_, one) in enumerate(sorted(asked, key=lambda each: (each[0], random.random()))):
        if number == lost:
            assert all(len(rows) == 1 for rows in winners.values()) and not forbidden & winners.keys()
            found, winners = Claims(tmp_path / "0.npz"), {}
        rows = random.permutation(windows[one])
        for row in rows[found.claim(names[rows], rows) == rows].tolist():
            winners.setdefault(int(pictures[row]), set()).add(row)
        if random.random() < 0.1:
            found.save()
    rows = np.arange(50)
    for row in np.flatnonzero(found.claim(names, rows) == rows).tolist():
        winners.setdefault(int(pictures[row]), set()).add(row)
    assert set(winners) == set(pictures.tolist()) - forbidden
    assert all(len(rows) == 1 for rows in winners.values())


def test_claims__begin_with_the_file_only_if_it_is_whole_and_of_these_images(tmp_path):
    path = tmp_path / "claims" / "0.npz"
    found = Claims(path, "these")
    found.claim(ids_of([1]), np.array([7]))
    found.save()
    assert Claims(path, "these").claim(ids_of([1]), np.array([8])).tolist() == [7]
    found.forbid(ids_of([2]))
    assert Claims(path, "these").claim(ids_of([2]), np.array([8])).tolist() == [NOBODY]
    assert Claims(path, "others").claim(ids_of([1]), np.array([8])).tolist() == [8]
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ConfigError, match=r"0\.npz: the claims of data.stream_dedup cannot be read"):
        Claims(path, "these")


def test_claims__24_bytes_an_image():
    found, rows = Claims(), np.arange(200_000)
    ids = np.random.default_rng(0).integers(0, 256, (len(rows), 16), dtype=np.uint8).view("S16").reshape(-1)
    assert (found.claim(ids, rows) == rows).all() and (found.claim(ids, rows + 1) == rows).all()
    assert found._ids.nbytes + found._owners.nbytes == 24 * len(rows) and not found._new


def window(pictures, first):
    """A window as it arrives, and its row numbers."""
    table = Shelf(pictures, group_rows=len(pictures)).read(0)
    return table, np.arange(first, first + len(pictures))


def used(admitted):
    """The picture at each place, by its id."""
    ids = admitted.rows["id"].to_pylist()
    return [ids[at] for at in (range(len(ids)) if admitted.turns is None else admitted.turns)]


def test_admit__refused_rows_are_replaced_evenly_by_accepted_ones_of_their_window():
    accepted = list(range(300))
    mixed = [*accepted[:150], *[0] * 500, *accepted[150:], *[1, 2] * 50]
    (found,) = admit(Book(), [window(mixed, 0)])
    counts = Counter(used(found))
    assert counts.keys() == {identity(picture) for picture in accepted}
    assert set(counts.values()) == {3}  # 900 places, 300 pictures
    assert sorted(found.refused) == [*range(150, 650), *range(800, 900)]
    assert Counter(found.refused.values()).most_common(1)[0][1] == 1  # told apart by row, for there is no path
    assert found.refused[150] == (identity(0), "row 150", "duplicate")


def test_admit__a_window_with_few_rows_of_its_own_borrows_the_last_accepted():
    first, second, copies = list(range(300)), [0, 1, 2, 400, 401], list(range(200))
    *_, poor, none = admit(Book(), [window(first, 0), window(second, 1000), window(copies, 2000)])
    recent = {identity(picture) for picture in [400, 401, *first[-SPARE:]]}
    assert used(poor)[3:] == [identity(400), identity(401)]
    assert set(used(poor)) <= recent
    assert set(used(none)) <= recent and len(set(used(none))) == 200
    assert len(none.refused) == 200


def test_admit__where_a_rank_begins_copies_stand_in_and_evaluation_images_never():
    book = Book([identity(9)])
    book(ids_of([1, 2]), np.array([100, 101]))
    leaked, copies, mixed = admit(book, [window([9, 9], 0), window([1, 9, 2], 10), window([5, 9], 20)])
    assert set(used(leaked)) | set(used(copies)) == {identity(1), identity(2)}
    assert used(mixed)[0] == identity(5) and used(mixed)[1] != identity(9)
    assert [met[2] for met in copies.refused.values()] == ["duplicate", "leaked", "duplicate"]


def test_admit__nothing_but_evaluation_images_is_an_error():
    with pytest.raises(TooManyBadImages, match="nothing but evaluation images"):
        list(admit(Book([identity(9)]), [window([9, 9], 0)] * LOOK_AHEAD + [window([1], 50)]))
    with pytest.raises(TooManyBadImages, match="1 windows"):
        list(admit(Book([identity(9)]), [window([9, 9], 0)]))


# Half of the rows are copies, three are evaluation images, two of those right behind pictures that cannot be decoded.
PICTURES = [*range(20), 5, 5, BROKEN, 50, *range(12), BROKEN + 1, 50, 7, 51]
LEAKS = (50, 51)


@pytest.mark.parametrize("decode_in", ["worker", "cluster"])
def test_batches__no_leak_no_copy_by_either_road(decode_in):
    shelf, told = Shelf(PICTURES, group_rows=4), []
    book = Book(identity(picture) for picture in LEAKS)
    seen = Counter()
    for batch in stream(shelf, book, told=told, max_bad=0.06, steps=30, decode_in=decode_in):
        seen.update(batch.ids)
    assert seen.keys() == {identity(picture) for picture in range(20)}
    # 40 rows: 20 pictures, 2 broken ones, 3 leaks, 15 copies. Refused rows are told once each and are no bad images.
    assert Counter(bad.reason for bad in told if bad.reason in ("duplicate", "leaked")) == {
        "duplicate": 15,
        "leaked": 3,
    }
    assert len(told) == 20 and len({(bad.id, bad.path) for bad in told}) == 20


def test_batches__both_roads_give_the_same_pixels_and_one_rank_repeats_itself():
    def run(decode_in):
        told = []
        book = Book(identity(picture) for picture in LEAKS)
        made = list(stream(Shelf(PICTURES, group_rows=4), book, told=told, max_bad=1.0, steps=12, decode_in=decode_in))
        return [(b.ids, b.crops["global"].numpy().tobytes()) for b in made], told

    assert run("worker") == run("worker") == run("cluster")


def test_batches__a_claim_that_refuses_nothing_changes_nothing():
    shelf = Shelf(list(range(40)), group_rows=4)
    plain, claimed = (list(stream(shelf, claim, told=[], steps=12)) for claim in (None, Claims().claim))
    for one, other in zip(plain, claimed, strict=True):
        assert one.ids == other.ids and (one.crops["global"] == other.crops["global"]).all()


def test_data_config__an_evaluation_folder_needs_the_switch():
    assert DataConfig(stream_dedup=True, stream_against=("bench",)).stream_against == ("bench",)
    with pytest.raises(ConfigError, match=r"stream_against = \['bench'\] needs stream_dedup = true"):
        DataConfig().override({"stream_against": ("bench",)})


@pytest.mark.ray
def test_owners__two_ranks_find_each_others_copies_and_a_killed_owner_goes_on(ray_cluster, tmp_path):
    pictures = [*range(40), *range(40), 50, 50, 51, *range(13)]
    shelf = Shelf(pictures, group_rows=4)
    owners = make_owners(tmp_path, count=2, data="these")
    owners.forbid(ids_of(LEAKS))

    @ray.remote(num_cpus=0)
    def rank_of(rank, owners):
        told = []
        made = list(stream(shelf, owners, told=told, rank=rank, world=2))
        return [name for batch in made for name in batch.ids], told

    ranks = ray.get([rank_of.remote(rank, owners) for rank in range(2)])
    seen = {name for names, _ in ranks for name in names}
    told = [bad for _, each in ranks for bad in each]
    assert seen == {identity(picture) for picture in range(40)}
    # Every row is met in an epoch of 96 rows, so all but one copy of each picture is refused, in whichever rank.
    assert Counter(bad.reason for bad in told) == {"duplicate": 53, "leaked": 3}
    assert len({bad.path for bad in told}) == 56
    won = {picture: int(owners(ids_of([picture]), np.array([99]))[0]) for picture in range(40)}
    assert [pictures[row] for row in won.values()] == list(range(40))

    owners.save()
    late = ids_of(range(60, 80))
    assert (owners(late, np.arange(60, 80)) == np.arange(60, 80)).all()
    for actor in owners.actors:
        ray.kill(actor, no_restart=False)
    assert owners(ids_of(range(40)), np.full(40, 99)).tolist() == list(won.values())
    assert (owners(ids_of(LEAKS), np.array([1, 2])) == NOBODY).all()
    assert (owners(late, np.arange(160, 180)) == np.arange(160, 180)).all()  # not written down: claimed anew
