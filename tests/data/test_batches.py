"""Batches of a rank: the order of the plan, the same pixels by every road, and what happens to images that cannot be decoded."""

import hashlib
import io
import os
import subprocess
import sys
import threading
import time
import uuid
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch
from PIL import Image

from raydino.config import ConfigError
from raydino.data import batches as module
from raydino.data import cutters, stream
from raydino.data.batches import StreamError, batches
from raydino.data.crops import Cropper
from raydino.data.cutters import Cutter
from raydino.data.decode import decode
from raydino.data.fetch import Fetch, Request, TooManyBadImages, cut_slots, local_windows
from raydino.data.masks import block_masks
from raydino.data.plan import Plan, PlanError
from raydino.data.stream import ray_windows
from raydino.views import Crops, Masks, Views

VIEWS = Views(
    crops={
        "global": Crops(count=2, size=16, scale=(0.3, 1), blur=(0.0, 0.9), solarize=(0, 0.2)),
        "local": Crops(count=2, size=8, scale=(0.05, 0.3)),
        "none": Crops(count=0, size=8, scale=(0.05, 0.3)),
    },
    masks=Masks(),
    patch_size=4,
)
ON_DEVICE = VIEWS.override({"fast_crops": "device"})


class Shelf:
    """A collection in memory: PNG images in row groups, some of them broken."""

    def __init__(self, row_groups, *, broken=()):
        self.row_groups, self.key = tuple(row_groups), uuid.uuid4().hex
        self.images = [self._image(row, broken=row in set(broken)) for row in range(sum(row_groups))]
        self.ids = [hashlib.sha256(image).digest()[:16] for image in self.images]

    def _image(self, row, *, broken):
        pixels = np.random.default_rng(row).integers(0, 256, (10 + row % 7, 12, 3), dtype=np.uint8)
        encoded = io.BytesIO()
        Image.fromarray(pixels).save(encoded, format="PNG")
        return b"no image %d" % row if broken else encoded.getvalue()

    def read(self, group):
        rows = range(sum(self.row_groups[:group]), sum(self.row_groups[: group + 1]))
        return pa.table(
            {
                "id": pa.array([self.ids[row] for row in rows], type=pa.binary(16)),
                "bytes": pa.array([self.images[row] for row in rows], type=pa.binary()),
                "path": pa.array([f"{row}.png" for row in rows]),
                "label": pa.array([row % 3 for row in rows], type=pa.int64()),
            }
        )


ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's processes cannot import a test module

GROUPS = [8, 5, 8, 8, 3, 8, 8, 8, 7, 8, 8, 8]


def run(
    shelf, *, plan=None, seed=0, rank=0, world=1, start_step=0, steps=6, bad=None, max_bad=1.0, views=None, **options
):
    plan = plan or plan_of(shelf)
    options = {"read": local_windows, "threads": 2, **options}
    told = [] if bad is None else bad
    return batches(
        shelf,
        plan,
        views or VIEWS,
        seed=seed,
        rank=rank,
        world=world,
        start_step=start_step,
        steps=steps,
        max_bad=max_bad,
        on_bad=told.append,
        **options,
    )


def plan_of(shelf, **changes):
    return Plan(shelf.row_groups, **{"seed": 0, "global_batch": 16, "lanes": 4, "window": 12, **changes})


def equal(one, other):
    assert one.step == other.step and one.ids == other.ids
    assert list(one.crops) == list(other.crops)
    assert all(torch.equal(crop, other.crops[name]) for name, crop in one.crops.items())
    assert torch.equal(one.masks, other.masks)
    assert (one.colours is None) == (other.colours is None)
    for name, numbers in (one.colours or {}).items():
        assert torch.equal(numbers, other.colours[name])


def all_equal(some, others):
    for one, other in zip(some, others, strict=True):
        equal(one, other)


def test_batches__are_the_plans_rows_cut_one_by_one():
    """Against the slow version: look the row up, decode it, cut it, and stack."""
    shelf = Shelf(GROUPS)
    plan, cropper = plan_of(shelf), Cropper(VIEWS, seed=7)
    for batch in run(shelf, seed=7, rank=1, world=2, start_step=3, steps=5):
        rows = plan.rank_slots(batch.step, rank=1, world=2)
        assert batch.ids == tuple(shelf.ids[row] for row in rows)
        epoch = batch.step // plan.steps_per_epoch
        for column, row in enumerate(rows):
            expected = cropper(decode(shelf.images[row]), epoch=epoch, sample=shelf.ids[row])
            for name, crop in batch.crops.items():
                assert crop.dtype == torch.uint8 and crop.is_contiguous()
                assert (crop[:, column].numpy() == expected[name]).all()
        for place, lane in enumerate((1, 3)):
            masks = block_masks(VIEWS.masks, grid=(4, 4), seed=7, step=batch.step, lane=lane, images=4, views=2)
            assert (batch.masks[:, place::2].numpy() == masks).all()


