"""What no default path may do, read from the sources: run code that came as data, or extract archives."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted([*(ROOT / "platform").rglob("*.py"), *(ROOT / "recipes").glob("*.py")])
CODE = {"eval", "exec", "compile", "__import__"}
MODULES = {"pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"}
CALLS = {  # last two words of a call that loads code, whatever stands before
    "hub.load", "hub.load_state_dict_from_url", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all",
    "os.system", "os.popen", "archive.extract", "archive.extractall", "tar.extractall", "zip.extractall",
}  # fmt: skip
ALLOWED = {
    ("config.py", "yaml.load"): "its loader is a SafeLoader",
    ("embed.py", "jit.load"): "only where --embed torchscript: asks for it; its help says that code is run",
}


def faults(tree: ast.AST) -> list[str]:
    """Calls and imports that would run what is only data."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in MODULES]
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            found.append(str(node.module))
        if isinstance(node, ast.Call):
            name, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            short = ".".join(name.split(".")[-2:])
            loads = name.endswith(("torch.load", "jit.load", "yaml.load")) and given.get("weights_only") != "True"
            unsafe = name in CODE or short in CALLS or loads or name.endswith((".extractall", ".extract_all"))
            if unsafe or given.get("shell") == "True" or given.get("allow_pickle") == "True":
                found.append(short)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_sources__run_nothing_that_came_as_data(path: Path) -> None:
    found = [name for name in faults(ast.parse(path.read_text())) if (path.name, name) not in ALLOWED]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from cloudpickle import loads", "torch.load(path)", "torch.load(path, weights_only=False)",
        "torch.hub.load('a/b', 'c')", "eval(text)", "exec(text)", "yaml.load(text)", "yaml.unsafe_load(text)",
        "np.load(path, allow_pickle=True)", "subprocess.run(text, shell=True)", "os.system(text)", "archive.extractall(folder)",
        "torch.jit.load(path)",
    ],
)  # fmt: skip
def test_faults__finds_each_kind(line: str) -> None:
    assert faults(ast.parse(line))


@pytest.mark.parametrize(
    "line", ["torch.load(path, weights_only=True)", "yaml.safe_load(text)", "np.load(p, allow_pickle=False)"]
)
def test_faults__lets_the_safe_way_through(line: str) -> None:
    assert not faults(ast.parse(line))


def test_allowed__is_no_longer_than_needed() -> None:
    there = {(path.name, name) for path in SOURCES for name in faults(ast.parse(path.read_text()))}
    assert set(ALLOWED) <= there


def test_tests__reach_no_other_machine() -> None:
    import socket

    with pytest.raises(AssertionError, match="no test may reach"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)  # an address for documentation: nobody has it


def test_make_ui__serves_this_machine_alone() -> None:
    recipe = (ROOT / "Makefile").read_text().partition("\nui:")[2]
    assert all(
        flag in recipe
        for flag in ("--host 127.0.0.1", "--allowed-hosts", "--cors-allowed-origins", "--x-frame-options DENY")
    )
    assert "0.0.0.0" not in recipe and "*" not in recipe and "disable-security" not in recipe
