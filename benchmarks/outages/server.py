"""A tracking server on this machine that can fail on purpose: the part of MLflow's REST interface that a run needs.

It keeps what it took in memory, equal points once as MLflow does, and can be stopped, started again on the same port, made to
forget everything, and told how to answer.
"""

import json
import threading
import time
import uuid
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

Point = tuple[str, float, int, int]
"""Name, value, step, milliseconds since 1970."""


class Server:
    """Listens on 127.0.0.1 until `stop`."""

    def __init__(self, artifacts: Path) -> None:
        self.artifacts = artifacts
        self.port = 0
        self.status = 200
        """Another one is what every request gets, undone."""
        self.delay = 0.0
        """Seconds before an answer."""
        self.lose = ""
        """Requests whose path ends so are done, but their answer is lost."""
        self.gate = threading.Event()
        """Cleared: requests are taken and never answered."""
        self.gate.set()
        self.asked = threading.Event()
        """Set by every request."""
        self._http: ThreadingHTTPServer | None = None
        self.forget()
        self.start()

    @property
    def uri(self) -> str:
        """The tracking address."""
        return f"http://127.0.0.1:{self.port}"

    def forget(self) -> None:
        """Lose the database."""
        self.experiments: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.points: dict[str, set[Point]] = {}

    def start(self) -> None:
        """Listen, on the port of the first time."""
        self._http = _Listener(("127.0.0.1", self.port), _handler(self))
        self.port = self._http.server_port
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Connections are refused from now on."""
        if self._http is not None:
            self._http.shutdown()
            self._http.server_close()
        self._http = None

    def of(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of a metric over all runs, by step."""
        return sorted((step, value) for found in self.points.values() for key, value, step, _ in found if key == name)


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a request that hangs must not hold up `stop`


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            self._answer(parts.path, {name: values[0] for name, values in parse_qs(parts.query).items()})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._answer(urlsplit(self.path).path, json.loads(body or b"{}"))

        def _answer(self, path: str, given: dict[str, Any]) -> None:
            server.asked.set()
            server.gate.wait()
            time.sleep(server.delay)
            status, found = server.status, {"error_code": "TEMPORARILY_UNAVAILABLE", "message": "on purpose"}
            if status == 200:
                status, found = _route(server, "/".join(path.split("/")[-2:]), given)
            if server.lose and path.endswith(server.lose):
                self.close_connection = True
                return
            body = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def _route(server: Server, call: str, given: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    missing = (404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "there is none"})
    run_id = given.get("run_id") or given.get("run_uuid")
    if run_id is not None and run_id not in server.runs:
        return missing
    routes: dict[str, Callable[[], tuple[int, dict[str, Any]]]] = {
        "experiments/get-by-name": lambda: _experiment(server, given.get("experiment_name", "")) or missing,
        "experiments/create": lambda: _create_experiment(server, given),
        "runs/create": lambda: _create_run(server, given),
        "runs/get": lambda: (200, {"run": server.runs[str(run_id)]}),
        "runs/search": lambda: (200, {"runs": _with_tag(server, given.get("filter", ""))}),
        "runs/update": lambda: _update(server.runs[str(run_id)], given),
        "runs/log-batch": lambda: _log_batch(server, str(run_id), given),
        "runs/log-metric": lambda: _log_batch(server, str(run_id), {"metrics": [given]}),
        "runs/log-inputs": lambda: (200, {}),
        "runs/set-tag": lambda: _set_tag(server.runs[str(run_id)], given),
    }
    return routes.get(call, lambda: missing)()


def _experiment(server: Server, name: str) -> tuple[int, dict[str, Any]] | None:
    return (200, {"experiment": server.experiments[name]}) if name in server.experiments else None


def _create_experiment(server: Server, given: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    number = str(len(server.experiments) + 1)
    place = (server.artifacts / number).as_uri()
    kept = {"experiment_id": number, "name": given["name"], "artifact_location": place, "lifecycle_stage": "active"}
    server.experiments[given["name"]] = kept
    return 200, {"experiment_id": number}


def _create_run(server: Server, given: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    run_id = uuid.uuid4().hex
    info = {
        "run_id": run_id,
        "run_uuid": run_id,
        "run_name": given.get("run_name", ""),
        "experiment_id": given["experiment_id"],
        "status": "RUNNING",
        "start_time": given.get("start_time", 0),
        "artifact_uri": (server.artifacts / given["experiment_id"] / run_id / "artifacts").as_uri(),
        "lifecycle_stage": "active",
    }
    server.runs[run_id] = {"info": info, "data": {"tags": given.get("tags", []), "params": [], "metrics": []}}
    server.points[run_id] = set()
    return 200, {"run": server.runs[run_id]}


def _with_tag(server: Server, asked: str) -> list[dict[str, Any]]:
    value = asked.rpartition("= '")[2].rstrip("'")
    return [run for run in server.runs.values() if any(tag["value"] == value for tag in run["data"]["tags"])]


def _update(run: dict[str, Any], given: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    run["info"] |= {name: given[name] for name in ("status", "end_time") if name in given}
    return 200, {"run_info": run["info"]}


def _set_tag(run: dict[str, Any], given: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    run["data"]["tags"].append({"key": given["key"], "value": given["value"]})
    return 200, {}


def _log_batch(server: Server, run_id: str, given: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    for point in given.get("metrics", []):
        server.points[run_id].add(
            (point["key"], float(point["value"]), int(point.get("step", 0)), int(point["timestamp"]))
        )
    server.runs[run_id]["data"]["params"] += given.get("params", [])
    return 200, {}
