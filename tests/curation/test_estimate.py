from raydino.curation.estimate import Estimate


def test_estimate__small_and_large_sets_are_told_in_units_that_say_something():
    small = str(Estimate(images=1_500, bytes=25_000_000, ingest=9.6, compare=0.002))
    rows = [line.split(maxsplit=1)[1].split()[-2:] for line in small.splitlines()[1:]]
    assert rows == [["25", "MB"], ["3", "MB"], ["10", "core-seconds"], ["1", "core-seconds"], ["4", "MB"]]
    large = str(Estimate(images=10_000_000, bytes=1_200_000_000_000, ingest=72_000.0, compare=0.0))
    for words in ("10,000,000", "1,200.0 GB", "18.0 GB", "20.0 core-hours", "by cells", "29.0 GB"):
        assert words in large, words
