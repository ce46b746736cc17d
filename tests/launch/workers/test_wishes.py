"""A judged run waits for its verdict, and all ranks leave or go on together."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from raydino.launch.workers.wishes import STOP, Wishes, tell, told

CPU = torch.device("cpu")


def _later(action: Callable[[], object]) -> None:
    def act() -> None:
        time.sleep(0.3)
        action()

    threading.Thread(target=act, daemon=True).start()


def test_verdict__the_run_waits_until_it_is_told_to_go_on(tmp_path: Path):
    wishes = Wishes(tmp_path, CPU, alone=True)
    _later(lambda: tell(tmp_path, 35))
    begun = time.monotonic()
    assert not wishes.wait_for_verdict(35)
    assert time.monotonic() - begun >= 0.25
    assert told(tmp_path) == 35


def test_verdict__one_of_an_earlier_evaluation_is_none_of_this(tmp_path: Path):
    tell(tmp_path, 35)
    _later(lambda: (tmp_path / STOP).write_text("stopped by ASHA"))
    assert Wishes(tmp_path, CPU, alone=True).wait_for_verdict(70)


def test_verdict__a_run_that_comes_there_again_is_not_judged_again(tmp_path: Path):
    tell(tmp_path, 70)
    assert not Wishes(tmp_path, CPU, alone=True).wait_for_verdict(35)


def test_verdict__to_stop_counts_more_than_to_go_on(tmp_path: Path):
    (tmp_path / STOP).touch()
    tell(tmp_path, 35)
    assert Wishes(tmp_path, CPU, alone=True).wait_for_verdict(35)


@pytest.mark.parametrize("stop", [True, False])
def test_verdict__holds_for_all_ranks_though_one_alone_looks(
    stop: bool, gloo: Callable[..., list[Any]], tmp_path: Path
):
    def ask(rank: int) -> bool:
        import time
        from pathlib import Path

        import torch

        from raydino.launch.workers.wishes import STOP, Wishes, tell

        folder = Path(path)
        if rank == 0:
            time.sleep(0.2)
            (folder / STOP).touch() if stop else tell(folder, 35)
        return Wishes(folder, torch.device("cpu"), alone=True).wait_for_verdict(35)

    path = str(tmp_path)
    assert gloo(ask, 2) == [stop, stop]
