"""The command that repeats a run with changes: which script, which file, which flags. It is tried before it is printed."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raydino.config import ConfigError, read_yaml, read_yaml_file
from raydino.launch.cluster import ClusterConfig
from raydino.launch.report.record import Recorded
from raydino.launch.resume import RECIPE_FILE, flat
from raydino.launch.terminal.command import Leaf, leaves, parse
from raydino.recipe import NOT_IN_FINGERPRINT, Recipe

Groups = Mapping[str, Mapping[str, Recipe]]
"""Presets by the name of the script that has them."""
PLACE = "cluster."


def clone(run: Recorded, settings: Sequence[str], groups: Groups) -> tuple[str, list[str]]:
    """The command that repeats `run` with `settings` (KEY=VALUE in YAML), and what to know about it.

    Raises:
        ConfigError: a key is none of the recipe's or the cluster's, a value does not fit, or today's scripts cannot make this
            recipe.
    """
    changes = dict(_setting(each) for each in settings)
    path = run.folder / RECIPE_FILE
    script, preset, base = _base(path, groups)
    place = {key.removeprefix(PLACE): value for key, value in changes.items() if key.startswith(PLACE)}
    wanted = base.override({key: value for key, value in changes.items() if not key.startswith(PLACE)})
    ClusterConfig().override(place)
    words = [*(["--preset", preset] if preset else []), "--config", str(path)]
    words += [word for leaf in _changed(leaves(base, ""), leaves(wanted, "")) for word in _flag(leaf)]
    words += [
        word
        for leaf in _changed(leaves(ClusterConfig(), PLACE), leaves(ClusterConfig().override(place), PLACE))
        for word in _flag(leaf)
    ]
    got = parse(groups[script]["laptop"], groups[script], description="", argv=words)
    if got.recipe != wanted:
        wrong = next(
            key for key, value in flat(wanted.dump()).items() if flat(got.recipe.dump()).get(key, object()) != value
        )
        raise ConfigError(f"{wrong}: no flag can set it so; change it in a copy of {path}, and give that to --config.")
    return f"python recipes/{script}.py {shlex.join(words)}", _notes(run, base, wanted)


def _setting(words: str) -> tuple[str, Any]:
    key, equals, value = words.partition("=")
    key = key.strip().removeprefix("--").replace("-", "_")
    if not equals or not key:
        raise ConfigError(f"set = {words!r}: write KEY=VALUE, such as method.koleo_weight=0.2.")
    return key, read_yaml(f"value: {value}", origin=f"set = {words!r}")["value"]


def _base(path: Path, groups: Groups) -> tuple[str, str, Recipe]:
    """Script, preset ("" for none) and recipe from which a file makes a recipe that says the same as the file."""
    data, fault = read_yaml_file(path), ""
    asked = flat(data)
    best: tuple[int, str, str, Recipe] | None = None
    for script, presets in groups.items():
        for preset in ("laptop", *(name for name in presets if name != "laptop")):
            try:
                made = presets[preset].override(data)
            except ConfigError as error:
                fault = fault or str(error).splitlines()[0]
                continue
            # What the file has not is taken from the preset: the nearest is that which adds least, and the same method.
            added = len(flat(made.dump()).keys() - asked.keys())
            if best is None or added < best[0]:
                best = (added, script, "" if preset == "laptop" else preset, made)
            if not added:
                return best[1:]
    if best is None:
        raise ConfigError(f"{path}: no script of today can make this recipe ({fault}).")
    return best[1:]


def _changed(before: Any, after: Any) -> list[Leaf]:
    old = {leaf.path: leaf.value for leaf in before}
    missing = object()
    return [
        leaf
        for leaf in after
        if (type(leaf.value), leaf.value) != (type(old.get(leaf.path, missing)), old.get(leaf.path, missing))
    ]


def _flag(leaf: Leaf) -> list[str]:
    values = leaf.value if isinstance(leaf.value, tuple | list) else [leaf.value]
    return [leaf.flag, *map(str, values)]


def _notes(run: Recorded, base: Recipe, wanted: Recipe) -> list[str]:
    notes = []
    if added := sorted(
        flat(base.dump()).keys() - run.recipe.keys() - {key for key in run.recipe if key.startswith("evals.")}
    ):
        notes.append(f"the run is of another version of raydino: {', '.join(added[:5])} take the values of today")
    identity = wanted.fingerprint(exclude=NOT_IN_FINGERPRINT)
    notes.append(f"the run will be {wanted.name}-{identity}")
    if run.name == wanted.id:
        notes.append("that is the same run: give --set name=NAME for another copy of it")
    return notes
