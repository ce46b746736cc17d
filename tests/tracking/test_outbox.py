"""Outages: a server that dies, comes back, hangs, or never answers. Nothing is timed; events say when something is."""

import json
import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from PIL import Image

from raydino.tracking.outbox import MAX_POINTS, Outbox, Point, acknowledged, drain
from raydino.tracking.spool import Spool, read_metrics

FAST = (0.001, 0.01)  # retry pauses
LONG = 30.0  # seconds until a test gives up waiting


class Server:
    """Stands in for a tracking server; keeps equal points once, as MLflow does."""

    def __init__(self, run_id: str = "r1") -> None:
        self.run_id = run_id
        self.received: set[Point] = set()
        self.calls: list[int] = []
        self.pictures: list[tuple[str, str, int]] = []
        self.artifacts: list[str] = []
        self.statuses: list[str] = []
        self.down = False
        self.refused = threading.Event()
        self.called = threading.Event()
        self.gate = threading.Event()
        self.gate.set()

    def connect(self) -> "Server":
        self._reach()
        return self

    def points(self, points: Sequence[Point]) -> None:
        self._reach()
        self.calls.append(len(points))
        self.received |= {point for point in points if not point.name.startswith("system/")}

    def picture(self, name: str, path: Path, step: int) -> None:
        self._reach()
        self.pictures.append((name, path.name, step))

    def artifact(self, path: Path) -> None:
        self._reach()
        self.artifacts.append(path.name)

    def system(self) -> dict[str, float]:
        return {"system/cpu": 1.0}

    def status(self, status: str) -> None:
        self._reach()
        self.statuses.append(status)

    def values(self) -> dict[int, dict[str, float]]:
        result: dict[int, dict[str, float]] = {}
        for point in sorted(self.received, key=lambda point: point.step):
            result.setdefault(point.step, {})[point.name] = point.value
        return result

    def _reach(self) -> None:
        self.called.set()
        assert self.gate.wait(LONG)
        if self.down:
            self.refused.set()
            raise ConnectionError("no answer from https://anna:hunter2@tracker.example")


def outbox(folder: Path, server: Server, *, patience: float = LONG) -> Outbox:
    return Outbox(Spool(folder), connect=server.connect, retry=FAST, patience=patience)


def test_outbox__all_arrives_with_pictures_artifacts_and_status(tmp_path: Path) -> None:
    server, note = Server(), tmp_path / "note.txt"
    note.write_text("x")
    run = outbox(tmp_path, server)
    for step in range(50):
        run.log({"loss/total": float(step)}, step)
    run.picture("attention", Image.new("RGB", (4, 4)), 7)
    run.artifact(note)
    run.close("FINISHED")
    assert server.values() == {step: {"loss/total": float(step)} for step in range(50)}
    assert server.pictures == [("attention", "attention-step-0000007.png", 7)] and server.artifacts == ["note.txt"]
    assert server.statuses == ["RUNNING", "FINISHED"]


def test_outbox__log_returns_while_the_server_hangs(tmp_path: Path) -> None:
    server = Server()
    server.gate.clear()  # every call blocks from now on
    run = outbox(tmp_path, server)
    run.log({"a": 0.0}, 0)
    assert server.called.wait(LONG)  # the thread is inside a call that does not return
    for step in range(1, 20):
        run.log({"a": float(step)}, step)
    run.picture("p", Image.new("RGB", (2, 2)), 3)
    assert not server.received and len(read_metrics(tmp_path / "metrics.jsonl")) == 20
    server.gate.set()
    run.close("FINISHED")
    assert len(server.received) == 20


def test_outbox__an_outage_in_the_middle_loses_nothing_and_warns_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server()
    with caplog.at_level(logging.WARNING):
        run = outbox(tmp_path, server)
        run.log({"a": 0.0}, 0)
        server.down = True
        for step in range(1, 30):
            run.log({"a": float(step)}, step)
        assert server.refused.wait(LONG)
        server.refused.clear()
        assert server.refused.wait(LONG)  # it tried again
        server.down = False
        run.close("FINISHED")
    assert server.values() == {step: {"a": float(step)} for step in range(30)}
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1 and "training goes on" in warnings[0] and "hunter2" not in warnings[0]


def test_outbox__a_server_that_never_comes_back_is_named_and_replayed_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server()
    server.down = True
    with caplog.at_level(logging.WARNING):
        run = outbox(tmp_path, server, patience=0.2)
        for step in range(10):
            run.log({"a": float(step)}, step)
        run.close("FINISHED")
    assert str(tmp_path / "metrics.jsonl") in caplog.records[-1].getMessage() and not server.received
    server.down = False
    assert drain(tmp_path, server) == 10
    assert server.values() == read_metrics(tmp_path / "metrics.jsonl")
    assert drain(tmp_path, server) == 0


def test_outbox__a_resumed_worker_sends_what_the_dead_one_had_not(tmp_path: Path) -> None:
    server = Server()
    Spool(tmp_path).log({"a": 1.0}, 1)  # died before sending
    run = outbox(tmp_path, server)
    run.log({"a": 2.0}, 2)
    run.close("FINISHED")
    assert server.values() == {1: {"a": 1.0}, 2: {"a": 2.0}}


def test_outbox__another_run_id_gets_the_whole_record(tmp_path: Path) -> None:
    old, new = Server(), Server("r2")
    first = outbox(tmp_path, old)
    first.log({"a": 1.0}, 1)
    first.close("FAILED")
    second = outbox(tmp_path, new)
    second.log({"a": 2.0}, 2)
    second.close("FINISHED")
    assert new.values() == {1: {"a": 1.0}, 2: {"a": 2.0}}


def test_outbox__a_removed_picture_does_not_hold_up_the_rest(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    server.down = True
    run = outbox(tmp_path, server)
    run.picture("gone", Image.new("RGB", (2, 2)), 1)
    (tmp_path / "pictures" / "gone-step-0000001.png").unlink()
    run.picture("there", Image.new("RGB", (2, 2)), 2)
    server.down = False
    run.close("FINISHED")
    assert [name for name, _, _ in server.pictures] == ["there"] and "was removed" in caplog.text


def test_drain__at_most_a_thousand_points_a_call_and_each_call_is_acknowledged(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for step in range(7):
        spool.log({f"m{i}": float(i) for i in range(400)}, step)
    spool.log({f"m{i}": float(i) for i in range(2500)}, 7)
    server = Server()
    assert drain(tmp_path, server) == 7 * 400 + 2500
    assert max(server.calls) <= MAX_POINTS and sum(server.calls) == len(server.received) == 5300
    assert acknowledged(tmp_path, run_id="r1") == spool.path.stat().st_size


def test_drain__a_failure_half_way_keeps_what_was_taken(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for step in range(6):
        spool.log({f"m{i}": float(i) for i in range(600)}, step)
    server = Server()
    real: Callable[[Sequence[Point]], None] = server.points

    def fails_third(points: Sequence[Point]) -> None:
        if len(server.calls) == 2:
            raise ConnectionError
        real(points)

    server.points = fails_third  # type: ignore[method-assign]
    with pytest.raises(ConnectionError):
        drain(tmp_path, server)
    server.points = real  # type: ignore[method-assign]
    assert drain(tmp_path, server) == 4 * 600
    assert len(server.received) == 3600


@pytest.mark.parametrize(
    "text", ["", "{", "[]", json.dumps({"run_id": "r"}), json.dumps({"run_id": "other", "bytes": 9})]
)
def test_acknowledged__an_unreadable_or_foreign_note_counts_as_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "sent.json").write_text(text)
    assert acknowledged(tmp_path, run_id="r") == 0
