"""Randomness by key: every draw in raydino is a pure function of a seed and a name, never of what was drawn before.

That is what makes a run repeatable from any step, on any number of workers, with no generator state in the checkpoint.
Keys in use: crops (seed, epoch, sample id, view), masks (seed, step, lane), order (seed, epoch), stochastic depth
(seed, step, rank).
"""

import hashlib

import numpy as np


def key64(seed: int, *key: int | str | bytes) -> int:
    """A 63-bit integer that is the same everywhere for equal arguments and unrelated for different ones."""
    digest = hashlib.blake2b(str(seed).encode(), digest_size=8)
    for part in key:
        raw = part if isinstance(part, bytes) else str(part).encode()
        digest.update(len(raw).to_bytes(4, "little") + type(part).__name__.encode() + raw)
    return int.from_bytes(digest.digest(), "little") >> 1


def generator(seed: int, *key: int | str | bytes) -> np.random.Generator:
    """A NumPy generator (Philox, counter-based) of its own for `key`."""
    return np.random.Generator(np.random.Philox(key=key64(seed, *key)))
