"""One stream after the other: each begins when it is its turn, and only what runs is closed."""

from collections.abc import Iterator

from raydino.data.phases import Phases


class Stream(Iterator):
    def __init__(self, steps: range, log: list[str]) -> None:
        self.left, self.starved, self.log, self.name = list(steps), 0.0, log, str(steps.start)
        log.append(f"begin {self.name}")

    def __next__(self) -> int:
        if not self.left:
            self.log.append(f"end {self.name}")
            raise StopIteration
        self.starved += 1.0
        return self.left.pop(0)

    def close(self) -> None:
        self.log.append(f"close {self.name}")


def test_phases__in_turn_and_no_earlier():
    log: list[str] = []
    phases = Phases(Stream(steps, log) for steps in (range(1, 3), range(3, 4)))
    assert log == ["begin 1"]  # before anything is asked for
    assert [next(phases), next(phases)] == [1, 2]
    assert (log, phases.starved) == (["begin 1"], 2.0)
    assert next(phases) == 3
    assert log == ["begin 1", "end 1", "begin 3"]
    assert list(phases) == []
    assert phases.starved == 3.0


def test_phases__closing_ends_what_runs_and_begins_nothing():
    log: list[str] = []
    phases = Phases(Stream(steps, log) for steps in (range(1, 3), range(3, 4)))
    phases.close()
    assert log == ["begin 1", "close 1"]


def test_phases__of_a_run_with_no_step_left():
    phases = Phases(iter(()))
    phases.close()
    assert (list(phases), phases.starved) == ([], 0.0)
