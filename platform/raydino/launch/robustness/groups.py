"""Groups of runs to be compared: one way of training each, over seeds, and all else equal.

A difference between two groups is a difference of training only where images, budget, seeds and the network are the same, so
whatever differs there is refused. No torch here: typing errors answer at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raydino.config import ConfigError, read_yaml_file
from raydino.launch.resume import flat, read_run, steps_done
from raydino.launch.subjects import PIXELS

SAME = (
    *("steps", "global_batch", "data.split", "data.keep", "method.global_crops.size", "data.normalisation.mean"),
    *("data.normalisation.std", "init.digest"),
    *(f"backbone.{name}" for name in ("name", "channels", "patch_size", "width", "depth", "heads", "registers")),
)
"""Fields of the recipe that must be equal in all runs: images, budget, and what the features are features of."""


@dataclass(frozen=True)
class Member:
    """A run of a group."""

    group: str
    seed: int
    folder: Path
    fields: Mapping[str, Any]
    """Of its recipe, dotted."""
    images: str
    """Digest of the images it was trained on, or their folder where the run does not say."""


def read_groups(texts: Sequence[str]) -> dict[str, tuple[Member, ...]]:
    """Groups of "NAME=RUN,RUN,…" in their order, the runs of each by seed; the first is the baseline.

    Raises ConfigError where one is not written so, a run is not there or not at its end, or they differ in what must be equal.
    """
    groups: dict[str, tuple[Member, ...]] = {}
    for text in texts:
        name, equals, runs = text.partition("=")
        name, folders = name.strip(), [run.strip() for run in runs.split(",") if run.strip()]
        if not (equals and name and folders):
            raise ConfigError(f"group = {text!r}: write NAME=RUN,RUN with the folders of runs, one a seed.")
        if name in groups or name == PIXELS:
            raise ConfigError(f"group = {text!r}: the name {name!r} is taken; give another.")
        members = sorted((_member(name, Path(folder)) for folder in folders), key=lambda member: member.seed)
        seeds = [member.seed for member in members]
        if len(set(seeds)) < len(seeds):
            raise ConfigError(f"group = {name!r}: seed = {seeds}: two runs of one seed; give one run for each.")
        groups[name] = tuple(members)
    _refuse_differences(groups)
    return groups


def _member(group: str, folder: Path) -> Member:
    if not (folder / "recipe.yaml").is_file():
        raise ConfigError(f"group = {group!r}: {str(folder)!r} has no recipe.yaml; give the folder of a run.")
    fields = flat(read_yaml_file(folder / "recipe.yaml"))
    try:
        seed, steps, path = int(fields["seed"]), int(fields["steps"]), str(fields["data.path"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"group = {group!r}: recipe.yaml in {str(folder)!r} is of no run ({error}).") from error
    if (done := steps_done(folder)) < steps:
        raise ConfigError(f"group = {group!r}: {str(folder)!r} is at step {done} of {steps}; let it end, or resume it.")
    return Member(group, seed, folder, fields, images=str(read_run(folder).get("data_digest") or path))


def _refuse_differences(groups: Mapping[str, tuple[Member, ...]]) -> None:
    every = [member for members in groups.values() for member in members]
    if not every:
        raise ConfigError("group: none is given; give --group NAME=RUN,RUN, the baseline first.")
    first = every[0]
    for member in every[1:]:
        known = {"data": (first.images, member.images)}
        known |= {name: (first.fields.get(name), member.fields.get(name)) for name in SAME}
        for field, (expected, found) in known.items():
            if found != expected:
                raise ConfigError(
                    f"group = {member.group!r}: {field} = {found!r} in {str(member.folder)!r}, but {expected!r} in "
                    f"{str(first.folder)!r}; give runs that are equal in it."
                )
    seeds = {name: [member.seed for member in members] for name, members in groups.items()}
    for name, found in seeds.items():
        if found != seeds[first.group]:
            raise ConfigError(
                f"group = {name!r}: seed = {found}, but {seeds[first.group]} in {first.group!r}; give runs of the same seeds."
            )
