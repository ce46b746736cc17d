"""Verify: whether a curated folder still is what its manifest says, byte for byte."""

from collections.abc import Callable

import pyarrow as pa

from raydino.curation.features import STAMP, features_path, features_stamp
from raydino.shards.manifest import load
from raydino.shards.reader import Collection
from raydino.shards.schema import Folder, ShardError, content_id


def verify(out: str, *, done: Callable[[int, int], None] = lambda _done, _total: None) -> list[str]:
    """Read everything and hash every image again; a sentence for each fault, none for a sound folder.

    Checked: each shard's footer against the manifest, its pages against their checksums, each image against its id, the features
    against the shards, each keep-mask against the manifest. Raises ShardError if there is no manifest.
    """
    folder = Folder(out)
    manifest, faults, seen = load(folder), [], 0
    for split in manifest.splits:
        collection = Collection(folder, manifest.of_split(split))
        ids: list[bytes] = []
        for group in range(len(collection.row_groups)):
            try:
                read = collection.read(group)
            except ShardError as error:
                faults.append(str(error))
                ids += [b""] * collection.row_groups[group]
            else:
                ids += read["id"].to_pylist()
                for identity, data, path in zip(
                    *(read[name].to_pylist() for name in ("id", "bytes", "path")), strict=True
                ):
                    if content_id(data) != identity:
                        faults.append(f"{folder}, split {split}: {path} is not the image of its id {identity.hex()}.")
            seen += collection.row_groups[group]
            done(seen, manifest.rows)
        faults += _features(folder, collection, split, ids)
        try:
            collection.keep()
        except ShardError as error:
            faults.append(str(error))
    return faults


def _features(folder: Folder, collection: Collection, split: str, ids: list[bytes]) -> list[str]:
    path = features_path(split)
    if not any(entry.path == path for entry in folder.files()):
        return []  # of an earlier version, and made when they are needed
    try:
        table = folder.read_table(path, columns=["id"])
    except (OSError, pa.ArrowException) as error:
        return [f"{folder}/{path}: cannot be read ({error}); remove it, and it is made again."]
    stamp = (table.schema.metadata or {}).get(STAMP, b"").decode()
    if stamp == features_stamp(collection.manifest) and table["id"].to_pylist() != ids:
        return [f"{folder}/{path}: its rows are not those of the shards; remove it, and it is made again."]
    return []
