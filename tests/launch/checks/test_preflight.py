from dataclasses import replace

import pytest

from raydino.config import ConfigError
from raydino.launch.checks import preflight
from raydino.launch.checks.machine import Machine
from raydino.launch.checks.numbers import Facts
from raydino.launch.checks.preflight import check, store_fault
from raydino.launch.cluster import ClusterConfig
from raydino.launch.terminal.announce import plan_text
from raydino.launch.terminal.shown import public_uri
from raydino.recipe import Recipe

FACTS = Facts(images=10_000, classes=10, dropped=16, read_amplification=1.0, parameters=1000, images_per_second=32.0)
MACHINE = Machine(cpus=16, gpus=0, memory=64 * 10**9, shared_memory=8 * 10**9, python=(3, 11), ray="2.60.0")
SMALL = Recipe().override({"method.head.prototypes": 512})  # as many as suit 10,000 images


@pytest.fixture(autouse=True)
def _outside_a_ray_job(monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)


def checked(tmp_path, *, recipe=None, cluster=None, facts=None, machine=None):
    return check(
        SMALL.override(recipe or {}),
        ClusterConfig(storage=str(tmp_path)).override(cluster or {}),
        facts=replace(FACTS, **(facts or {})),
        machine=replace(MACHINE, **(machine or {})),
    )


def test_check__a_sound_run_has_nothing_to_say(tmp_path):
    assert checked(tmp_path) == []
    assert checked(tmp_path / "not" / "there" / "yet") == []
    assert not (tmp_path / "not").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"cluster": {"workers": 3}}, ["cluster.workers = 3", "lanes = 8", "[1, 2, 4, 8]"]),
        ({"cluster": {"workers": 8, "min_workers": 3}}, ["cluster.min_workers = 3", "lanes = 8", "[1, 2, 4]"]),
        ({"cluster": {"accumulate": 48}}, ["global_batch = 64", "cluster.accumulate = 48"]),
        (
            {"recipe": {"global_batch": 8}, "cluster": {"workers": 8}},
            ["global_batch = 8", "need 2", "16", "koleo_weight"],
        ),
        ({"recipe": {"global_batch": 16}, "cluster": {"workers": 4, "accumulate": 4}}, ["leaves 1 image", "32"]),
        ({"facts": {"images": 63}}, ["data.path = builtin", "63", "64"]),
        ({"cluster": {"workers": 8, "cpus_per_worker": 4.0}}, ["cluster.workers = 8", "need 32 CPUs", "has 16"]),
        ({"cluster": {"workers": 2, "gpu": True}}, ["cluster.gpu = false"]),
        ({"cluster": {"object_store_mb": 16_000}}, ["cluster.object_store_mb = 16000", "8 GB free", "--shm-size"]),
        (
            {"cluster": {"workers": 2}, "facts": {"batch_norm": True}},
            ["cluster.workers = 2", "batch norm", "use 1 worker"],
        ),
        ({"recipe": {"optim.layer_decay": 0.9}, "facts": {"blocks": 0}}, ["optim.layer_decay = 0.9", "set it to 1"]),
        ({"cluster": {"compile": True}, "facts": {"blocks": 0}}, ["cluster.compile = True", "set it to False"]),
        (
            {"cluster": {"checkpoint_activations": True}, "facts": {"blocks": 0}},
            ["cluster.checkpoint_activations = True", "set it to False", "cluster.accumulate"],
        ),
        ({"cluster": {"losses": "triton"}}, ["cluster.losses = triton", "GPUs only", "use torch"]),
        (
            {"cluster": {"losses": "triton"}, "machine": {"gpus": 1, "triton": False}},
            ["cluster.losses = triton", "not installed", "use torch"],
        ),
        ({"cluster": {"workers": 4}, "machine": {"gpus": 2}}, ["cluster.workers = 4", "this machine has 2"]),
        ({"machine": {"python": (3, 10)}}, ["Python 3.10", "3.11"]),
        ({"machine": {"temporary_used": 0.97}}, ["97% full", "RAY_TMPDIR"]),
        ({"machine": {"ray": ""}}, ["Ray is not installed", "make setup"]),
        ({"cluster": {"storage": "s3://bucket/runs"}}, ["cluster.storage = s3://bucket/runs", "mounted"]),
        (
            {"cluster": {"decode_in": "cluster"}, "facts": {"store_bytes": 900 * 2**20}},
            ["cluster.object_store_mb = 600", "900 MB", "cluster.decode_in = worker", "data.window"],
        ),
        ({"facts": {"parameters": 10**15}}, ["cluster.storage", "two checkpoints need 3.2e+04 TB"]),
    ],
)
def test_check__refuses_with_field_value_and_remedy(tmp_path, given, words):
    with pytest.raises(ConfigError) as error:
        checked(tmp_path, **given)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_check__all_faults_at_once(tmp_path):
    with pytest.raises(ConfigError) as error:
        checked(tmp_path, cluster={"workers": 3}, facts={"images": 1}, machine={"ray": ""})
    assert len(str(error.value).splitlines()) == 4  # lanes, batch, images, Ray


def test_check__koleo_off_lets_one_image_through(tmp_path):
    recipe = {"global_batch": 8, "method.koleo_weight": 0}
    assert checked(tmp_path, recipe=recipe, cluster={"workers": 8}) == []


