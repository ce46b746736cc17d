"""Difference: what two curated folders decide otherwise, image by image, and which settings differ.

Images are the same where their ids, hashes of content, are, whatever the folders, shards and paths. Only ids, decisions and
labels are read.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydino.curation.books import id_array, paths_of, row_groups, tables
from raydino.curation.ledger import DECISIONS
from raydino.shards.keep import mask_path
from raydino.shards.manifest import Manifest, load
from raydino.shards.schema import Folder, ShardError

KEPT = "kept"
EXAMPLES = 3  # images named for each change
IDS = 1000  # ids of each change in the JSON form, unless more are asked for
ABSENT = "absent"

Ids = NDArray[np.void]
"""[N] of 16 bytes, ascending."""
Moves = dict[tuple[str, str], Ids]
"""Images by what they are in the first folder and in the second."""


@dataclass(frozen=True)
class Side:
    """One of the two folders."""

    folder: str
    digest: str
    images: int
    """Distinct ids that were ever decided on."""
    kept: int


@dataclass(frozen=True)
class Difference:
    """What differs from the first folder, `a`, to the second, `b`. All are ids; `kept` or the reason to leave an image out."""

    a: Side
    b: Side
    only_a: dict[str, Ids]
    """Images that `b` never saw, by what `a` decided."""
    only_b: dict[str, Ids]
    decisions: Moves
    """Images of both that they decide otherwise."""
    labels: Moves
    """Images in the shards of both, by class in either, where it differs."""
    splits: Moves
    """The same by split."""
    settings: dict[str, dict[str, tuple[Any, Any]]]
    """By stage and name of a parameter, seed or version: both values, `absent` where there is none."""
    paths: dict[str, str]
    """Paths of some ids, in hexadecimal."""

    def as_dict(self, *, ids: int = IDS) -> dict[str, Any]:
        """Fit for JSON: counts, and the first `ids` ids of each change in hexadecimal."""

        def listed(found: Ids) -> dict[str, Any]:
            return {"images": len(found), "ids": [one.tobytes().hex() for one in found[:ids]]}

        def moved(moves: Moves) -> list[dict[str, Any]]:
            return [{"a": a, "b": b, **listed(found)} for (a, b), found in moves.items()]

        return {
            "a": vars(self.a),
            "b": vars(self.b),
            "only_a": {state: listed(found) for state, found in self.only_a.items()},
            "only_b": {state: listed(found) for state, found in self.only_b.items()},
            "decisions": moved(self.decisions),
            "labels": moved(self.labels),
            "splits": moved(self.splits),
            "settings": {
                stage: {name: list(pair) for name, pair in each.items()} for stage, each in self.settings.items()
            },
        }

    def __str__(self) -> str:
        lines = [
            f"{name}  {side.folder}: {side.images:,} images, {side.kept:,} kept, digest {side.digest[:16]}"
            for name, side in (("a", self.a), ("b", self.b))
        ]
        for stage, each in self.settings.items():
            lines += [f"{stage}"] + [f"  {name}: {one} → {other}" for name, (one, other) in each.items()]
        parts = [
            ("only in a", {(state,): found for state, found in self.only_a.items()}),
            ("only in b", {(state,): found for state, found in self.only_b.items()}),
            ("decided otherwise", self.decisions),
            ("another label", self.labels),
            ("another split", self.splits),
        ]
        for title, moves in parts:
            if moves:
                lines.append(f"{title}: {sum(len(found) for found in moves.values()):,} images")
                lines += [
                    f"  {' → '.join(names):<32} {len(found):>10,}  {self._some(found)}"
                    for names, found in moves.items()
                ]
        return "\n".join(lines if len(lines) > 2 else [*lines, "no difference"])

    def _some(self, found: Ids) -> str:
        shown = [one.tobytes().hex() for one in found[:EXAMPLES]]
        words = ", ".join(f"{one[:12]} {self.paths.get(one, '')}".strip() for one in shown)
        return f"{words}, …" if len(found) > EXAMPLES else words


@dataclass(frozen=True)
class _Words:
    """A word for each image, as columns. Words are numbers of a list that both folders share, 0 is `kept`."""

    ids: Ids
    state: NDArray[np.int32]


def diff(folder_a: str, folder_b: str) -> Difference:
    """Compare two curated folders.

    Raises:
        ConfigError: a folder is not curated.
        ShardError: a table or manifest cannot be read.
    """
    a, b = Folder(folder_a), Folder(folder_b)
    for place in (a, b):
        tables(place)  # says what is wrong with a folder that was never curated
    first, second = load(a), load(b)
    words: dict[str, int] = {KEPT: 0}
    one, other = _decided(a, first, words), _decided(b, second, words)
    only_a = ~np.isin(one.ids, other.ids, assume_unique=True)
    only_b = ~np.isin(other.ids, one.ids, assume_unique=True)
    names = list(words)
    seen_a = _moves(one.ids[only_a], one.state[only_a], one.state[only_a], names)
    seen_b = _moves(other.ids[only_b], other.state[only_b], other.state[only_b], names)
    decisions = _compared(one, other, names)
    stored_a, stored_b = _stored(a, first, words), _stored(b, second, words)
    labels, splits = (_compared(x, y, list(words)) for x, y in zip(stored_a, stored_b, strict=True))
    every = [ids for moves in (seen_a, seen_b, decisions, labels, splits) for ids in moves.values()]
    some = {identity.tobytes().hex() for ids in every for identity in ids[:EXAMPLES]}
    return Difference(
        a=Side(str(a), first.digest, len(one.ids), int((one.state == 0).sum())),
        b=Side(str(b), second.digest, len(other.ids), int((other.state == 0).sum())),
        only_a={state: ids for (state, _), ids in seen_a.items()},
        only_b={state: ids for (state, _), ids in seen_b.items()},
        decisions=decisions,
        labels=labels,
        splits=splits,
        settings=_settings(first, second),
        paths=paths_of(b, some) | paths_of(a, some),
    )


def _decided(place: Folder, manifest: Manifest, words: dict[str, int]) -> _Words:
    """The last word on every id: kept if any of its files is, unless the keep-mask of its split leaves it out."""
    ids, state = _columns(row_groups(place, DECISIONS, ["id", "kept", "reason"]), "kept", words)
    kept_first = np.argsort(state != 0, kind="stable")
    ids, rows = np.unique(ids[kept_first], return_index=True)
    state = state[kept_first][rows]
    for split in manifest.keep:
        masked, reason = _columns(row_groups(place, mask_path(split), ["id", "keep", "reason"]), "keep", words)
        masked, reason = masked[reason != 0], reason[reason != 0]
        if strange := int((~np.isin(masked, ids)).sum()):
            raise ShardError(
                f"{place}/{mask_path(split)}: {strange:,} images are not in {DECISIONS}; screen the folder again."
            )
        state[np.searchsorted(ids, masked)] = reason
    return _Words(ids, state)


def _columns(parts: Iterator[pa.Table], kept: str, words: dict[str, int]) -> tuple[Ids, NDArray[np.int32]]:
    ids, state = [np.empty(0, "V16")], [np.empty(0, np.int32)]
    for part in parts:
        ids.append(id_array(part["id"]))
        state.append(np.where(part[kept].to_numpy(), 0, _codes(part["reason"], words)).astype(np.int32))
    return np.concatenate(ids), np.concatenate(state)


def _codes(column: pa.ChunkedArray, words: dict[str, int]) -> NDArray[np.int32]:
    """Each cell's number in `words`, which grows; an empty cell reads `no reason`."""
    encoded = column.fill_null("no reason").combine_chunks().dictionary_encode()
    numbers = [words.setdefault(word, len(words)) for word in encoded.dictionary.to_pylist()]
    return np.array(numbers, np.int32)[encoded.indices.to_numpy()] if len(numbers) else np.empty(0, np.int32)


