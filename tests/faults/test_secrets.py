"""Ten secrets are planted in every field that a user may put one into; none may be found in anything that a run leaves behind."""

import json
import logging
import sqlite3
from pathlib import Path

import pytest

from raydino.config import ConfigError
from raydino.data.config import DataConfig
from raydino.launch import driver
from raydino.launch.cluster import ClusterConfig
from raydino.launch.inputs import open_inputs
from raydino.launch.resume import Meant
from raydino.launch.terminal.command import Command, say
from raydino.launch.workers import failure
from raydino.recipe import Recipe
from raydino.tracking.mlflow_run import DatasetRecord, MLflowRun, create_run, record_files
from raydino.tracking.opening import Opening
from raydino.tracking.spool import Spool

SECRETS = {
    "AWS key id": "AKIAIOSFODNN7EXAMPLE",
    "AWS secret": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "GitHub": "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
    "Hugging Face": "hf_abcdefghijklmnopqrstuvwxyz012345",
    "password in an address": "s3cr3t-of-anna",
    "bearer": "abc123DEF456ghi789",
    "JSON web token": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl",
    "signature": "d41d8cd98f00b204e9800998",
    "Azure": "Zm9vYmFyYmF6cXV4Zm9v==",
    "private key": "MIIEowIBAAKCAQEA7bq",
}
TEXT = "\n".join(
    (
        f"aws_access_key_id = {SECRETS['AWS key id']}",
        f"aws_secret_access_key: {SECRETS['AWS secret']}",
        f"origin https://{SECRETS['GitHub']}@host/r.git",
        f"HF_TOKEN={SECRETS['Hugging Face']}",
        f"postgresql://anna:{SECRETS['password in an address']}@127.0.0.1:9/db",
        f"Authorization: Bearer {SECRETS['bearer']}",
        f"got {SECRETS['JSON web token']}",
        f"https://bucket.example/x?X-Amz-Signature={SECRETS['signature']}&x=1",
        f"AccountName=lab;AccountKey={SECRETS['Azure']};X=1",
        f"-----BEGIN RSA PRIVATE KEY-----\n{SECRETS['private key']}\n-----END RSA PRIVATE KEY-----",
    )
)


@pytest.fixture(autouse=True)
def _no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # nobody listens at the dead addresses, now or later


def found(*texts: str | bytes) -> list[str]:
    """Kinds of the secrets that stand in the texts."""
    joined = b"\n".join(text.encode() if isinstance(text, str) else text for text in texts)
    return [kind for kind, secret in SECRETS.items() if secret.encode() in joined]


def everything(folder: Path) -> list[bytes]:
    for database in folder.rglob("*.db"):
        sqlite3.connect(database).execute("PRAGMA wal_checkpoint")
    return [path.read_bytes() for path in folder.rglob("*") if path.is_file()]


def test_found__finds_all_ten() -> None:
    assert len(found(TEXT)) == len(SECRETS) == 10


@pytest.mark.fault  # seconds of one core
def test_canary__none_of_ten_in_database_artifacts_spool_tables_log_or_errors(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    uri, run_dir = f"sqlite:///{tmp_path}/runs/mlflow.db", tmp_path / "runs" / "run"
    run_dir.mkdir(parents=True)
    with caplog.at_level(logging.DEBUG, logger="raydino"):
        opening = Opening.of(
            experiment="raydino",
            run_name=TEXT,
            params={"note": TEXT, **{kind: secret for kind, secret in SECRETS.items() if "key" in kind.lower()}},
            tags={"remote": TEXT},
            dataset=DatasetRecord(TEXT, "d", TEXT, 5),
            recipe_yaml=TEXT,
            cluster_yaml=TEXT,
            run_dir=run_dir,
        )
        run_id = create_run(opening, tracking_uri=uri)
        run = MLflowRun(Spool(run_dir), tracking_uri=uri, run_id=run_id)
        run.log({"loss/total": 1.0}, 1)
        run.close("FINISHED")
        record_files(
            tracking_uri=uri, experiment="curation", run_name=TEXT, params={"source": TEXT}, metrics={}, files=[]
        )
        dead = MLflowRun(
            Spool(run_dir), tracking_uri=f"http://anna:{SECRETS['GitHub']}@127.0.0.1:9", run_id=run_id, patience=0.3
        )
        dead.close("FAILED")
        failure.came_again(run_dir, RuntimeError(TEXT), rank=0, step=1)
        say(TEXT)
    out = capfd.readouterr()
    assert found(*everything(tmp_path)) == []
    assert found(out.out, out.err, caplog.text) == []


@pytest.mark.parametrize("field", ["path", "stream_against"])
def test_recipe__an_address_with_a_password_is_refused_since_recipes_are_written_down(field: str) -> None:
    address = "s3://AKIAIOSFODNN7EXAMPLE:s3cr3t-of-anna@bucket/images"
    with pytest.raises(ConfigError, match="credentials.* environment") as refused:
        Recipe().override({"data": {field: address if field == "path" else (address,), "stream_dedup": True}})
    assert found(str(refused.value)) == []
    assert DataConfig(path="hdfs://anna@host/x").path == "hdfs://anna@host/x"  # a name alone is no secret


def test_run__nothing_in_its_folder_before_training_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_images: Path
) -> None:
    """recipe.yaml, cluster.yaml, run.json and opening.json of a run whose tracker's address holds a password."""
    secret = SECRETS["password in an address"]
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRETS["AWS secret"])
    cluster = ClusterConfig(storage=str(tmp_path), tracking_uri=f"http://anna:{secret}@127.0.0.1:9")
    recipe = Recipe().override({"data.path": str(small_images)})
    inputs = open_inputs(recipe, str(small_images))
    run_dir = tmp_path / recipe.id
    command = Command(recipe, cluster, "no", dry_run=False)
    run_dir.mkdir()
    driver._prepare(command, Meant(run_dir), str(small_images), inputs)
    names = {path.name for path in run_dir.iterdir()}
    assert names >= {"recipe.yaml", "cluster.yaml", "run.json", "opening.json"}
    assert found(*everything(run_dir)) == []
    assert json.loads((run_dir / "run.json").read_text())["mlflow_run_id"] is None
    assert Recipe().from_yaml((run_dir / "recipe.yaml").read_text()).id == recipe.id


@pytest.fixture(scope="module")
def small_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from raydino.curation.synthetic import write_builtin

    folder = tmp_path_factory.mktemp("images") / "curated"
    write_builtin(str(folder), train=96, test=16)
    return folder
