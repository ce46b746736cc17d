"""A run that waits for data says so once, with what helps where it is."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from raydino.launch.cluster import ClusterConfig
from raydino.launch.terminal.bottleneck import WORTH_SAYING, Place, remedies
from raydino.launch.terminal.progress import Watch
from raydino.recipe import Recipe
from raydino.tracking.run import DATA_WAIT, IMAGES_PER_S, LOSS_TOTAL, READ_WAIT, STEP_SECONDS
from raydino.tracking.spool import Spool

GPUS = Place(decode_in="worker", gpus=1, cpus=16, nodes=1, image_bytes=110_000)
JOINED = ClusterConfig(address="auto")


def said(
    *, wait: float = 0.4, read: float = 0.0, cluster: ClusterConfig = JOINED, place: Place = GPUS, **recipe: bool | str
) -> str:
    changed = Recipe().override({f"data.{name}": value for name, value in recipe.items()})
    return remedies({DATA_WAIT: wait, READ_WAIT: read}, changed, cluster, place)


def test_remedies__nothing_below_the_share_worth_saying():
    assert said(wait=WORTH_SAYING - 0.01) == "" and said(wait=WORTH_SAYING) != ""
    assert remedies({}, Recipe(), JOINED, GPUS) == ""


def test_remedies__only_what_is_not_so_already():
    text = said()
    assert text.startswith("40% of the time training waits for data: decoding and cropping is the bottleneck; ")
    assert (
        "--cluster.decode-in cluster (15 CPUs" in text and "--data.fast-crops" in text and "more CPUs than 16" in text
    )
    assert "data-threads" not in text  # a worker with a GPU takes all cores but one by itself
    assert "--cluster.data-threads 15 (now 4)" in said(cluster=JOINED.override({"data_threads": 4}))
    assert "fast-crops device" in said() and "fast-crops True" in said()
    assert "fast-crops device" in said(fast_crops=True) and "fast-crops True" not in said(fast_crops=True)
    assert "fast-crops" not in said(fast_crops="device")
    cut_elsewhere = said(place=Place("cluster", 1, 16, 1, 110_000), cluster=JOINED.override({"data_threads": 4}))
    assert "decode-in" not in cut_elsewhere and "data-threads" not in cut_elsewhere and "more CPUs" in cut_elsewhere
    on_cpus = said(place=Place("worker", 0, 8, 2, 110_000), cluster=JOINED.override({"workers": 2}))
    assert "decode-in" not in on_cpus and "--cluster.data-threads 4 (now 2)" in on_cpus
    assert "fast-crops True" in on_cpus and "fast-crops device" not in on_cpus


def test_remedies__storage_is_told_from_cutting():
    text = said(read=0.3)
    assert "reading is the bottleneck; copy the images to a faster storage" in text and "fast-crops" not in text
    assert "cpus_per_worker" not in text and "cpus_per_worker" in said(
        read=0.3, cluster=JOINED.override({"workers": 12})
    )
    assert "cropping is the bottleneck" in said(read=0.1)
    assert "cropping" in said(read=0.4, place=Place("cluster", 1, 16, 1, 1)), (
        "windows come cut there: it is not the storage"
    )


def test_remedies__large_images_are_named():
    assert "smaller" not in said()
    assert "store the images smaller (480 kB on average" in said(place=Place("worker", 1, 16, 1, 480_000))


@pytest.mark.parametrize("live", [False, True])
def test_watch__says_it_once_and_not_of_the_first_line(tmp_path: Path, live: bool):
    console = Console(file=io.StringIO(), force_terminal=live, width=60)
    spool = Spool(tmp_path)
    figures = {LOSS_TOTAL: 1.0, IMAGES_PER_S: 10.0, STEP_SECONDS: 1.0}
    advise = lambda metrics: "the data [is] slow" if metrics[DATA_WAIT] > 0.2 else ""  # noqa: E731
    with Watch(tmp_path, steps=5, console=console, advise=advise) as watch:
        for step, wait in enumerate((0.9, 0.1, 0.3, 0.5), start=1):
            spool.log({**figures, DATA_WAIT: wait}, step)
            spool.log({"health/rankme": 3.0}, step)
            watch.update()
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.count("the data [is] slow") == 1 and "warning  step 3: the data [is] slow" in text