def test_batches__what_is_drawn_about_colours_comes_with_its_image():
    """Against what is drawn for each image, one by one; of those that stand in for broken ones too."""
    shelf = Shelf(GROUPS, broken=(3, 40))
    images, cropper = dict(zip(shelf.ids, shelf.images, strict=True)), Cropper(ON_DEVICE, seed=7)
    plan = plan_of(shelf)
    for batch in run(shelf, seed=7, views=ON_DEVICE, steps=plan.steps_per_epoch):
        assert set(batch.crops) == set(batch.colours) == set(VIEWS.crops)
        for column, sample in enumerate(batch.ids):
            expected = cropper(decode(images[sample]), epoch=0, sample=sample)
            for name, crop in batch.crops.items():
                assert crop.dtype == torch.uint8 and batch.colours[name].dtype == torch.float32
                assert (crop[:, column].numpy() == expected[name]).all()
                assert (batch.colours[name][:, column].numpy() == expected[f"colours/{name}"]).all()
    assert all(batch.colours is None for batch in run(shelf, steps=1))


def test_batches__resume_gives_the_tail_of_the_run():
    shelf = Shelf(GROUPS)
    whole = list(run(shelf, steps=13))
    for start in (1, 5, 6, 12):
        all_equal(whole[start:], run(shelf, start_step=start, steps=13 - start))


@pytest.mark.parametrize("views", [VIEWS, ON_DEVICE], ids=["exact", "device"])
@pytest.mark.parametrize("world", [2, 4])
def test_batches__same_images_and_pixels_for_any_world_size(world, views):
    shelf = Shelf(GROUPS, broken=(3, 40))
    parts = [run(shelf, rank=rank, world=world, views=views) for rank in range(world)]
    for one, *ranks in zip(run(shelf, views=views), *parts, strict=True):
        for rank, part in enumerate(ranks):
            assert part.ids == one.ids[rank::world]
            for name, numbers in (one.colours or {}).items():
                assert torch.equal(part.colours[name], numbers[:, rank::world])
            assert all(torch.equal(part.crops[name], crop[:, rank::world]) for name, crop in one.crops.items())
            assert torch.equal(part.masks, one.masks[:, rank::world])


@pytest.mark.parametrize("views", [VIEWS, ON_DEVICE], ids=["exact", "device"])
def test_batches__decode_in_cluster_gives_the_same_pixels(views):
    shelf, at_worker, at_cluster = Shelf(GROUPS, broken=(1, 2, 50)), [], []
    cut_there = run(shelf, steps=8, views=views, decode_in="cluster", bad=at_cluster)
    all_equal(run(shelf, steps=8, views=views, bad=at_worker), cut_there)
    assert at_worker == at_cluster and {image.path for image in at_worker} == {"1.png", "2.png", "50.png"}


def test_batches__without_masks():
    shelf = Shelf(GROUPS)
    views = VIEWS.override({"masks": None})
    told = []
    made = batches(
        shelf, plan_of(shelf), views, seed=0, rank=0, world=1, start_step=0, steps=1, max_bad=0.0, on_bad=told.append,
        read=local_windows,
    )  # fmt: skip
    assert [batch.masks for batch in made] == [None]


def test_batches__bad_image_gives_way_to_the_next_of_its_window_and_is_told_once():
    broken, told = (3, 4, 30), []
    shelf, whole = Shelf(GROUPS, broken=broken), Shelf(GROUPS)
    plan, steps = plan_of(shelf), 3 * plan_of(shelf).steps_per_epoch
    substitutes = {}
    for window in plan.windows(rank=0, world=1, start_step=0, steps=steps):
        rows = plan.window_rows(window).tolist()
        for place, row in enumerate(rows):
            following = rows[place:] + rows[:place]
            substitutes[window.epoch, row] = next(row for row in following if row not in broken)
    for batch in run(shelf, steps=steps, bad=told):
        rows, epoch = plan.slots(batch.step).tolist(), batch.step // plan.steps_per_epoch
        assert batch.ids == tuple(whole.ids[substitutes[epoch, row]] for row in rows)
    assert sorted(image.path for image in told) == ["3.png", "30.png", "4.png"]
    assert all(image.reason and image.id == shelf.ids[int(image.path.removesuffix(".png"))] for image in told)
    for image in told:
        first = plan.slots(image.step)[image.slot]
        assert first in broken


