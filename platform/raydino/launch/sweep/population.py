"""Population-based training in segments (Jaderberg et al. 2017): train all, then the worst go on from copies of the best.

Ray Tune's own PBT copies Tune's checkpoints, of which our runs have none, and so changes nothing without a word. Here all members
pause at the same step with a checkpoint of their own. A member of the worst quarter gets the newest checkpoint of one of the best
quarter into its folder, and values beside that one's. Checkpoints hold weights and moments and no settings, so what is changed is
what the schedules give from that step on. A decision is written down before it is carried out, so that a driver that was killed
in between carries it out again.
"""

import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from raydino.config import ConfigError
from raydino.keyed import uniform
from raydino.launch.job import TRIALS
from raydino.launch.resume import Change, write
from raydino.launch.sweep.space import Space, apply, current, fields
from raydino.launch.trials.trial import Trial, TrialResult
from raydino.launch.workers.keep import FOLDER
from raydino.recipe import Recipe
from raydino.train.checkpoint import committed

STATE = "population.json"
"""File in the sweep's folder: the members, and every decision."""
WORST = 0.25  # of a population is replaced after a segment
FIXED = ("seed", "steps", "global_batch", "lanes", "data")
"""What cannot change in the middle of a run: the order of the images and the length follow from it."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Member:
    """One of the population."""

    name: str
    params: dict[str, Any]
    ancestors: tuple[str, ...] = ()
    """Whose checkpoints were put into its folder."""


@dataclass(frozen=True)
class Exploit:
    """A member that goes on from a copy of another."""

    segment: int
    """After which of them, from 0."""
    step: int
    loser: str
    winner: str
    worth: tuple[float, float]
    """What both had."""
    before: dict[str, Any]
    after: dict[str, Any]


def check_population(space: Space, recipe: Recipe) -> None:
    """Refuse dimensions that cannot change while a run goes on. Raises ConfigError with a line for each."""
    faults = []
    for key in space:
        for field in fields(key):
            if field.split(".")[0] in FIXED:
                faults.append(
                    f"space: {key}: {field} fixes order or length of a run; leave it out, or use scheduler asha."
                )
            elif not Change(field, current(recipe, field), None).fits:
                faults.append(
                    f"space: {key}: weights of another {field} do not fit; leave it out, or use scheduler asha."
                )
    if faults:
        raise ConfigError("\n".join(faults))


def evolve(
    first: Mapping[str, dict[str, Any]],
    *,
    recipe: Recipe,
    space: Space,
    segments: int,
    folder: Path,
    objective: str,
    run: Callable[[Sequence[Trial]], list[TrialResult]],
    vet: Callable[[Recipe], None],
) -> tuple[list[TrialResult], list[Exploit]]:
    """Train a population, given as parameters by name; returns the last results and every exploit.

    `run` trains trials up to their `until`, one result each; called again, it passes by what is trained already. An interruption
    ends the whole with the results until then. Raises ConfigError.
    """
    state = _State(folder, [Member(name, params) for name, params in first.items()])
    results: list[TrialResult] = []
    for segment in range(segments):
        until = math.ceil(recipe.steps * (segment + 1) / segments)
        if segment < state.done:
            continue
        results = run(_trials(state.members, recipe, until))
        last = segment == segments - 1
        if last or any(result.status == "interrupted" for result in results):
            break
        decided = decide(results, state.members, space, recipe, objective, segment=segment, step=until, vet=vet)
        state.decide(segment, decided)
    return results, state.exploits


def decide(
    results: Sequence[TrialResult],
    members: Sequence[Member],
    space: Space,
    recipe: Recipe,
    objective: str,
    *,
    segment: int,
    step: int,
    vet: Callable[[Recipe], None],
) -> list[Exploit]:
    """Who goes on from whose copy, with which values; draws are keyed by the recipe's seed, segment and member."""
    by_name = {member.name: member for member in members}
    worth = {
        result.trial.name: value
        for result in results
        if result.status != "failed" and (value := result.value(objective)) is not None and math.isfinite(value)
    }
    order = sorted(worth, key=lambda name: (-worth[name], name))
    count = max(1, round(WORST * len(members))) if len(order) > 1 else 0
    failed = [result.trial.name for result in results if result.trial.name not in worth]
    best = order[: max(1, round(WORST * len(members)))]
    losers = [name for name in order[len(order) - count :] if name not in best] + failed * bool(best)
    found = []
    for loser in losers:
        draws = uniform(1 + len(space), recipe.seed, "exploit", segment, loser)
        winner = best[int(draws[0] * len(best))]
        if loser in worth and worth[loser] >= worth[winner]:
            continue
        values = {key: by_name[winner].params.get(key, current(recipe, key)) for key in space}
        after = {
            key: space[key].near(value, up=u < 0.5) for (key, value), u in zip(values.items(), draws[1:], strict=True)
        }
        try:
            vet(apply(recipe, after))
        except ConfigError as error:
            log.warning("%s goes on with the values of %s: others are refused (%s)", loser, winner, error)
            after = values
        found.append(
            Exploit(
                segment, step, loser, winner, (worth.get(loser, -math.inf), worth[winner]), by_name[loser].params, after
            )
        )
    return found


