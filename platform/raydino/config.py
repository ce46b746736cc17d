"""What every configuration in raydino is: a frozen pydantic model, checked when it is made, equal to its YAML.

A config never changes after construction; a change is a new object through `override`, which validates every level it
touches. The same function serves YAML files, command-line presets, sweeps and tests, so there is one way to change a field.
Considered instead: Hydra/OmegaConf (no Literal types, a second language), dataclasses (no validation).
"""

import difflib
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Self, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

MAX_YAML_BYTES = 1_000_000  # a recipe is a few kB; anything larger is a mistake
MAX_YAML_VALUES = (
    10_000  # a recipe has about 200; the parser takes 0.1 ms for each, so a megabyte of them would take minutes
)
MAX_YAML_DEPTH = 32  # a recipe has 4; the parser recurses, and Python's stack ends at 1,000

Length = Annotated[
    Annotated[int, Field(ge=0, strict=True)] | Annotated[float, Field(ge=0.0, le=1.0)],
    Field(union_mode="left_to_right"),
]
"""A stretch of training: an int counts steps, a float is a share of the run (`0.1` = the first tenth; `1` is one
step, `1.0` all)."""


def in_steps(length: int | float, steps: int) -> int:
    """Resolve a `Length` against a run of `steps` steps; a share is rounded to the nearest step."""
    return length if isinstance(length, int) else round(length * steps)


class ConfigError(ValueError):
    """A configuration that cannot be used. The message names the field, the value and the remedy."""


def in_file(error: ConfigError, file: object) -> ConfigError:
    """The same error with the file's name before each of its lines that lacks it."""
    lines = (line if line.startswith(str(file)) else f"{file}: {line}" for line in str(error).splitlines())
    return ConfigError("\n".join(lines))


class Config(BaseModel):
    """Base of all configs. The string under a field is its `--help` line."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_switch_for_a_number(cls, data: Any) -> Any:
        """`lr: true` is a mistake, and would be 1 to pydantic."""
        for name, value in data.items() if isinstance(data, Mapping) else ():
            field = cls.model_fields.get(name)
            if isinstance(value, bool) and field is not None and _is_number(field.annotation):
                raise ValueError(f"{name} = {str(value).lower()} is a switch; give a number")
        return data

    def dump(self) -> dict[str, Any]:
        """Plain data of all fields, those of subclasses included (`serialize_as_any`: without it a `DINOv2Config` held in a
        `MethodConfig` field would lose its own fields, and two different runs would share one fingerprint)."""
        return self.model_dump(mode="json", serialize_as_any=True)

    def override(self, changes: Mapping[str, Any]) -> Self:
        """A copy with fields replaced; keys may be dotted, values may be nested mappings: `{"method.prototypes": 8192}`.

        All changes of one level are applied before that level is validated, so fields that depend on each other can
        change together. Raises ConfigError naming the field, the value and the nearest known name.
        """
        return _apply(self, _nested(changes), prefix="")

    def to_yaml(self) -> str:
        """YAML that `from_yaml` reads back to an equal config."""
        return yaml.dump(self.dump(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)

    def from_yaml(self, text: str, *, origin: str = "YAML") -> Self:
        """This config with the fields of a YAML document replaced; a partial document is fine. Raises ConfigError."""
        return self.override(read_yaml(text, origin=origin))

    def fingerprint(self, *, exclude: frozenset[str] = frozenset()) -> str:
        """12 hex digits over the canonical JSON of all fields but the top-level ones in `exclude`."""
        data = {k: v for k, v in self.dump().items() if k not in exclude}
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]


def _is_number(annotation: Any) -> bool:
    """Whether an annotation is of numbers, or None, and nothing else."""
    if get_origin(annotation) is Annotated:
        return _is_number(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return all(part is NoneType or _is_number(part) for part in get_args(annotation))
    return annotation in (int, float)


def _nested(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as a tree: `{"a.b": 1, "a": {"c": 2}}` becomes `{"a": {"b": 1, "c": 2}}`."""
    tree: dict[str, Any] = {}
    for key, value in changes.items():
        head, _, rest = str(key).partition(".")
        part = _nested({rest: value}) if rest else value
        tree[head] = _merged(tree.get(head), part)
    return tree


