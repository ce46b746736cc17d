"""Randomness by key: every draw in raydino is a pure function of a seed and a name, never of what was drawn before.

That is what makes a run repeatable from any step, on any number of workers, with no generator state in the checkpoint.
Keys in use: crops (seed, epoch, sample id, group), masks (seed, step, lane), order (seed, epoch), stochastic depth
(seed, step, rank), corruptions (seed, kind, level, image id).
"""

import hashlib

import numpy as np


def key64(seed: int, *key: int | str | bytes) -> int:
    """A 63-bit integer that is the same everywhere for equal arguments and unrelated for different ones."""
    digest = hashlib.blake2b(str(seed).encode(), digest_size=8)
    digest.update(_spelled(key))
    return int.from_bytes(digest.digest(), "little") >> 1


def _spelled(key: tuple[int | str | bytes, ...]) -> bytes:
    """The parts with their lengths and types, so that no two keys are spelled alike."""
    raws = [part if isinstance(part, bytes) else str(part).encode() for part in key]
    return b"".join(
        len(raw).to_bytes(4, "little") + type(part).__name__.encode() + raw for part, raw in zip(key, raws, strict=True)
    )


def generator(seed: int, *key: int | str | bytes) -> np.random.Generator:
    """A NumPy generator (Philox, counter-based) of its own for `key`."""
    return np.random.Generator(np.random.Philox(key=key64(seed, *key)))


def uniform(count: int, seed: int, *key: int | str | bytes) -> list[float]:
    """`count` numbers of [0, 1) for `key`, of 53 bits each: SHAKE-128 over seed and key, so the first ones are the same
    for every `count`."""
    stream = hashlib.shake_128(str(seed).encode() + _spelled(key)).digest(8 * count)
    return ((np.frombuffer(stream, dtype="<u8") >> 11) * 2.0**-53).tolist()
