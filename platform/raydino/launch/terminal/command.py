"""The command line of a recipe, made from its configs: a field is a flag, its docstring is the help.

Nothing is written by hand per field, so flags cannot drift from the configs. tyro parses a value by its field's type;
the values that differ from what is there go through `Config.override`, the same door as YAML files and sweeps, so an error
reads the same wherever it was made. Fields are flattened to one level first, because tyro would turn `HeadConfig | None`
into sub-commands. Order: preset, then `--config`, then flags. Importing this file loads no torch, Ray or MLflow.
"""

import contextlib
import dataclasses
import os
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

import tyro

from raydino.config import Config, ConfigError, in_file, read_yaml_file
from raydino.launch.cluster import ClusterConfig
from raydino.recipe import Recipe
from raydino.tracking.redact import redact_text

AnyConfig = TypeVar("AnyConfig", bound=Config)

SHORT = {
    "data.path": "--data",
    "method.head.prototypes": "--method.prototypes",
    "init.weights": "--from",
    "method.teacher.weights": "--teacher",
}
"""Short spellings of the flags that are typed most."""
SWITCHES = frozenset({"dry_run", "profile"})
"""Flags that take no value."""


@dataclasses.dataclass(frozen=True)
class Command:
    """What a command line asks for."""

    recipe: Recipe
    cluster: ClusterConfig
    resume: Literal["no", "auto"]
    """Whether to go on from the newest checkpoint of the same run, if there is one."""
    dry_run: bool
    """Whether to print the plan and stop."""
    profile: bool = False
    """Whether to profile some steps and leave a trace and a summary in the run's folder."""
    allow_change: tuple[str, ...] = ()
    """Fields of the recipe, dotted, that may differ from those of the run that is resumed; a name permits all below it."""
    more: Config | None = None
    """Settings of a command that has its own besides."""


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One field at the end of a dotted path."""

    path: str
    type: Any
    value: Any
    help: str

    @property
    def flag(self) -> str:
        """The flag as it is typed."""
        return SHORT.get(self.path, "--" + self.path.replace("_", "-"))


def parse(
    recipe: Recipe,
    presets: Mapping[str, Recipe],
    *,
    description: str,
    argv: Sequence[str] | None = None,
    more: Config | None = None,
) -> Command:
    """Read a command line. `recipe` holds without `--preset`; `argv` None takes the process's own; the fields of `more` are
    flags as well.

    `--help` and `--version` print and leave with SystemExit(0); anything that cannot be understood leaves with
    SystemExit(2) after one line per fault on stderr.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    program = Path(sys.argv[0]).name or "raydino"
    wants_help = any(word in ("-h", "--help") for word in words)
    if "--version" in words:
        say(f"raydino {version()}")
        raise SystemExit(0)
    try:
        sources = _ask(
            _sources(presets), [w for w in words if w not in ("-h", "--help")], program=program, partial=True
        )
        if (preset := sources["preset"]) is not None:
            if preset not in presets:
                raise ConfigError(f"preset = {preset!r}: there is no such preset; give one of {', '.join(presets)}")
            recipe = presets[preset]
        cluster = ClusterConfig()
        if sources["config"]:
            recipe = _from_file(recipe, sources["config"])
        if sources["cluster"]:
            cluster = _from_file(cluster, sources["cluster"])
        own = {} if more is None else {"settings": list(leaves(more, ""))}
        groups = {**own, "recipe": list(leaves(recipe, "")), "cluster": list(leaves(cluster, "cluster."))}
        if wants_help:
            say(_help(program, description, presets, groups))
            raise SystemExit(0)
        both = [leaf for group in groups.values() for leaf in group]
        given = _ask([*_sources(presets), *both], words, program=program, partial=False)
        return Command(
            recipe=recipe.override(_changes(groups["recipe"], given, "")),
            cluster=cluster.override(_changes(groups["cluster"], given, "cluster.")),
            resume=given["resume"],
            dry_run=given["dry_run"],
            profile=given["profile"],
            allow_change=_allowed(given["allow_change"], resume=given["resume"]),
            more=None if more is None else more.override(_changes(groups["settings"], given, "")),
        )
    except ConfigError as error:
        fail(str(error))


def _allowed(words: str | None, *, resume: str) -> tuple[str, ...]:
    if words and resume == "no":
        raise ConfigError(f"--allow-change {words}: only --resume auto takes up a run that could be changed; add it.")
    return tuple(name.strip().replace("-", "_") for name in (words or "").split(",") if name.strip())


def leaves(config: Config, prefix: str) -> Iterator[Leaf]:
    """All fields that a flag can set, depth first; a `None` that could be a config offers that config's fields."""
    for name, field in type(config).model_fields.items():
        value, path = getattr(config, name), prefix + name
        if isinstance(value, Config):
            yield from leaves(value, f"{path}.")
        elif isinstance(value, dict):
            for key, item in value.items():
                if isinstance(item, Config):
                    yield from leaves(item, f"{path}.{key}.")
        elif value is None and (kind := _config_in(field.annotation)) is not None:
            yield from (_optional(leaf, path) for leaf in leaves(kind(), f"{path}."))
        else:
            # The annotation without pydantic's constraints: those are checked by `override`.
            yield Leaf(path, field.annotation, value, field.description or "")


def say(text: str) -> None:
    """Print to stdout, secrets hidden; when the reader has gone (`| head`), leave quietly."""
    try:
        print(redact_text(text), flush=True)
    except BrokenPipeError:
        # The interpreter flushes stdout once more at exit, and would complain about the same pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None


