import subprocess
import sys

import numpy as np
import pytest

from raydino.keyed import generator, key64


def test_key64__is_the_same_in_another_process():
    # Python's own hash() is salted per process; the order of a run must not be.
    code = "from raydino.keyed import key64; print(key64(3, 'crops', 7, b'id', 1))"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=_path())
    assert int(there.stdout) == key64(3, "crops", 7, b"id", 1)


def test_key64__parts_do_not_run_together():
    keys = [
        key64(0, "a", "bc"),
        key64(0, "ab", "c"),
        key64(0, "abc"),
        key64(0, 1, 23),
        key64(0, 12, 3),
        key64(0, "1", 23),
        key64(0, b"a", "bc"),
        key64(1, "a", "bc"),
    ]
    assert len(set(keys)) == len(keys)


def test_key64__fits_a_signed_64_bit_integer():
    keys = np.array([key64(0, i) for i in range(4096)])
    assert keys.min() >= 0
    # 63 bits: each of the upper bits is set in about half of the keys (binomial, 6 standard deviations)
    share = np.array([((keys >> bit) & 1).mean() for bit in range(63)])
    assert np.abs(share - 0.5).max() < 6 * 0.5 / 64


def test_generator__repeats_and_differs():
    assert generator(1, "x").random(4).tolist() == generator(1, "x").random(4).tolist()
    assert generator(1, "x").random(4).tolist() != generator(1, "y").random(4).tolist()


def test_generator__neighbouring_keys_are_uncorrelated():
    rows = np.stack([generator(0, "crops", i).random(256) for i in range(64)])
    correlation = np.corrcoef(rows) - np.eye(64)
    assert np.abs(correlation).max() < 6 / np.sqrt(256)


@pytest.mark.parametrize("value", [np.int64(5), 5.0])
def test_key64__other_types_are_other_keys(value):
    # A NumPy integer is not the Python integer of equal value: whoever makes keys converts first.
    assert key64(0, value) != key64(0, 5)


def _path():
    import os
    from pathlib import Path

    return {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1] / "platform")}
