"""What a run says without a terminal: its figures now and then, every evaluation once."""

from pathlib import Path

import pytest

from raydino.launch.terminal.progress import Watch
from raydino.tracking.run import KNN_TOP1, LOSS_TOTAL
from raydino.tracking.spool import Spool


def test_watch__an_evaluation_is_said_once_and_what_a_save_took_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    spool = Spool(tmp_path)
    with Watch(tmp_path, steps=2) as watch:
        spool.log({KNN_TOP1: 0.25, "health/rankme": 3.0}, 0)
        spool.log({LOSS_TOTAL: 5.0}, 2)
        spool.log({KNN_TOP1: 0.5}, 2)
        spool.log({"checkpoint/seconds": 0.1}, 2)
        watch.update()
    assert capsys.readouterr().out.splitlines() == [
        "step 0/2  k-NN 0.250",
        "step 2/2  loss 5.000 · k-NN 0.250",
        "step 2/2  k-NN 0.500",
    ]