def fail(message: str) -> NoReturn:
    """Print an error, one line per fault and secrets hidden, to stderr and leave with exit code 2."""
    with contextlib.suppress(BrokenPipeError):
        for line in redact_text(message).splitlines():
            print(f"error: {line}", file=sys.stderr)
    raise SystemExit(2)


def version() -> str:
    """Version of the installed package; a source tree that is only on the path has none."""
    try:
        return metadata.version("raydino")
    except metadata.PackageNotFoundError:
        return "(source tree, not installed)"


def _sources(presets: Mapping[str, Recipe]) -> list[Leaf]:
    """The flags that are no field: where the fields come from, and what to do."""
    return [
        *([Leaf("preset", str | None, None, f"Recipe to start from: {', '.join(presets)}.")] if presets else []),
        Leaf("config", str | None, None, "YAML with fields of the recipe, on top of the preset."),
        Leaf("cluster", str | None, None, "YAML with fields of the cluster (see clusters/)."),
        Leaf(
            "resume",
            Literal["no", "auto"],
            "no",
            "auto: go on from the newest checkpoint of this run, if there is one.",
        ),
        Leaf(
            "allow_change",
            str | None,
            None,
            "FIELD[,FIELD]: with --resume auto, go on although these fields, or the images (`data`), have changed.",
        ),
        Leaf("dry_run", bool, value=False, help="Print the plan and stop."),
        Leaf("profile", bool, value=False, help="Profile some steps: where their time goes, and what to change first."),
    ]


def _ask(flags: Sequence[Leaf], words: Sequence[str], *, program: str, partial: bool) -> dict[str, Any]:
    """Let tyro parse `words` into values by path; `partial` leaves unknown words for later."""
    fields = []
    for index, leaf in enumerate(flags):
        full = leaf.path.replace("_", "-")
        aliases = [leaf.flag] if leaf.path in SHORT else None
        argument = tyro.conf.arg(name=full, aliases=aliases, help=leaf.help)
        markers = (tyro.conf.FlagCreatePairsOff,) if leaf.path in SWITCHES else (tyro.conf.FlagConversionOff,)
        default = dataclasses.field(default=leaf.value)
        fields.append((f"flag_{index}", Annotated[(leaf.type, argument, *markers)], default))
    table = dataclasses.make_dataclass("Flags", fields, frozen=True)
    if partial:
        result, _ = tyro.cli(table, args=words, prog=program, return_unknown_args=True, add_help=False)
    else:
        result = tyro.cli(table, args=words, prog=program)
    values = {leaf.path: getattr(result, f"flag_{index}") for index, leaf in enumerate(flags)}
    return {"preset": None, **values}


def _changes(group: Sequence[Leaf], given: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """What the flags change. Types count: a length of 1 is one step, of 1.0 the whole run."""
    changed = [leaf for leaf in group if (type(given[leaf.path]), given[leaf.path]) != (type(leaf.value), leaf.value)]
    return {leaf.path.removeprefix(prefix): given[leaf.path] for leaf in changed}


def _from_file(config: AnyConfig, file: str) -> AnyConfig:
    try:
        return config.override(read_yaml_file(Path(file)))
    except ConfigError as error:
        raise in_file(error, file) from None


def _config_in(annotation: Any) -> type[Config] | None:
    """C of an annotation `C | None` where C is a config."""
    if get_origin(annotation) not in (Union, types.UnionType):
        return None
    return next((a for a in get_args(annotation) if isinstance(a, type) and issubclass(a, Config)), None)


def _optional(leaf: Leaf, owner: str) -> Leaf:
    return Leaf(leaf.path, leaf.type | None, None, f"{leaf.help} {owner} is None until one of its fields is set.")


def _help(program: str, description: str, presets: Mapping[str, Recipe], groups: Mapping[str, Sequence[Leaf]]) -> str:
    """One line per field under a heading per config."""
    lines = [f"usage: {program} [OPTIONS]", "", description.strip(), "", "command"]
    lines += ["  -h, --help  Show this and leave.", "  --version  Print the version and leave."]
    lines += [_help_line(leaf) for leaf in _sources(presets)]
    for name, group in groups.items():
        by_owner: dict[str, list[Leaf]] = {}
        for leaf in group:
            by_owner.setdefault(leaf.path.rpartition(".")[0] or name, []).append(leaf)
        for owner, members in by_owner.items():
            lines += ["", owner, *(_help_line(leaf) for leaf in members)]
    return "\n".join(lines)


def _help_line(leaf: Leaf) -> str:
    both = f"{leaf.flag}, --{leaf.path}" if leaf.path in SHORT else leaf.flag
    if leaf.path in SWITCHES:
        return f"  {both}  {leaf.help}"
    value = " ".join(str(v) for v in leaf.value) if isinstance(leaf.value, tuple) else leaf.value
    default = "" if value is None else f" = {value}"
    return f"  {both} {_metavar(leaf.type)}{default}  {' '.join(leaf.help.split())}"


def _metavar(kind: Any) -> str:
    """A type in a few letters: INT, INT|FLOAT, {a,b}, FLOAT FLOAT, FLOAT... (None, where allowed, is typed None)."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _metavar(parts[0])
    if origin is Literal:
        return "{" + ",".join(str(p) for p in parts) + "}"
    if origin is tuple:
        return _metavar(parts[0]) + "..." if parts[1:] == (...,) else " ".join(_metavar(p) for p in parts)
    if origin in (Union, types.UnionType):
        return "|".join(_metavar(p) for p in parts if p is not type(None))
    return "{True,False}" if kind is bool else kind.__name__.upper()
