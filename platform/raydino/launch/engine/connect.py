"""A Ray for a run: started in this process, or joined. Ray is imported inside functions: `--help` does not wait for it."""

import contextlib
import json
import logging
import math
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from raydino.config import ConfigError
from raydino.launch.cluster import QUIET, STORE_LEAST, ClusterConfig, worker_environment

PACKAGE = Path(__file__).resolve().parents[2]  # the folder `raydino`, wherever it was imported from
TARGETS = ".prometheus/targets"
"""Folder in the storage: a file for each Ray started here that Prometheus may ask."""
CONNECT_SECONDS = 10.0  # an address that does not answer by then is wrong, not slow


@contextlib.contextmanager
def start_ray(
    cluster: ClusterConfig, *, store: int = STORE_LEAST, cpus: int | None = None, dashboard: bool = False
) -> Iterator[None]:
    """Ray for the length of a `with` block: started in this process or joined, quiet, workers able to import raydino.

    For a Ray started here, `store` is the size of its object store in bytes, `cpus` how many it counts, and `dashboard` whether
    it has one, as groups of workers that others start and end need.
    An already initialised Ray (a sweep, a test) is used as it is and left running. Raises ConfigError naming address
    and remedy if a cluster cannot be reached, has another version or refuses the token.
    """
    with environment({**QUIET, **(_python_path() if cluster.is_local else {})}):
        import ray

        if ray.is_initialized():
            yield
            return
        # Emitted at each start although token authentication is what we want.
        logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
        if cluster.is_local:
            _init_local(cluster, store, cpus, dashboard=dashboard)
        else:
            _join(cluster)
        try:
            with _findable(cluster):
                yield
        finally:
            ray.shutdown()


@contextlib.contextmanager
def _findable(cluster: ClusterConfig) -> Iterator[None]:
    """A file that tells Prometheus where a Ray started here shows its figures (dashboards/prometheus.yml). Ray itself writes one
    where it has a dashboard, in a place that the next Ray takes over; a joined cluster has its own."""
    if not cluster.is_local:
        yield
        return
    import ray

    addresses = [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in ray.nodes()]
    folder, host = cluster.folder / TARGETS, socket.gethostname()
    path = folder / f"{host}-{os.getpid()}.json"
    with contextlib.suppress(OSError):  # a run that nobody can watch is still a run
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob("*.json"):
            where, _, pid = left.stem.rpartition("-")
            if where == host and pid.isdigit() and not psutil.pid_exists(int(pid)):  # a driver that was killed
                left.unlink()
        path.write_text(json.dumps([{"labels": {"job": "ray"}, "targets": addresses}]))
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


def _init_local(cluster: ClusterConfig, store: int, cpus: int | None, *, dashboard: bool) -> None:
    import ray

    # One CPU beyond the workers': when they take all of them, Ray Data's tasks wait for ever. Only Ray counts it.
    needed = math.ceil(cluster.workers * cluster.cpus_per_worker) + 1
    ray.init(
        address="local",
        num_cpus=cpus or max(os.cpu_count() or 1, needed),
        object_store_memory=store,
        include_dashboard=dashboard,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )
    # Whoever reads the token runs code as this user; Ray writes it readable for all.
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    with contextlib.suppress(OSError):
        token.chmod(0o600)


def _join(cluster: ClusterConfig) -> None:
    """Join a running cluster. Its nodes are sent the package: a path of this machine may not exist there."""
    import ray

    address = "auto" if cluster.address == "local" else cluster.address
    _probe(address)
    try:
        # Without it, one variable set both by `ray job submit` and here ends the run at its start.
        with environment({"RAY_OVERRIDE_JOB_RUNTIME_ENV": "1"}):
            ray.init(
                address=address,
                runtime_env={"py_modules": [str(PACKAGE)], "env_vars": worker_environment(cluster.threads)},
                log_to_driver=False,
                logging_level=logging.WARNING,
            )
    except Exception as error:
        raise ConfigError(_cannot_join(address, error)) from error


def _cannot_join(address: str, error: Exception) -> str:
    """Why joining failed, without the token even if the error quotes it."""
    text = " ".join(str(error).split())
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    text = text.replace(token, "…") if token else text
    if "token" in text.lower() or "401" in text:
        remedy = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the cluster's token on this machine"
    elif "version" in text.lower():
        remedy = "install the head node's versions of Python and Ray here (or run with `ray job submit`)"
    else:
        remedy = "start one with `ray start --head`, or use cluster.address = local"
    return f"cluster.address = {address}: cannot join the Ray cluster ({text[:300]}); {remedy}."


def _probe(address: str) -> None:
    """Fail in seconds on HOST:PORT that nobody answers; Ray itself retries for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        if address != "auto":
            raise ConfigError(f"cluster.address = {address!r}: expected local, auto, HOST:PORT or ray://HOST:PORT.")
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"cluster.address = {address}: nobody answers there ({error}); check host, port and firewall, or use local."
        ) from None


def _python_path() -> dict[str, str]:
    """PYTHONPATH with raydino's source root in front, which local workers inherit when the package is not installed."""
    before = os.environ.get("PYTHONPATH", "")
    root = str(PACKAGE.parent)
    return {"PYTHONPATH": root if not before else f"{root}{os.pathsep}{before}"}


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for a while.

    Set here rather than in a runtime_env: Ray then takes one of its idle processes as the first worker, 1.4 s sooner.
    """
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
