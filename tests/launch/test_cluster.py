import math
import os
from pathlib import Path

import pytest

from raydino.config import ConfigError
from raydino.launch.cluster import ClusterConfig, divisors, worker_environment

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("file", sorted((ROOT / "clusters").glob("*.yaml")), ids=lambda p: p.name)
def test_clusters__every_local_file_loads(file):
    if "cluster_name" in file.read_text():
        pytest.skip("a file of the Ray launcher, not of raydino")
    config = ClusterConfig().from_yaml(file.read_text(), origin=file.name)
    assert ClusterConfig().from_yaml(config.to_yaml()) == config


def test_micro_batch__shares_come_out_even():
    assert ClusterConfig(workers=4, accumulate=2).micro_batch(64) == 8
    with pytest.raises(ConfigError) as error:
        ClusterConfig(workers=3, accumulate=2).micro_batch(64)
    assert all(word in str(error.value) for word in ("64", "cluster.workers = 3", "cluster.accumulate = 2", "66"))


@pytest.mark.parametrize("number", [1, 12, 97, 1024])
def test_divisors__against_their_product_pairs(number):
    pairs = [(a, number // a) for a in range(1, math.isqrt(number) + 1) if number % a == 0]
    assert divisors(number) == sorted({d for pair in pairs for d in pair})


def test_use_gpu__auto_asks_the_cluster():
    assert [ClusterConfig().use_gpu(n) for n in (0, 1, 8)] == [False, True, True]
    assert not ClusterConfig(gpu=False).use_gpu(8)
    assert ClusterConfig(gpu=True).use_gpu(0)


def test_threads__shares_of_a_node():
    auto, fixed = ClusterConfig(), ClusterConfig(threads=3, data_threads=5)
    assert [auto.torch_threads(cores=c, workers_here=w) for c, w in ((2, 1), (2, 2), (2, 4), (64, 8))] == [2, 1, 1, 8]
    assert [auto.decode_threads(cores=64, workers_here=8, use_gpu=g) for g in (True, False)] == [7, 4]
    assert auto.decode_threads(cores=1, workers_here=4, use_gpu=True) == 1
    assert fixed.torch_threads(cores=2, workers_here=2) == 3
    assert fixed.decode_threads(cores=2, workers_here=2, use_gpu=False) == 5


def test_precision_on__auto_never_takes_slow_bf16():
    assert ClusterConfig().precision_on(native_bf16=False) == "fp32"
    assert ClusterConfig().precision_on(native_bf16=True) == "bf16"
    assert ClusterConfig(precision="bf16").precision_on(native_bf16=False) == "bf16"


def test_tracker__is_beside_the_runs():
    assert ClusterConfig(storage="/a/b").tracker() == "sqlite:////a/b/mlflow.db"
    assert ClusterConfig(tracking_uri="http://host:5000").tracker() == "http://host:5000"


@pytest.mark.parametrize(
    "fields",
    [{"workers": 0}, {"cpus_per_worker": 0}, {"precision": "fp16"}, {"address": " "}, {"storage": ""}, {"gpus": 1}],
)
def test_cluster_config__refuses(fields):
    with pytest.raises(ConfigError):
        ClusterConfig().override(fields)


def test_is_local__never_inside_a_ray_job(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert ClusterConfig().is_local
    assert not ClusterConfig(address="auto").is_local
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert not ClusterConfig().is_local


def test_worker_environment__only_what_is_listed(monkeypatch):
    monkeypatch.setenv("SOME_SECRET", "s3cret")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    passed = worker_environment(3)
    assert "SOME_SECRET" not in passed
    assert (passed["HF_HUB_OFFLINE"], passed["OMP_NUM_THREADS"]) == ("1", "3")
    assert "OMP_NUM_THREADS" not in worker_environment(0)
    assert worker_environment(0)["OMP_WAIT_POLICY"] == os.environ.get("OMP_WAIT_POLICY", "PASSIVE")


@pytest.mark.parametrize(
    ("changes", "has", "where"),
    [
        ({}, {}, "cluster"),
        ({}, {"gpus": 0}, "worker"),
        ({"gpu": False}, {}, "worker"),
        ({"workers": 8}, {"gpus": 8}, "cluster"),
        ({"workers": 9}, {"gpus": 8}, "worker"),  # the workers hold more than half of the CPUs
        ({}, {"store_needed": 10 * 2**30}, "worker"),
        ({"decode_in": "worker"}, {}, "worker"),
        ({"decode_in": "cluster"}, {"gpus": 0, "store_needed": 10 * 2**30}, "cluster"),
    ],
)
def test_decodes_in__follows_the_machine_unless_told(changes, has, where):
    machine = {"gpus": 1, "cpus": 16.0, "store": 8 * 2**30, "store_needed": 2**30}
    assert ClusterConfig().override(changes).decodes_in(**{**machine, **has}) == where


def test_store_bytes__a_share_of_the_memory_where_there_are_gpus():
    large = {"memory": 100 * 2**30, "shared": 50 * 2**30}
    assert ClusterConfig().store_bytes(gpus=0, **large) == 600 * 2**20
    assert ClusterConfig().store_bytes(gpus=1, **large) == 30 * 2**30
    assert ClusterConfig().store_bytes(gpus=1, memory=2**30, shared=2**30) == 600 * 2**20
    assert ClusterConfig().store_bytes(gpus=1, memory=100 * 2**30, shared=64 * 2**20) == 600 * 2**20  # a container
    assert ClusterConfig().store_bytes(gpus=1, memory=100 * 2**30, shared=20 * 2**30) == 19 * 2**30
    assert ClusterConfig(object_store_mb=200).store_bytes(gpus=1, **large) == 200 * 2**20


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(("workers", "batch"), [(4, 96), (6, 96), (8, 64), (12, 144)])
def test_accumulate_on__fewer_workers_take_more_micro_batches_of_no_more_images(
    workers: int, batch: int, accumulate: int
):
    cluster = ClusterConfig(workers=workers, accumulate=accumulate)
    images = batch // (workers * accumulate)
    assert cluster.accumulate_on(workers, batch) == accumulate
    for fewer in (n for n in range(1, workers + 1) if batch % n == 0):
        parts = cluster.accumulate_on(fewer, batch)
        assert batch % (fewer * parts) == 0 and batch // (fewer * parts) <= images
        assert not [p for p in range(1, parts) if batch % (fewer * p) == 0 and batch // (fewer * p) <= images]


def test_sizes__only_what_shares_the_lanes():
    assert ClusterConfig(workers=4).sizes(lanes=8, global_batch=64) == [4]
    assert ClusterConfig(workers=8, min_workers=2).sizes(lanes=8, global_batch=64) == [2, 4, 8]
    assert ClusterConfig(workers=4, min_workers=1).sizes(lanes=12, global_batch=24) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"workers": 2, "min_workers": 3}, "lower it"),
        ({"workers": 2, "min_workers": 1, "max_failures": 0}, "max_failures"),
    ],
)
def test_cluster_config__an_elastic_one_that_cannot_be(fields, word):
    with pytest.raises(ConfigError, match=word):
        ClusterConfig().override(fields)


def test_attention_on__as_measured_unless_it_is_asked_for():
    auto = ClusterConfig()
    assert auto.attention_on(on_cpu=False, precision="bf16", tokens=10) == "fused"
    assert auto.attention_on(on_cpu=True, precision="bf16", tokens=1000) == "matmul"
    assert auto.attention_on(on_cpu=True, precision="fp32", tokens=37) == "matmul"
    assert auto.attention_on(on_cpu=True, precision="fp32", tokens=197) == "fused"
    assert ClusterConfig(attention="fused").attention_on(on_cpu=True, precision="bf16", tokens=37) == "fused"
