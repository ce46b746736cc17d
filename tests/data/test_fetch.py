"""What an epoch really reads: rows counted where Parquet is decoded, on shards written for the purpose."""

import tempfile
from collections import Counter
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from raydino.data.fetch import Fetch, local_windows, requests
from raydino.data.plan import Plan
from raydino.shards.manifest import build
from raydino.shards.reader import Collection
from raydino.shards.schema import Folder
from raydino.shards.writer import ShardWriter, rows_per_group


class Counted(Collection):
    """Counts the rows that its reader decodes."""

    decoded = 0

    def _read_columns(self, file, local, columns):
        table = super()._read_columns(file, local, columns)
        self.decoded += table.num_rows
        return table


def shelve(root, images, *, group_rows):
    """A folder of `images` different images of a few bytes, in several files."""
    folder = Folder(str(root))
    with ShardWriter(folder, "train", rows_per_group=group_rows, target_bytes=20_000) as writer:
        for number in range(images):
            data = number.to_bytes(4, "big")
            writer.add(data, path=f"{number}.bin", label=None, format="PNG", width=1, height=1, mode="L")
    return Counted(folder, build(folder, list(writer.files), classes=(), labelled=False, stages=[]))


def epoch(shelf, plan, *, world, number):
    """Everything that `world` workers deliver in an epoch, and the rows that were decoded for it."""
    shelf.decoded, delivered = 0, Counter()
    start = number * plan.steps_per_epoch
    for rank in range(world):
        wanted = requests(plan, rank=rank, world=world, start_step=start, steps=plan.steps_per_epoch)
        for window in local_windows(Fetch(shelf, None), wanted):
            delivered.update(window["id"].to_pylist())
    return delivered, shelf.decoded


@settings(max_examples=12)
@given(
    images=st.integers(768, 6000),
    batch=st.sampled_from([16, 64, 256]),
    seed=st.integers(0, 99),
    number=st.integers(0, 3),
)
def test_requests__a_curated_folder_is_read_at_most_once_and_a_tenth(images, batch, seed, number):
    with tempfile.TemporaryDirectory() as root:
        shelf = shelve(root, images, group_rows=rows_per_group(images))
        plan = Plan(shelf.row_groups, seed=seed, global_batch=batch, lanes=8, window=1024)
        used, first = images // batch * batch, None
        for world in (1, 2, 4):
            delivered, decoded = epoch(shelf, plan, world=world, number=number)
            assert set(delivered.values()) == {1} and len(delivered) == used
            assert decoded <= 1.1 * used
            assert decoded == round(plan.read_amplification(number) * used)
            first = first or delivered
            assert delivered == first


def test_requests__large_row_groups_in_a_small_folder_are_read_in_vain(tmp_path: Path):
    """The fault that smaller row groups mend: 2,700 images in groups of 200, as a foreign folder has them."""
    shelf = shelve(tmp_path, 2700, group_rows=200)
    plan = Plan(shelf.row_groups, seed=0, global_batch=64, lanes=8, window=1024)
    _, decoded = epoch(shelf, plan, world=2, number=0)
    assert decoded > 1.4 * plan.steps_per_epoch * 64


def test_rows_per_group__at_least_96_groups_until_they_would_be_too_small():
    assert [rows_per_group(images) for images in (1, 700, 1535, 1536, 3071, 3072, 6143, 6144, 10**9)] == [
        8, 8, 8, 16, 16, 32, 32, 64, 64,
    ]  # fmt: skip