def test_batches__too_many_bad_images():
    shelf = Shelf(GROUPS, broken=range(0, 87, 4))
    with pytest.raises(TooManyBadImages, match=r"of \d+ images cannot be decoded by step \d+, more than max_bad = 0.1"):
        list(run(shelf, steps=40, max_bad=0.1))
    assert len(list(run(shelf, steps=12, max_bad=0.3))) == 12


def test_batches__window_without_any_good_image():
    with pytest.raises(TooManyBadImages, match="none of the 12 images of a window"):
        list(run(Shelf([12] * 4, broken=range(48))))


@pytest.mark.parametrize("fault", ["swap", "drop", "twice"])
def test_batches__windows_out_of_order_are_an_error(fault):
    def read(fetch, requests):
        tables = [fetch(request) for request in requests]
        changed = {"swap": [tables[1], tables[0], *tables[2:]], "drop": tables[:-1], "twice": tables[:1] + tables}
        yield from changed[fault]

    with pytest.raises(StreamError, match=r"order of the plan|ended before"):
        list(run(Shelf(GROUPS), read=read))


def test_batches__windows_in_several_tables():
    def read(fetch, requests):
        for request in requests:
            table = fetch(request)
            yield from (table.slice(start, 5) for start in range(0, table.num_rows, 5))

    all_equal(run(Shelf(GROUPS)), run(Shelf(GROUPS), read=read))


def test_batches__storage_errors_surface_and_are_no_verdict():
    class Broken(Shelf):
        def read(self, group):
            raise OSError("the bucket is gone")

    told = []
    with pytest.raises(OSError, match="the bucket is gone"):
        list(run(Broken(GROUPS), bad=told))
    assert told == []


def test_batches__closing_early_ends_the_threads_and_the_reading():
    reads = []

    def read(fetch, requests):
        for request in requests:
            reads.append(request.window)
            yield fetch(request)

    before = threading.active_count()
    made = run(Shelf(GROUPS), steps=100_000, read=read, prefetch=3)
    next(made)
    made.close()
    assert threading.active_count() == before
    assert len(reads) < 30  # bounded by what four batches and one window per lane need


def test_batches__a_slow_consumer_does_not_make_it_read_on():
    reads = []

    def read(fetch, requests):
        for request in requests:
            reads.append(request.window)
            yield fetch(request)

    made = run(Shelf(GROUPS), steps=1000, read=read, prefetch=1)
    next(made)
    settled = -1
    while settled != len(reads):
        settled = len(reads)
        time.sleep(0.2)
    made.close()
    assert settled < 20


def settled(reads):
    """What has been read once no more is being read."""
    before = -1
    while before != len(reads):
        before = len(reads)
        time.sleep(0.2)
    return before


def test_batches__begin_before_they_are_asked_for_and_go_no_further_than_for_a_slow_consumer():
    reads = []

    def read(fetch, requests):
        for request in requests:
            reads.append(request.window)
            yield fetch(request)

    before = threading.active_count()
    made = run(Shelf(GROUPS), steps=1000, read=read, prefetch=2)
    assert 0 < settled(reads) < 20
    assert len(made._ready._items) == 2  # cut and ready
    made.close()
    assert threading.active_count() == before and next(made, None) is None


def test_batches__waiting_for_windows_is_told_from_waiting_for_crops(monkeypatch):
    """A slow storage and slow threads in turn; the consumer asks at once."""

    def slow_read(fetch, requests):
        for request in requests:
            time.sleep(0.05)
            yield fetch(request)

    def slow_cut(*arguments, **options):
        time.sleep(0.02)
        return cut_slots(*arguments, **options)

    shares = []
    for read, cut in ((slow_read, cut_slots), (local_windows, slow_cut)):
        monkeypatch.setattr(module, "cut_slots", cut)
        began = time.perf_counter()
        with closing(run(Shelf(GROUPS), steps=6, read=read, threads=1)) as made:
            assert len(list(made)) == 6
            shares.append(made.starved / (time.perf_counter() - began))
    assert shares[0] > 2 * shares[1]


