"""Every command that a page or a recipe's header shows can be typed: its recipe exists and knows its flags."""

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/*.md"),
    *ROOT.glob("clusters/**/*.md"),
    *ROOT.glob("dashboards/*.md"),
    *ROOT.glob("recipes/*.py"),
]
COMMAND = re.compile(r"python ((?:recipes|dashboards)/\w+\.py)((?:[^`\n#|]|\\\n|\\\|)*)")


def commands() -> dict[str, set[str]]:
    """The flags that are shown of each script."""
    shown: dict[str, set[str]] = {}
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        if page.suffix == ".py":
            text = text.partition('"""')[2].partition('"""')[0]
        for script, words in COMMAND.findall(text):
            flags = {word.split("=")[0] for word in words.split() if re.match(r"--[a-z]", word)}
            shown.setdefault(script, set()).update(flag.rstrip(".,;:)") for flag in flags)
    return shown


@pytest.fixture(scope="module")
def helps() -> dict[str, str]:
    """What `--help` says of each script that is shown."""

    def ask(script: str) -> str:
        done = subprocess.run([sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout

    scripts = [script for script in commands() if (ROOT / script).exists()]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(scripts, pool.map(ask, scripts), strict=True))


def test_commands__are_found():
    shown = commands()
    assert "--source" in shown["recipes/curate.py"]
    assert "--method.teacher-momentum.start" in shown["recipes/dinov2.py"]
    assert len(shown) >= 10


def test_commands__name_scripts_that_exist():
    assert [script for script in commands() if not (ROOT / script).exists()] == []


def test_commands__have_flags_that_their_script_knows(helps: dict[str, str]):
    unknown = {}
    for script, flags in commands().items():
        known = set(re.findall(r"--[a-z][\w.-]*", helps.get(script, "")))
        if wrong := sorted(flag for flag in flags if flag not in known and flag.replace("_", "-") not in known):
            unknown[script] = wrong
    assert unknown == {}
