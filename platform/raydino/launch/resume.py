"""Which run a command means, and what it changes about it.

A recipe's fingerprint is in the name of its folder, so a changed recipe is another run. With `--resume auto` that is seldom
meant: somebody who adds `--steps 2000` expects the interrupted run to go on. So a run of that name is looked for, and what
differs is refused field by field, unless `--allow-change` names it. A change that is allowed stays in the run's history.
"""

import difflib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from raydino.config import ConfigError, read_yaml_file
from raydino.launch.summary import finished
from raydino.recipe import NOT_IN_FINGERPRINT, Recipe

RECIPE_FILE, RUN_FILE = "recipe.yaml", "run.json"
ABSENT = "(not there)"
"""Value of a field that one of two recipes has not: another method, or a version of raydino without it."""
DATA = "data.digest"
"""The images themselves, as a field: `--allow-change data` permits it with all others of `data`."""

log = logging.getLogger(__name__)

_EFFECTS = (  # the first that fits
    ("data.path", "the same images at another place: nothing changes"),
    ("init.weights", "the same weights at another place, or others: read before the first step alone"),
    ("init.digest", "other weights, read before the first step alone: training stays as it was"),
    ("method.teacher.weights", "the same teacher at another place: nothing changes"),
    ("data.max_bad", "training stays as it was"),
    ("evals", "training stays as it was; figures before and after are judged differently"),
    ("seed", "another order, other crops and masks: images of this epoch may come twice or not at all"),
    ("global_batch", "another order: images of this epoch may come twice or not at all"),
    ("lanes", "another order: images of this epoch may come twice or not at all"),
    ("data", "another order: images of this epoch may come twice or not at all"),
    ("steps", "the order stays; schedules follow the new length from here on, as in no run of one recipe"),
    ("", "the order stays; steps before and after are trained differently, as in no run of one recipe"),
)
_SHAPES = (
    "backbone",
    "method.head",
    "method.ibot_head",
    "method.global_crops.size",
    "method.classes",
    "method.teacher.head",
)
_NO_SHAPES = ("backbone.drop_path", "backbone.stochastic_depth", "backbone.token_std", "backbone.layer_scale")


@dataclass(frozen=True)
class Change:
    """A field that differs from what the run was trained with."""

    field: str
    was: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.field}: {self.was} → {self.now}"

    @property
    def effect(self) -> str:
        """What going on with the new value costs."""
        return next(effect for prefix, effect in _EFFECTS if not prefix or _under(self.field, (prefix,)))

    @property
    def fits(self) -> bool:
        """Whether the saved weights can have it."""
        return not _under(self.field, _SHAPES) or _under(self.field, _NO_SHAPES)


@dataclass(frozen=True)
class Meant:
    """The run of a command."""

    run_dir: Path
    changes: tuple[Change, ...] = ()
    """What the command changes about it, all of it allowed."""


def run_meant(recipe: Recipe, storage: Path, *, resume: bool, allow: tuple[str, ...] = ()) -> Meant:
    """The folder of a recipe's run in `storage`.

    Raises:
        ConfigError: with `resume`, an unfinished run of this name differs in a field that is not under one of `allow`.
    """
    _check_names(recipe, allow)
    exact = storage / recipe.id
    if not resume:
        return Meant(exact)
    found = _namesakes(recipe, storage)
    if exact.exists() and not found.get(exact):
        return Meant(exact)
    if same := [run_dir for run_dir, changes in found.items() if not changes]:  # one that was changed before
        return Meant(same[0])
    # A finished run is taken up again only if that was asked for by name: to train it longer, say.
    open_ones = {d: c for d, c in found.items() if finished(d) is None or all(_allowed(change, allow) for change in c)}
    if not open_ones:
        return Meant(exact)
    run_dir = min(open_ones, key=lambda d: (len(open_ones[d]), -(d / RECIPE_FILE).stat().st_mtime))
    _refuse(run_dir, recipe, open_ones[run_dir], allow)
    return Meant(run_dir, open_ones[run_dir])


def changes_since(run_dir: Path, recipe: Recipe) -> tuple[Change, ...]:
    """What differs between `recipe` and the one that a run was last trained with; name and cadence do not count."""
    was, now = flat(read_yaml_file(run_dir / RECIPE_FILE)), flat(recipe.dump())
    if not was:
        raise ConfigError(f"{run_dir / RECIPE_FILE}: it is empty")
    names = [name for name in {**was, **now} if name.split(".")[0] not in NOT_IN_FINGERPRINT]
    both = ((name, was.get(name, ABSENT), now.get(name, ABSENT)) for name in names)
    # As text, as in a fingerprint: 1 is one step, 1.0 the whole run.
    return tuple(Change(name, old, new) for name, old, new in both if json.dumps(old) != json.dumps(new))