def _merged(old: Any, new: Any) -> Any:
    """Two trees as one, `new` winning where both name a leaf."""
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return new
    return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}


def _apply(node: Any, tree: Mapping[str, Any], *, prefix: str) -> Any:
    """`node` with the fields in `tree` replaced; a sub-config keeps its class and only what `tree` names changes in it."""
    is_config = isinstance(node, Config)
    current = {name: getattr(node, name) for name in type(node).model_fields} if is_config else dict(node)
    for head, value in tree.items():
        if is_config and head not in current:
            raise ConfigError(_unknown(prefix + head, head, list(current)))
        held = current.get(head)
        if isinstance(value, Mapping) and isinstance(held, Config | dict):
            value = _apply(held, value, prefix=f"{prefix}{head}.")
        current[head] = value
    if not is_config:
        return current
    try:
        return type(node).model_validate(current)
    except ValidationError as error:
        raise ConfigError(explain(error, prefix=prefix)) from None


def _unknown(whole: str, wrong: str, known: list[str]) -> str:
    near = difflib.get_close_matches(wrong, known, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(sorted(known))}."
    return f"{whole}: there is no field '{wrong}'; {hint}"


def explain(error: ValidationError, *, prefix: str = "") -> str:
    """A pydantic error as one line per field: name, value, what was expected."""
    lines = []
    for item in error.errors():
        name = (prefix + ".".join(str(p) for p in item["loc"])).removesuffix(".")
        value = "" if isinstance(item.get("input"), (dict, BaseModel)) else f" = {item.get('input')!r}"
        message = item["msg"].removeprefix("Value error, ")
        lines.append(f"{name}{value}: {message}" if name else message)
    return "\n".join(lines)


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader without YAML 1.1's surprises: `on`, dates, `010` and `1:30` stay text, `1e-3` is a number, a key that stands
    twice is an error.
    """

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if not isinstance(key, str | int | float | None):
                raise ConfigError(f"line {line}: a key is a word, not a list or a mapping.")
            if key in seen:
                raise ConfigError(f"'{key}' stands twice (lines {seen[key]} and {line}); keep one.")
            seen[key] = line
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that puts into quotes what either loader would take for something else than text."""


_StrictLoader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|)$", ["~", "n", ""]),
    ("bool", r"^(?:true|false)$", ["t", "f"]),
    ("int", r"^[-+]?(?:0|[1-9][0-9_]*)$", list("-+0123456789")),
    ("float", r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$", list("-+.0123456789")),
):
    for _class in (_StrictLoader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


def _check_shape(text: str) -> None:
    """Refuse aliases and what would take long or deep, from the parser's events, before anything is built of them."""
    values = depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            raise ConfigError(f"aliases are not allowed (line {line}); write the value out.")
        values += isinstance(event, yaml.NodeEvent)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if values > MAX_YAML_VALUES or depth > MAX_YAML_DEPTH:
            raise ConfigError(
                f"line {line}: more than {MAX_YAML_VALUES:,} values or {MAX_YAML_DEPTH} levels; a configuration is smaller."
            )


def read_yaml(text: str, *, origin: str) -> dict[str, Any]:
    """Parse one YAML mapping strictly. Raises ConfigError that names `origin` (a file or a flag)."""
    if len(text) > MAX_YAML_BYTES:
        raise ConfigError(f"{origin}: more than {MAX_YAML_BYTES:,} bytes; a configuration is smaller.")
    text = text.removeprefix("\ufeff")
    try:
        _check_shape(text)
        data = yaml.load(text, Loader=_StrictLoader)  # noqa: S506 (a SafeLoader subclass)
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a tag on a value that it does not fit
        raise ConfigError(f"{origin}: not valid YAML: {error}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{origin}: expected a mapping of fields, found {type(data).__name__}.")
    return data


def read_yaml_file(path: Path) -> dict[str, Any]:
    """`read_yaml` of a file; a missing, binary or unreadable file is a ConfigError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_YAML_BYTES + 1)  # never all of what may be a device or a disk image
        return read_yaml(data.decode("utf-8"), origin=str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text ({error}); give an existing YAML file.") from None
