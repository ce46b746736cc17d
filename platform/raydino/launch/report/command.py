"""The command line of reports: a page of a run, of several beside each other, of a sweep or an ablation; or how to repeat one.

Heavy imports happen after the command line is parsed, so that `--help` and typing errors answer at once.
"""

import argparse
import re
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from raydino.config import ConfigError
from raydino.launch.terminal.arguments import parser_of
from raydino.launch.terminal.command import fail, say

if TYPE_CHECKING:
    from raydino.launch.report.record import Recorded
    from raydino.recipe import Recipe

OUT = Path("runs", "reports")
"""Where pages of several runs go, and of runs whose folder is not here."""
CLONE = "clone"


def main(description: str, groups: "Mapping[str, Mapping[str, Recipe]]", argv: Sequence[str] | None = None) -> int:
    """Carry out the command line; returns the exit status, or leaves with one line per fault. `groups` are the presets of each
    script by its name."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words[:1] == [CLONE]:
            _clone(_clone_parser().parse_args(words[1:]), groups)
        else:
            options = _parser(description).parse_args(words)
            command = f"python dashboards/report.py {shlex.join(words)}"
            say(str(_report(options, command, groups)))
    except (ConfigError, OSError) as error:
        fail(str(error))
    return 0


def _parser(description: str) -> argparse.ArgumentParser:
    parser = parser_of(description)
    add = parser.add_argument
    add("run", nargs="+", help="folder of a run, a sweep or an ablation; with --tracker the name or id of a run there")
    add("--tracker", help="MLflow server or database that has the runs, where their folders are elsewhere")
    add("--experiment", default="raydino", help="experiment in which --tracker looks for names (raydino)")
    add("--out", help=f"file of the page (report.html in the folder of a single run, else in {OUT}/)")
    return parser


def _clone_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="report.py clone", description="Print the command that repeats a run with changes."
    )
    parser.add_argument("run", help="folder of a run, or with --tracker its name or id")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a dotted field; repeatable")
    parser.add_argument("--tracker", help="MLflow server or database that has the run")
    parser.add_argument("--experiment", default="raydino", help="experiment in which names are looked for (raydino)")
    return parser


def _report(options: argparse.Namespace, command: str, groups: "Mapping[str, Mapping[str, Recipe]]") -> Path:
    """Write the page; returns its file."""
    from raydino.launch.job import PAGE
    from raydino.launch.report.page import page
    from raydino.launch.report.record import read
    from raydino.launch.report.sets import is_set, members, set_page
    from raydino.launch.resume import write

    names = list(dict.fromkeys(options.run))
    with tempfile.TemporaryDirectory(prefix="raydino-report-") as scratch:
        if options.tracker:
            folders = [_fetched(options, name, Path(scratch)) for name in names]
        else:
            folders = [Path(name) for name in names]
        if len(folders) == 1 and not options.tracker and is_set(folders[0]):
            text, out = set_page(folders[0], command=command), Path(options.out or folders[0] / PAGE)
        else:
            runs = [run for folder in folders for run in (members(folder) if is_set(folder) else [read(folder)])]
            repeat = _repeat(runs[0], groups) if len(runs) == 1 and not options.tracker else command
            text = page(runs, command=repeat)
            single = len(runs) == 1 and not options.tracker
            out = Path(options.out or (runs[0].folder / PAGE if single else OUT / _file_of(runs)))
        out.parent.mkdir(parents=True, exist_ok=True)
        write(out, text)
    return out


def _repeat(run: "Recorded", groups: "Mapping[str, Mapping[str, Recipe]]") -> str:
    """The command that repeats a run, or why there is none."""
    from raydino.launch.report.clone import clone

    try:
        return clone(run, [], groups)[0]
    except ConfigError as error:
        return f"# {error}"


def _clone(options: argparse.Namespace, groups: "Mapping[str, Mapping[str, Recipe]]") -> None:
    from raydino.launch.report.clone import clone
    from raydino.launch.report.record import read

    # What is fetched stays: the command reads its recipe.
    folder = _fetched(options, options.run, OUT) if options.tracker else Path(options.run)
    command, notes = clone(read(folder), options.set, groups)
    say(command)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def _fetched(options: argparse.Namespace, name: str, folder: Path) -> Path:
    from raydino.tracking.fetch import fetch
    from raydino.tracking.opening import TrackerUnavailable

    try:
        return fetch(name, tracking_uri=options.tracker, experiment=options.experiment, into=folder)
    except TrackerUnavailable as error:
        raise ConfigError(str(error)) from None


def _file_of(runs: "Sequence[Recorded]") -> str:
    names = [run.name for run in runs]
    return f"{_plain('-beside-'.join(names[:3]))[:150]}{f'-and-{len(names) - 3}' * (len(names) > 3)}.html"


def _plain(name: str) -> str:
    """A name that is one of a file."""
    return re.sub(r"[^A-Za-z0-9_.@-]+", "-", name).strip("-.") or "run"
