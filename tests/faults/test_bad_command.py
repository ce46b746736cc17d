"""Rows 66 to 75 of the matrix of bad input (docs/reliability.md): command lines."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from raydino.config import ConfigError
from raydino.launch import curate, driver
from raydino.launch.cluster import ClusterConfig
from raydino.launch.terminal.command import Command, fail, parse, say
from raydino.launch.terminal.progress import Watch
from raydino.launch.workers.wishes import STOP
from raydino.recipe import Recipe
from raydino.tracking.spool import Spool


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as stop:
        parse(Recipe(), {"laptop": Recipe()}, description="Train.", argv=words)
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    return " ".join((said.out + said.err).split())


def command(storage: Path, *, resume: str = "no", **changes: object) -> Command:
    return Command(Recipe().override(changes), ClusterConfig(storage=str(storage)), resume, dry_run=False)  # type: ignore[arg-type]


def test_row_66__a_recipe_without_arguments_is_the_laptop_preset_and_others_explain_themselves(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The matrix wants help and status 2; here `python recipes/dinov2.py` is the demonstration, and the README says so."""
    assert parse(Recipe(), {}, description="Train.", argv=[]).recipe == Recipe()
    monkeypatch.setattr(sys, "argv", ["curate.py"])
    with pytest.raises(SystemExit) as stop:
        curate.main("Curate.")
    assert stop.value.code == 2
    assert "--out is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        (["--stepz", "3"], "--steps"),
        (["--method.protoypes", "3"], "--method.prototypes"),
        (["--cluster.wrokers", "2"], "--cluster.workers"),
        (["--resum", "auto"], "--resume"),
        (["--preset", "lapptop"], "laptop"),
    ],
)
def test_row_67__an_unknown_flag_is_told_its_nearest(words: list[str], nearest: str, capsys) -> None:
    text = refused(capsys, *words)
    assert words[-1 if words[0] == "--preset" else 0] in text and nearest in text


@pytest.mark.parametrize(
    "name", ["a/b", "..", "../x", "x" * 300, "", " ", "a\nb", "-x", "$(touch x)", "a;b", ".hidden", "é"]
)
def test_row_68__a_name_that_is_no_folder_name(name: str) -> None:
    with pytest.raises(ConfigError, match="name = "):
        Recipe().override({"name": name})


def test_row_69__a_folder_that_is_there_offers_to_resume(tmp_path: Path) -> None:
    folder = tmp_path / Recipe().id
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    with pytest.raises(
        ConfigError, match=r"exists and is not finished; add --resume auto .* or give another --name"
    ) as error:
        driver.run(command(tmp_path))
    assert str(folder) in str(error.value)


def test_row_70__ctrl_c_asks_for_a_checkpoint_and_the_second_one_leaves_at_once(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    before = signal.getsignal(signal.SIGINT)
    with driver.stop_by_signal(tmp_path) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert ((tmp_path / STOP).exists(), stop.status, left) == (True, 130, [])
        os.kill(os.getpid(), signal.SIGINT)
        assert left == [130]
    assert signal.getsignal(signal.SIGINT) is before
    assert "a checkpoint is saved" in capsys.readouterr().out


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_row_71__a_reader_that_has_gone_ends_it_quietly(stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    gone = os.fdopen(write, "w", buffering=1)
    monkeypatch.setattr(sys, stream, gone)
    with pytest.raises(SystemExit) as left:
        (say if stream == "stdout" else fail)("a line\nanother")
    assert left.value.code == (0 if stream == "stdout" else 2)
    if stream == "stdout":
        gone.write("what the interpreter flushes at exit\n")  # goes nowhere, without a complaint


def test_row_72__without_a_terminal_lines_are_plain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    watch, spool = Watch(tmp_path, steps=2), Spool(tmp_path)
    with watch:
        spool.log({"loss/total": 2.5}, 1)
        spool.log({"knn/top1": 0.5}, 2)
        watch.update()
    out = capsys.readouterr().out
    assert "step 2/2  k-NN 0.500" in out and "\x1b" not in out
    assert "\x1b" not in refused(capsys, "--stepz", "3")


def test_row_73__a_finished_run_says_so_and_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / Recipe().id
    folder.mkdir()
    told = {
        "steps": 1000,
        "images_seen": 64_000,
        "seconds": 9.0,
        "images_per_second": 7.0,
        "data_wait": 0.0,
        "metrics": {},
    }
    (folder / "summary.json").write_text(json.dumps({"status": "finished", **told}))
    for resume in ("no", "auto"):
        assert driver.run(command(tmp_path, resume=resume)) == 0
        assert f"{Recipe().id} is finished: 1,000 steps" in capsys.readouterr().out


def test_row_75__the_machines_interface_is_a_file_of_one_object_per_line(tmp_path: Path) -> None:
    """The matrix wants it on stdout. Here every line of the record is in metrics.jsonl, complete after any crash; errors are in
    failure.json and the exit status, so that nothing has to be parsed from a stream that people read."""
    spool = Spool(tmp_path)
    spool.log({"loss/total": float("nan"), "knn/top1": 0.5}, 3)
    (line,) = spool.path.read_text().splitlines()
    found = json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert (found["step"], found["knn/top1"], found["non_finite"]) == (3, 0.5, {"loss/total": "nan"})


def test_fail__one_line_per_fault_and_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        fail("data.path = s3://anna:hunter2@bucket/x: no such folder\ntoken=hf_abcdefghijklmnopqrstuvwxyz is wrong")
    err = capsys.readouterr().err
    assert [line[:7] for line in err.splitlines()] == ["error: "] * 2
    assert "hunter2" not in err and "hf_" not in err