def test_batches__by_processes_beside_the_threads_are_the_same(monkeypatch: pytest.MonkeyPatch):
    views = ON_DEVICE  # pixels, and what was drawn for colours
    shelf, told, here = Shelf(GROUPS, broken=(2, 3, 20, 41)), [], []
    expected = list(run(shelf, views=views, bad=here))
    monkeypatch.setattr(cutters, "PATIENCE", 0.0)

    def cutter(*arguments, **options):
        made = Cutter(*arguments, **options)
        made.cut_encoded([], out=[])
        while not made._process.ready():
            time.sleep(0.01)
        return made

    monkeypatch.setattr(module, "Cutter", cutter)
    used = []
    monkeypatch.setattr(Cropper, "cut_encoded", lambda *_, **__: used.append("this process") or [])
    all_equal(run(shelf, views=views, bad=told), expected)
    assert told == here and len(told) == 4 and used == ["this process"] * 2  # to begin with, nothing


def test_batches__dropped_without_a_word_they_end_too():
    before = threading.active_count()
    made = run(Shelf(GROUPS), steps=1000)
    next(made)
    del made
    assert threading.active_count() == before


def test_batches__what_is_wrong_with_a_batch_is_told_where_it_is_asked_for():
    """Not where it was made in advance: neither an error of the storage nor a bad image."""
    shelf, told, reads = Shelf(GROUPS, broken=(3, 20)), [], []
    plan = plan_of(shelf)

    def read(fetch, requests):
        for request in requests:
            reads.append(request.window)
            if request.window == 6:
                raise OSError("the bucket is gone")
            yield fetch(request)

    made = run(shelf, plan=plan, steps=40, read=read, prefetch=9, bad=told)
    settled(reads)
    assert 6 in reads and told == []
    windows = list(plan.windows(rank=0, world=1, start_step=0, steps=40))
    for step in range(windows[6].begin // plan.per_lane):
        assert next(made).step == step
        assert all(image.step <= step for image in told)
    with pytest.raises(OSError, match="the bucket is gone"):
        next(made)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"world": 3}, PlanError, "3 workers cannot share lanes = 4"),
        ({"threads": 0}, ConfigError, "threads = 0"),
        ({"prefetch": 0}, ConfigError, "prefetch = 0"),
        ({"max_bad": 1.5}, ConfigError, "max_bad = 1.5"),
        ({"plan": Plan([8] * 8, seed=0, global_batch=16, lanes=4, window=12)}, ConfigError, "the plan orders 64 rows"),
    ],
)
def test_batches__bad_arguments_raise_before_anything_starts(change, error, message):
    with pytest.raises(error, match=message):
        run(Shelf(GROUPS), **change)


@pytest.mark.ray
def test_ray_windows__same_batches_as_local(ray_cluster):
    shelf, local, remote = Shelf(GROUPS, broken=(3, 4)), [], []
    expected = list(run(shelf, rank=1, world=2, start_step=2, steps=10, bad=local))
    made = run(shelf, rank=1, world=2, start_step=2, steps=10, bad=remote, read=ray_windows)
    all_equal(expected, made)
    assert local == remote


@pytest.mark.ray
@pytest.mark.parametrize("views", [VIEWS, ON_DEVICE], ids=["exact", "device"])
def test_ray_windows__decode_in_cluster(ray_cluster, views):
    shelf = Shelf(GROUPS, broken=(3, 4))
    cut_there = run(shelf, steps=4, views=views, read=ray_windows, decode_in="cluster")
    all_equal(run(shelf, steps=4, views=views), cut_there)


@pytest.mark.ray
def test_ray_windows__windows_cut_in_parts_are_put_together(ray_cluster, monkeypatch):
    """Tasks and blocks so small that a window comes in many parts, with a bad image at the end of one."""
    monkeypatch.setattr(stream, "CUT_BYTES", 5_000)
    parts = []

    class Counted(module.CutWindow):
        def __init__(self, rows):
            parts.append(rows["bad"].num_chunks)
            super().__init__(rows)

    monkeypatch.setattr(module, "CutWindow", Counted)
    shelf = Shelf(GROUPS, broken=tuple(range(3, 40, 5)))
    all_equal(run(shelf, steps=4), run(shelf, steps=4, read=ray_windows, decode_in="cluster"))
    assert min(parts) > 1


