"""How many workers a run takes when machines come and go: only numbers that share the lanes evenly."""

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.train import ScalingConfig
from ray.train.v2._internal.execution.scaling_policy import NoopDecision

from raydino.launch.engine import elastic
from raydino.launch.engine.elastic import EvenSizes, answers, fitting
from raydino.launch.workers.wishes import SAVE


@pytest.fixture
def policy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A policy on a cluster of machines with so many CPUs; a name that starts with `dead` is reserved and gone."""

    def make(
        machines: dict[str, float], *, sizes=(1, 2, 4, 8), spare=0.25, each=1.0, patience=600.0
    ) -> tuple[EvenSizes, int]:
        alive = {name: cpus for name, cpus in machines.items() if not name.startswith("dead")}
        monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": name, "Alive": name in alive} for name in machines])
        monkeypatch.setattr(elastic, "answers", lambda node: not node["NodeID"].startswith("silent"))
        monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": sum(alive.values())})
        scaling = ScalingConfig(num_workers=(sizes[0], sizes[-1]), resources_per_worker={"CPU": each})
        made = EvenSizes(scaling, sizes=sizes, spare=spare, patience=patience, run_dir=tmp_path)
        monkeypatch.setattr(made, "_maybe_send_resource_request", lambda: None)
        reserved = {name: {"CPU": cpus} for name, cpus in machines.items()}
        monkeypatch.setattr(made, "_get_reserved_resources", lambda: reserved)
        return made, made._count_possible_workers(reserved)

    return make


@pytest.mark.parametrize(
    ("machines", "count"),
    [
        ({"a": 8.0}, 4),  # 8 workers would leave no CPU for reading
        ({"a": 9.0}, 8),
        ({"a": 2.0, "b": 2.0}, 2),  # 3 would fit
        ({"a": 4.0, "dead": 4.0}, 2),
        ({"a": 4.0, "silent": 4.0}, 4),
        ({"a": 1.0}, 0),
    ],
)
def test_even_sizes__what_live_machines_have_room_for_rounded_down(policy, machines, count):
    assert policy(machines)[1] == count


def test_even_sizes__a_worker_fits_on_one_machine(policy):
    assert policy({"a": 3.0, "b": 3.0}, each=2.0)[1] == 2


def test_even_sizes__a_size_that_shares_nothing_evenly_is_never_taken(policy):
    for cpus in range(1, 40):
        assert policy({"a": float(cpus)}, sizes=(3, 6, 12))[1] in (0, 3, 6, 12)


def test_even_sizes__starts_what_is_there_and_waits_for_the_least_only_so_long(policy, monkeypatch: pytest.MonkeyPatch):
    assert policy({"a": 3.5})[0].make_decision_for_non_running_worker_group().num_workers == 2
    made, _ = policy({"a": 1.0}, sizes=(2, 4), patience=30.0)
    now = [100.0]
    monkeypatch.setattr("raydino.launch.engine.elastic.time.monotonic", lambda: now[0])
    for now[0] in (100.0, 129.0):
        assert isinstance(made.make_decision_for_non_running_worker_group(), NoopDecision)
    now[0] = 131.0
    with pytest.raises(TimeoutError, match=r"cluster\.min_workers = 2.*30 s.*1 CPUs"):
        made.make_decision_for_non_running_worker_group()


def test_fitting__against_trying_all():
    for most in range(10):
        assert fitting((1, 2, 4, 8), most) == max([n for n in (1, 2, 4, 8) if n <= most] or [0])


def test_even_sizes__a_resize_waits_until_the_state_is_saved(policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    now = [1000.0]
    monkeypatch.setattr("raydino.launch.engine.elastic.time.monotonic", lambda: now[0])
    made, _ = policy({"a": 5.0})
    state: Any = SimpleNamespace(start_time=float("-inf"), num_workers=2)

    def decide():
        now[0] += 1
        return made.make_decision_for_running_worker_group(state, None)

    assert isinstance(decide(), NoopDecision) and (tmp_path / SAVE).exists()
    assert isinstance(decide(), NoopDecision)
    (tmp_path / SAVE).unlink()
    assert decide().num_workers == 4
    made._latest_monitor_time = float("-inf")
    assert isinstance(decide(), NoopDecision) and (tmp_path / SAVE).exists()
    now[0] += 1000  # workers that do not answer are not waited for
    assert decide().num_workers == 4
    state.num_workers, made._latest_monitor_time = 4, float("-inf")
    assert isinstance(decide(), NoopDecision)
    (tmp_path / SAVE).unlink()
    state.num_workers, made._latest_monitor_time = 8, float("-inf")
    assert decide().num_workers == 4 and not (tmp_path / SAVE).exists()  # a machine was lost


def test_answers__an_address_where_somebody_listens():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert answers({"NodeManagerAddress": "127.0.0.1", "NodeManagerPort": port})
    assert not answers({"NodeManagerAddress": "127.0.0.1", "NodeManagerPort": port})