def data_change(run_dir: Path, digest: str, *, allow: tuple[str, ...]) -> tuple[Change, ...]:
    """The change of the images since a run began, if any. Raises ConfigError if it is not allowed."""
    was = read_run(run_dir).get("data_digest")
    if was in (None, digest):
        return ()
    change = Change(DATA, f"{was[:16]}…", f"{digest[:16]}…")
    if not _allowed(change, allow):
        raise ConfigError(
            f"{run_dir}: its images have changed since it began ({change}): {change.effect}. Restore them, give another --name, "
            "or go on with --allow-change data."
        )
    return (change,)


def read_run(run_dir: Path) -> dict[str, Any]:
    """run.json of a run, {} without one. It is only what is known besides: a damaged one is no reason not to go on."""
    path = run_dir / RUN_FILE
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read (%s): the run gets a new record in MLflow", path, error)
        return {}


def history(known: Mapping[str, Any], changes: tuple[Change, ...], *, step: int) -> list[dict[str, Any]]:
    """The run's history with `changes` made after `step` steps."""
    before = list(known.get("history", []))
    if not changes:
        return before
    entry = {change.field: [change.was, change.now] for change in changes}
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    return [*before, {"step": step, "time": now, "changes": entry, "data_digest": known.get("data_digest")}]


def write(path: Path, text: str) -> None:
    """Write a file beside and rename it, so that a crash leaves the old one or the new one."""
    beside = path.with_name(f".{path.name}.tmp")
    beside.write_text(text)
    beside.replace(path)


def flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields as dotted keys."""
    found: dict[str, Any] = {}
    for key, value in data.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def steps_done(run_dir: Path) -> int:
    """Steps of a run's newest committed checkpoint; 0 without one."""
    found = (path.parent.name.rpartition("-")[2] for path in run_dir.glob("checkpoints/step-*/COMMIT"))
    return max((int(step) for step in found if step.isdigit()), default=0)


def _namesakes(recipe: Recipe, storage: Path) -> dict[Path, tuple[Change, ...]]:
    """What `recipe` changes about each run of its name; `a` does not mean `a-b`."""
    found = {}
    for path in sorted(storage.glob(f"{recipe.name}-*/{RECIPE_FILE}")):
        if path.parent.name.rpartition("-")[0] == recipe.name:
            try:
                found[path.parent] = changes_since(path.parent, recipe)
            except ConfigError as error:
                log.warning("%s: left out of the search for the run to resume", error)
    return found


def _refuse(run_dir: Path, recipe: Recipe, changes: tuple[Change, ...], allow: tuple[str, ...]) -> None:
    """Raise ConfigError unless every change is allowed and possible."""
    done = steps_done(run_dir)
    head = f"{run_dir} is a run of this name, {done:,} steps are saved; --resume auto would change it:"
    away = "leave --resume out for a new run beside it, or give another --name"
    if not all(change.fits for change in changes):
        lines = [
            f"  {change} ({change.effect if change.fits else 'the saved weights would not fit'})" for change in changes
        ]
        raise ConfigError("\n".join([head, *lines, f"This cannot be allowed; {away}."]))
    if left := [change for change in changes if not _allowed(change, allow)]:
        lines = [f"  {change} ({change.effect})" for change in left]
        names = ",".join(sorted({*allow, *(change.field for change in left)}))
        raise ConfigError(
            "\n".join([head, *lines, f"Take that back, or go on with --allow-change {names}; or {away}."])
        )
    if recipe.steps < done:
        raise ConfigError(f"steps = {recipe.steps}: {run_dir} has {done:,} steps behind it; give more.")


def _check_names(recipe: Recipe, allow: tuple[str, ...]) -> None:
    """A misspelt permission would be found out only after the refusal it was meant to prevent."""
    parts = [name.split(".") for name in [*flat(recipe.dump()), DATA]]
    known = {".".join(words[:length]) for words in parts for length in range(1, len(words) + 1)} | {"method.ibot_head"}
    for name in allow:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else "give fields as in recipe.yaml, dotted."
            raise ConfigError(f"--allow-change {name}: there is no such field; {hint}")


def _allowed(change: Change, allow: tuple[str, ...]) -> bool:
    return _under(change.field, allow)


def _under(field: str, prefixes: tuple[str, ...]) -> bool:
    return any(field == prefix or field.startswith(f"{prefix}.") for prefix in prefixes)