def adopt(folder: Path, exploit: Exploit) -> None:
    """Put the winner's newest checkpoint into the loser's folder, as its newest. Doing it again changes nothing."""
    source = committed(folder / TRIALS / exploit.winner / FOLDER)[0]
    target = folder / TRIALS / exploit.loser / FOLDER
    target.mkdir(parents=True, exist_ok=True)
    beside = target / f".{source.name}.tmp"  # what a crash leaves of it is swept away at the next start
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(source, beside)
    for path in committed(target):
        shutil.rmtree(path)  # its own past: were the copy damaged, it must not go on from there with the other's values
    beside.rename(target / source.name)


class _State:
    """population.json."""

    def __init__(self, folder: Path, members: list[Member]) -> None:
        self._folder, self._path = folder, folder / STATE
        self.members, self.exploits, self.done = members, list[Exploit](), 0
        if not self._path.exists():
            return
        data = json.loads(self._path.read_text())
        self.members = [Member(**{**each, "ancestors": tuple(each["ancestors"])}) for each in data["members"]]
        self.exploits = [Exploit(**{**each, "worth": tuple(each["worth"])}) for each in data["exploits"]]
        self.done = data["done"]
        if data["pending"]:
            self._carry_out([each for each in self.exploits if each.segment == self.done])

    def decide(self, segment: int, exploits: list[Exploit]) -> None:
        """Write decisions down, carry them out, and go on to the next segment."""
        self.done, self.exploits = segment, [*self.exploits, *exploits]
        self._save(pending=True)
        self._carry_out(exploits)

    def _carry_out(self, exploits: list[Exploit]) -> None:
        changed = {exploit.loser: exploit for exploit in exploits}
        for exploit in exploits:
            adopt(self._folder, exploit)
        self.members = [
            replace(
                member, params=changed[member.name].after, ancestors=(*member.ancestors, changed[member.name].winner)
            )
            if member.name in changed
            else member
            for member in self.members
        ]
        self.done += 1
        self._save(pending=False)

    def _save(self, *, pending: bool) -> None:
        data = {
            "done": self.done,
            "pending": pending,
            "members": [asdict(each) for each in self.members],
            "exploits": [asdict(each) for each in self.exploits],
        }
        write(self._path, json.dumps(data, indent=1))


def _trials(members: Sequence[Member], recipe: Recipe, until: int) -> list[Trial]:
    return [
        Trial(member.name, apply(recipe, member.params), member.name, until, tuple(dict.fromkeys(member.ancestors)))
        for member in members
    ]