def _stored(place: Folder, manifest: Manifest, words: dict[str, int]) -> tuple[_Words, _Words]:
    """Class and split of the images in the shards, by ascending id."""
    ids, labels, splits = [np.empty(0, "V16")], [np.empty(0, np.int32)], [np.empty(0, np.int32)]
    for file in manifest.files:
        split = words.setdefault(file.split, len(words))
        for part in row_groups(place, file.path, ["id", "label"]):
            values, inverse = np.unique(part["label"].fill_null(-1).to_numpy(), return_inverse=True)
            names = [_class(manifest.classes, int(value)) for value in values]
            ids.append(id_array(part["id"]))
            labels.append(np.array([words.setdefault(name, len(words)) for name in names], np.int32)[inverse])
            splits.append(np.full(len(part), split, np.int32))
    order = np.argsort(every := np.concatenate(ids))
    return _Words(every[order], np.concatenate(labels)[order]), _Words(every[order], np.concatenate(splits)[order])


def _class(classes: Sequence[str], label: int) -> str:
    if label < 0:
        return "no label"
    return classes[label] if label < len(classes) else f"label {label}"


def _compared(a: _Words, b: _Words, names: list[str]) -> Moves:
    """Ids of both whose words differ."""
    ids, in_a, in_b = np.intersect1d(a.ids, b.ids, assume_unique=True, return_indices=True)
    one, other = a.state[in_a], b.state[in_b]
    differ = one != other
    return _moves(ids[differ], one[differ], other[differ], names)


def _moves(ids: Ids, one: NDArray[np.int32], other: NDArray[np.int32], names: list[str]) -> Moves:
    """Ids by their words, most first."""
    kinds, inverse = np.unique(np.stack([one, other], axis=1), axis=0, return_inverse=True)
    found = {(names[a], names[b]): ids[inverse == number] for number, (a, b) in enumerate(kinds.tolist())}
    return dict(sorted(found.items(), key=lambda item: (-len(item[1]), item[0])))


def _settings(a: Manifest, b: Manifest) -> dict[str, dict[str, tuple[Any, Any]]]:
    one, other = _by_stage(a), _by_stage(b)
    found: dict[str, dict[str, tuple[Any, Any]]] = {}
    for stage in dict.fromkeys([*one, *other]):
        x, y = one.get(stage, {}), other.get(stage, {})
        pairs = {name: (x.get(name, ABSENT), y.get(name, ABSENT)) for name in dict.fromkeys([*x, *y])}
        if changed := {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}:
            found[stage] = changed
    return found


def _by_stage(manifest: Manifest) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for stage in manifest.stages:
        name, times = stage.name, 2
        while name in found:
            name, times = f"{stage.name} {times}", times + 1
        versions = {f"version of {tool}": version for tool, version in stage.versions.items()}
        found[name] = {**stage.parameters, "seed": stage.seed, **versions}
    return found
