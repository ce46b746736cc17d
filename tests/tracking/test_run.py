"""The names of metrics."""

import re

from raydino.tracking import run


def names() -> list[str]:
    return [value for key, value in vars(run).items() if key.isupper() and isinstance(value, str) and "/" in value]


def test_metric_names__are_unique_and_have_a_group() -> None:
    assert len(names()) == len(set(names())) >= 20
    assert all(re.fullmatch(r"[a-z]+/[a-z0-9_]+", name) for name in names())


def test_evaluation_metric__joins_key_and_name() -> None:
    assert run.evaluation_metric("knn", "top1") == run.KNN_TOP1
