import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "platform").rglob("*.py"))


def test_platform__has_no_init():
    # With one, `import platform` in the repository's root would find it instead of Python's own, and `import ray` fails.
    assert not (ROOT / "platform" / "__init__.py").exists()
    assert not (ROOT / "platform.py").exists()
    found = subprocess.run(
        [sys.executable, "-c", "import platform; print(platform.__file__, platform.system())"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(ROOT / "platform") not in found.stdout


def test_init_files__are_empty():
    filled = [str(p.relative_to(ROOT)) for p in SOURCES if p.name == "__init__.py" and p.read_bytes()]
    assert filled == []


def test_packages__all_have_an_init():
    # A folder without one is left out of import-linter's floors.
    folders = {p.parent for p in SOURCES} - {ROOT / "platform"}
    assert [str(f) for f in folders if not (f / "__init__.py").exists()] == []


def test_floors__kept():
    linter = Path(sys.executable).with_name("lint-imports")
    command = [str(linter), "--no-cache", "--config", "pyproject.toml"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=_environment())
    assert result.returncode == 0, result.stdout[-3000:]


def test_floors__a_climbing_import_is_caught(tmp_path):
    # The check itself is checked: a copy with one forbidden import and one forbidden door must fail.
    import shutil

    shutil.copytree(ROOT / "platform" / "raydino", tmp_path / "raydino", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "raydino" / "schedule.py").open("a").write("\nimport raydino.recipe\n")
    (tmp_path / "raydino" / "views.py").open("a").write("\nimport mlflow\n")
    linter = Path(sys.executable).with_name("lint-imports")
    environment = {**_environment(), "PYTHONPATH": str(tmp_path)}
    command = [str(linter), "--no-cache", "--config", "pyproject.toml"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert result.returncode == 1
    assert "raydino.schedule -> raydino.recipe" in result.stdout
    assert "raydino.views -> mlflow" in result.stdout


def test_lock__hashes_and_no_addresses():
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text
    assert "--index" not in text
    assert "--find" not in text
    blocks = re.split(r"\n(?=\S)", text.strip())
    assert len(blocks) > 100
    assert [
        b.splitlines()[0] for b in blocks if not re.match(r"^[a-z0-9._-]+==\S+", b) or "--hash=sha256:" not in b
    ] == []


def test_lock__holds_every_direct_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    names = {re.match(r"[A-Za-z0-9._-]+", w).group().lower() for w in wanted}
    locked = set(re.findall(r"^([a-z0-9._-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    assert names - locked == set()
    assert "albumentationsx" not in locked


def test_metric_names__are_unique():
    tree = ast.parse((ROOT / "platform" / "raydino" / "tracking" / "run.py").read_text())
    names = [
        node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    assert len(names) > 5
    assert len(names) == len(set(names))


def test_sources__no_pickle_and_no_unfinished_work():
    words = re.compile(r"^\s*(import pickle|from pickle)|\bTODO\b|\bFIXME\b|raise NotImplementedError", re.MULTILINE)
    assert [str(p.relative_to(ROOT)) for p in SOURCES if words.search(p.read_text())] == []


def test_readme__fits_on_200_lines():
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("no README.md in this tree")
    assert len(readme.read_text().splitlines()) <= 200


@pytest.mark.parametrize(
    "file", sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("[cd]*/*.md")), ids=lambda path: path.name
)
def test_pages__have_no_gaps_and_no_dead_links(file):
    text = file.read_text()
    assert not re.findall(r"@@\w+@@", text)
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert [link for link in links if not (file.parent / link).exists()] == []


def test_makefile__names_every_public_command():
    listed = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {line.split()[1] for line in listed.splitlines()} == {
        "setup", "demo", "test", "faults", "check", "bench", "ui", "dashboards", "help",
    }  # fmt: skip


def test_ci__runs_the_test_command():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert "make test" in script.read_text()


def _environment():
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT / "platform")}


def test_shapes__a_wrong_rank_is_caught_in_the_tests():
    # The proof that the option in pyproject.toml is at work: without it, signatures' shapes are decoration.
    import torch

    from raydino.nn.losses import koleo_loss

    with pytest.raises(Exception, match="koleo_loss") as error:
        koleo_loss(torch.zeros(3))
    assert "Float" in str(error.value)
