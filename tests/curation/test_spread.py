"""Work in threads and in Ray tasks, some of which die: the outcome is the same to the byte."""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray.cloudpickle

from raydino.curation import duplicates
from raydino.curation.duplicates import search
from raydino.curation.fingerprint import fingerprint
from raydino.curation.ingest import ingest_inputs
from raydino.curation.ledger import Input, Rules
from raydino.curation.screen import screen
from raydino.curation.sources import Part, SourceImage, open_source
from raydino.curation.spread import Spread, here, on_ray
from raydino.curation.synthetic import scene, write_builtin
from raydino.curation.table import Table

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import the tests


@dataclass(frozen=True)
class DiesOnce:
    """A part whose process dies half way, the first time."""

    part: Part
    marker: Path

    def __call__(self) -> Iterator[SourceImage]:
        for number, image in enumerate(self.part()):
            if number == 3 and not self.marker.exists():
                self.marker.touch()
                os._exit(1)
            yield image


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Parquet as it comes: images with copies and leaks among them, in row groups that are the parts."""
    out = tmp_path_factory.mktemp("raw") / "images"
    write_builtin(str(out), train=600, test=40, copies=True)
    return str(out / "data")


def curated(raw: str, out: Path, spread: Spread | None, *, dying: bool = False) -> dict[str, bytes]:
    """Ingested and screened; all files but those that name the place."""
    source = open_source(raw)
    parts = source.parts()
    if dying:
        parts = [
            DiesOnce(part, out.parent / f"died-{number}") if number in (1, 4) else part
            for number, part in enumerate(parts)
        ]
    ingest_inputs([Input("raw", source.total, parts, source.classes)], str(out), rules=Rules(), spread=spread)
    screen(str(out), spread=spread)
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_here__tables_come_in_order_whoever_is_first():
    done = here(3)(lambda number: iter([pa.table({"n": [number]})] * (number % 3)), 20)
    assert [table["n"][0].as_py() for table in done] == [n for n in range(20) for _ in range(n % 3)]


def test_here__an_error_in_a_piece_is_raised():
    def piece(number: int) -> Iterator[pa.Table]:
        if number == 2:
            raise OSError("storage is gone")
        yield pa.table({"n": [number]})

    with pytest.raises(OSError, match="storage is gone"):
        list(here(2)(piece, 5))


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_search__threads_and_pieces_change_nothing(threads: int, monkeypatch: pytest.MonkeyPatch):
    images = [scene(seed) for seed in range(30)] + [np.ascontiguousarray(scene(seed)[:, ::-1]) for seed in range(30)]
    table = Table.of([fingerprint(image) for image in images])
    whole = search(table, None, radius=90)
    monkeypatch.setattr(duplicates, "PIECE", 7)
    found = search(table, None, radius=90, spread=here(threads))
    assert len(whole) > 30
    for name in ("first", "second", "bits", "agreement"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))


@pytest.mark.usefixtures("ray_cluster")
def test_on_ray__a_curated_folder_is_the_same_to_the_byte_even_if_tasks_die(raw: str, tmp_path: Path):
    expected = curated(raw, tmp_path / "here" / "out", None)
    found = curated(raw, tmp_path / "ray" / "out", on_ray(), dying=True)
    assert {path.name for path in (tmp_path / "ray").glob("died-*")} == {"died-1", "died-4"}
    assert found == expected
    assert {"manifest.json", "keep/train.parquet", "features/train.parquet", "decisions.parquet"} <= set(found)
