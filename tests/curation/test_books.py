"""Columns of ids as arrays, however Arrow holds them."""

import numpy as np
import pyarrow as pa

from raydino.curation.books import id_array


def test_id_array__equals_the_values_of_any_chunks():
    rng = np.random.default_rng(0)
    values = [rng.bytes(16) if number % 5 else None for number in range(40)]
    whole = pa.array(values, pa.binary(16))
    for column in (
        pa.chunked_array([whole]),
        pa.chunked_array([whole.slice(3, 20), whole.slice(7, 0), whole.slice(30)]),
        pa.chunked_array([pa.array([v or b"\1" * 16 for v in values], pa.binary(16)).slice(11, 9)]),
        pa.chunked_array([], pa.binary(16)),
    ):
        assert [one.tobytes() for one in id_array(column)] == [one or bytes(16) for one in column.to_pylist()]