def test_check__storage_that_is_a_file_or_not_writable(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        checked(tmp_path, cluster={"storage": str(tmp_path / "file" / "runs")})
    monkeypatch.setattr(
        preflight.os, "access", lambda path, mode: False
    )  # root may write anywhere, so no real folder will do
    with pytest.raises(ConfigError, match="not writable"):
        checked(tmp_path)


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"machine": {"ray": "2.61.0"}}, "2.61.0"),
        ({"cluster": {"address": "auto"}}, "cluster.tracking_uri"),
        ({"machine": {"shared_memory": 64 * 2**20}}, "--shm-size"),
        ({"cluster": {"gpu": False}, "machine": {"gpus": 1}}, "cluster.gpu = false"),
        ({"facts": {"dropped": 600}}, "600 of 10,000"),
        ({"recipe": {"method.head.prototypes": 65_536}}, "65,536 for 10,000 images"),
        ({"recipe": {"steps": 400}}, "0.98 suits this length"),
        ({"recipe": {"steps": 50}}, "0.98 suits this length"),
        ({"recipe": {"optim.warmup": 0}}, "optim.warmup = 0"),
        ({"facts": {"read_amplification": 1.38, "curated": False}}, "recipes/curate.py"),
        ({"facts": {"read_amplification": 1.38}}, "lanes = 8"),
        ({"recipe": {"data.stream_dedup": True}, "facts": {"curated": False}}, "curate.py --source"),
        (
            {"recipe": {"data": {"stream_dedup": True, "stream_against": ["bench"]}}},
            "does not repeat the interrupted one",
        ),
        ({"recipe": {"data.stream_dedup": True}}, "was written by curation"),
        ({"recipe": {"data.fast_crops": "device"}}, "data.fast_crops = device: without a GPU"),
    ],
)
def test_check__warns(tmp_path, given, word):
    warnings = checked(tmp_path, **given)
    assert len(warnings) == 1
    assert word in warnings[0]


def test_check__reading_that_rows_left_out_account_for_is_no_fault_of_the_lanes(tmp_path):
    assert not checked(tmp_path, facts={"read_amplification": 4.2, "used": 0.25})
    assert "lanes = 8" in checked(tmp_path, facts={"read_amplification": 5.0, "used": 0.25})[0]


def test_check__does_not_advise_what_is_there_already(tmp_path):
    short = {"steps": 50, "method.teacher_momentum.start": 0.98, "method.head.prototypes": 256}
    assert checked(tmp_path, recipe=short, facts={"images": 200, "dropped": 0}) == []


def test_check__a_server_ends_the_tracker_warning_and_its_password_is_not_shown(tmp_path):
    cluster = {"address": "auto", "tracking_uri": "https://user:hunter2@host/path"}
    assert checked(tmp_path, cluster=cluster) == []
    text = plan_text(Recipe(), ClusterConfig().override(cluster), FACTS, warnings=[])
    assert "hunter2" not in text
    assert "https://host/path" in text


def test_check__another_cluster_is_not_measured_by_this_machine(tmp_path):
    cluster = {"address": "auto", "workers": 8, "gpu": True, "cpus_per_worker": 64.0, "tracking_uri": "http://host"}
    assert checked(tmp_path, cluster=cluster) == []


def test_store_fault__of_a_joined_cluster_is_judged_by_its_own_store(tmp_path):
    assert (
        checked(tmp_path, cluster={"address": "auto", "tracking_uri": "http://host"}, facts={"store_bytes": 10**12})
        == []
    )
    assert store_fault(0, 0) is None and store_fault(2**20, 2**20) is None
    fault = store_fault(2**20 + 1, 2**20)
    assert fault is not None
    assert all(word in fault for word in ("object store = 1:", "give it 2", "cluster.decode_in = worker"))


def test_public_uri__drops_user_and_password():
    assert public_uri("postgresql://u:p@ss@host:1/db") == "postgresql://host:1/db"
    assert public_uri("sqlite:///runs/mlflow.db") == "sqlite:///runs/mlflow.db"


GPUS = {"gpus": 2, "gpu_memory": 80 * 10**9}
MEMORY = {"student": 40 * 10**9, "activations": 33 * 10**9}
WAYS = {"cluster.accumulate = 2": 60 * 10**9, "cluster.parallel = fsdp": 50 * 10**9}


def test_check__warns_of_a_worker_that_does_not_fit_and_says_what_would(tmp_path):
    facts = {"memory": MEMORY, "memory_with": WAYS}
    (warning,) = checked(tmp_path, cluster={"workers": 2}, facts=facts, machine=GPUS)
    for words in (
        "73 GB",
        "has 80 GB",
        "90%",
        "60 GB with cluster.accumulate = 2",
        "50 GB with cluster.parallel = fsdp",
    ):
        assert words in warning
    assert checked(tmp_path, cluster={"workers": 2}, facts=facts, machine={**GPUS, "gpu_memory": 82 * 10**9}) == []


@pytest.mark.parametrize(
    ("workers", "memory", "fitting"), [(1, 57, True), (1, 58, False), (2, 28, True), (2, 29, False)]
)
def test_check__workers_on_a_cpu_share_its_memory(tmp_path, workers, memory, fitting):
    warnings = checked(tmp_path, cluster={"workers": workers}, facts={"memory": {"student": memory * 10**9}})
    assert (warnings == []) == fitting


def test_check__memory_that_nobody_told_is_no_reason_to_warn(tmp_path):
    unknown = {"gpus": 2, "gpu_memory": 0}
    assert checked(tmp_path, cluster={"workers": 2}, facts={"memory": MEMORY}, machine=unknown) == []
    elsewhere = {"address": "ray://10.0.0.1:10001", "tracking_uri": "http://mlflow:5000"}
    assert checked(tmp_path, cluster=elsewhere, facts={"memory": MEMORY}) == []
