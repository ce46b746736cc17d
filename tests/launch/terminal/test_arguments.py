"""What is shared by commands whose flags are written by hand."""

import argparse
import os

import pytest

from raydino.config import ConfigError
from raydino.launch.terminal.arguments import check_least, parser_of, share_cores


def test_parser_of__keeps_the_lines_of_a_docstring(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        parser_of("Do it.\n\n    python recipes/it.py --a\n    python recipes/it.py --b").parse_args(["--help"])
    assert "    python recipes/it.py --a\n    python recipes/it.py --b\n" in capsys.readouterr().out


@pytest.mark.parametrize(("given", "says"), [(2, ""), (1, "k = 1: give at least 2"), (None, "")])
def test_check_least__names_field_value_and_bound(given: int | None, says: str):
    options = argparse.Namespace(k=given, other=-5)
    if says:
        with pytest.raises(ConfigError, match=says):
            check_least(options, {"k": 2})
    else:
        check_least(options, {"k": 2})


def test_share_cores__leaves_a_policy_that_somebody_chose(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    share_cores()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    share_cores()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