@pytest.mark.ray
def test_ray_windows__several_datasets_in_a_row(ray_cluster, monkeypatch):
    monkeypatch.setattr(stream, "CHUNK", 7)
    monkeypatch.setattr(stream, "START_BEFORE", 2)
    shelf = Shelf(GROUPS)
    all_equal(run(shelf, steps=12), run(shelf, steps=12, read=ray_windows))


@pytest.mark.ray
def test_ray_windows__error_in_a_task_surfaces(ray_cluster):
    class Broken(Shelf):
        def read(self, group):
            raise OSError("the bucket is gone")

    with pytest.raises(Exception, match="the bucket is gone"):
        list(run(Broken(GROUPS), read=ray_windows))


@pytest.mark.ray
def test_ray_windows__closing_early_ends_threads_and_executor(ray_cluster):
    made = run(Shelf(GROUPS), steps=3000, read=ray_windows)
    next(made)
    made.close()
    names = [thread.name for thread in threading.enumerate() if thread.is_alive()]
    assert not [name for name in names if name.startswith(("raydino", "StreamingExecutor"))]


@pytest.mark.ray
def test_ray_windows__windows_larger_than_the_store_share_still_arrive(ray_cluster, monkeypatch):
    monkeypatch.setattr(stream, "STORE_BYTES", 1000)
    shelf = Shelf(GROUPS)
    all_equal(run(shelf, steps=4), run(shelf, steps=4, read=ray_windows))


@pytest.mark.ray
def test_ray_windows__more_than_the_store_holds_is_kept_without_a_word_to_the_disk(ray_cluster):
    """All windows of all lanes held at once, as a stream holds one of each lane; the store has 300 MB."""
    from ray._private.internal_api import memory_summary

    fetch = Fetch(Large(), None)
    asked = [Request(number, 0, np.array([number]).tobytes(), np.arange(8).tobytes()) for number in range(20)]
    held = list(ray_windows(fetch, iter(asked)))
    assert sum(window.nbytes for window in held) > 400e6
    assert all(
        window.equals(expected) for window, expected in zip(held, local_windows(fetch, iter(asked)), strict=True)
    )
    address = ray.get_runtime_context().gcs_address  # left to itself, it may ask a cluster that is gone
    assert "Spilled" not in memory_summary(address, stats_only=True)


class Large:
    """Row groups of 8 images of 3 MB."""

    key = "large"

    def read(self, group: int) -> pa.Table:
        data = np.random.default_rng(group).bytes(3_000_000)
        ids = [bytes([group, row]) * 8 for row in range(8)]
        return pa.table({"id": pa.array(ids, pa.binary(16)), "path": ["x"] * 8, "bytes": pa.array([data] * 8)})


@pytest.mark.ray
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc")
def test_ray_windows__scheduler_rests_while_blocks_wait_to_be_taken(ray_cluster, monkeypatch):
    """It runs in a thread of the training worker: spinning there costs the step more than half of its speed on two cores."""

    def used() -> float:
        """CPU seconds of Ray Data's scheduling threads."""
        total = 0
        for thread in threading.enumerate():
            if thread.name.startswith("StreamingExecutor") and thread.native_id:
                fields = Path(f"/proc/self/task/{thread.native_id}/stat").read_text().rpartition(")")[2].split()
                total += int(fields[11]) + int(fields[12])
        return total / os.sysconf("SC_CLK_TCK")

    monkeypatch.setattr(stream, "STORE_BYTES", 1000)
    made = run(Shelf(GROUPS), steps=3000, read=ray_windows)
    next(made)
    time.sleep(1)  # until all that may be fetched is fetched
    before = used()
    time.sleep(3)
    share = (used() - before) / 3
    made.close()
    assert share < 0.3


def test_fetch__gives_rows_in_the_order_asked_for():
    shelf = Shelf([3, 4])
    request = Request(5, 0, np.array([1, 0]).tobytes(), np.array([6, 0, 3]).tobytes())
    table = Fetch(shelf, None)(request)
    assert table["path"].to_pylist() == ["2.png", "3.png", "6.png"]
    assert table["window"].to_pylist() == [5, 5, 5] and table["place"].to_pylist() == [6, 0, 3]


def test_fetch__needs_neither_torch_nor_albumentations():
    """A Ray process that only reads should not spend seconds on importing them."""
    code = "import sys, raydino.data.fetch; print(sorted({'torch', 'albumentations', 'ray'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "[]"
