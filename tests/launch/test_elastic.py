"""How many workers a run takes when machines come and go: only numbers that share the lanes evenly."""

import pytest
import ray
from ray.train import ScalingConfig
from ray.train.v2._internal.execution.scaling_policy import NoopDecision

from raydino.launch.elastic import EvenSizes, fitting


@pytest.fixture
def policy(monkeypatch: pytest.MonkeyPatch):
    """A policy on a cluster of machines with so many CPUs; a name that starts with `dead` is reserved and gone."""

    def make(
        machines: dict[str, float], *, sizes=(1, 2, 4, 8), spare=0.25, each=1.0, patience=600.0
    ) -> tuple[EvenSizes, int]:
        alive = {name: cpus for name, cpus in machines.items() if not name.startswith("dead")}
        monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": name, "Alive": name in alive} for name in machines])
        monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": sum(alive.values())})
        scaling = ScalingConfig(num_workers=(sizes[0], sizes[-1]), resources_per_worker={"CPU": each})
        made = EvenSizes(scaling, sizes=sizes, spare=spare, patience=patience)
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
    monkeypatch.setattr("raydino.launch.elastic.time.monotonic", lambda: now[0])
    for now[0] in (100.0, 129.0):
        assert isinstance(made.make_decision_for_non_running_worker_group(), NoopDecision)
    now[0] = 131.0
    with pytest.raises(TimeoutError, match=r"cluster\.min_workers = 2.*30 s.*1 CPUs"):
        made.make_decision_for_non_running_worker_group()


def test_fitting__against_trying_all():
    for most in range(10):
        assert fitting((1, 2, 4, 8), most) == max([n for n in (1, 2, 4, 8) if n <= most] or [0])
