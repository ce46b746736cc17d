"""What an outage of the tracking server costs a training loop: raydino's record beside MLflow's own client, sync and async.

    python benchmarks/tracker_outage.py        # about eight minutes, nearly all of it waiting

A loop logs three metrics every 50 ms for ten seconds. From second 2 to second 8 the server (benchmarks/outages/server.py, before
the real MLflow client) refuses connections, takes them and does not answer, or answers 503; or it is away from second 2 until
after the process has ended, which it is made to 45 s later at the latest. Counted afterwards, with the server back and whatever
the client offers for it done: points that the server does not have, the longest that one call held up the loop, and errors that
the loop saw. MLflow's client has its own defaults (7 retries, 120 s); what it raises is caught, as a careful script would, else
the run would end there. Every client is a process of its own, twice for each fault.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from outages.server import Server
from raydino.tracking.mlflow_run import replay
from raydino.tracking.outbox import recorded_run

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "tracker_outage.json"
STEPS, PACE, METRICS = 200, 0.05, ("loss/total", "optim/lr", "throughput/images_per_s")
AWAY, BACK = 2.0, 8.0  # seconds after the first step
REPEATS = 2
PATIENCE = 45.0  # seconds until a process that still waits for the server is ended, as a cluster would
GONE = "to the end"
GOAL_LOST, GOAL_BLOCK = 0, 0.05
CLIENTS = ("raydino", "mlflow sync", "mlflow async")
FAULTS: dict[str, tuple[Callable[[Server], object], Callable[[Server], object]]] = {
    "refused": (Server.stop, Server.start),
    "silent": (lambda server: server.gate.clear(), lambda server: server.gate.set()),
    "503": (lambda server: setattr(server, "status", 503), lambda server: setattr(server, "status", 200)),
    GONE: (Server.stop, Server.start),
}


def main() -> None:
    if len(sys.argv) > 1:
        client(*sys.argv[1:])
        return
    rows = []
    for fault in FAULTS:
        for name in CLIENTS:
            for _ in range(REPEATS):
                rows.append({"fault": fault, "client": name, **trial(fault, name)})
            print(rows[-1], flush=True)
    save(rows)


def trial(fault: str, name: str) -> dict[str, float]:
    """One client through one outage."""
    fails, heals = FAULTS[fault]
    with tempfile.TemporaryDirectory() as scratch:
        server = Server(Path(scratch) / "artifacts")
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")},
            "PYTHONPATH": f"{ROOT / 'platform'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        command = [sys.executable, __file__, name, server.uri, scratch]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            while process.stdout.readline().strip() != "start":
                if process.poll() is not None:
                    sys.exit(f"void: {name} ended before its first step")
            time.sleep(AWAY)
            fails(server)
            if fault != GONE:
                time.sleep(BACK - AWAY)
                heals(server)
            killed = threading.Timer(PATIENCE, process.kill)
            killed.start()
            said = [
                line for line in process.stdout.read().splitlines() if line.startswith("{")
            ]  # MLflow prints addresses
            killed.cancel()
        if fault == GONE:
            heals(server)
            if name == "raydino":
                replay(Path(scratch), tracking_uri=server.uri, run_id=recorded_run(Path(scratch)) or "")
        # A process that was ended inside its loop was held up for all of the time.
        held = {"longest_block_s": PATIENCE, "block_p99_s": PATIENCE, "loop_s": PATIENCE, "errors": 0}
        found = json.loads(said[0]) if said else held
        server.stop()
        have = sum(len({step for step, _ in server.of(metric)}) for metric in METRICS)
    return {"points": STEPS * len(METRICS), "lost": STEPS * len(METRICS) - have, **found}


def client(name: str, uri: str, scratch: str) -> None:
    """The loop, in a process of its own; says at the end what it met."""
    log, end = CONNECT[name](uri, Path(scratch))
    print("start", flush=True)
    begin, blocks, errors = time.perf_counter(), [], 0
    for step in range(STEPS):
        before = time.perf_counter()
        try:
            log({metric: float(step) for metric in METRICS}, step)
        except Exception:
            errors += 1
        blocks.append(time.perf_counter() - before)
        time.sleep(max(0.0, PACE - blocks[-1]))
    seconds = time.perf_counter() - begin
    blocks.sort()
    found: dict[str, float] = {
        "longest_block_s": blocks[-1],
        "block_p99_s": blocks[len(blocks) * 99 // 100],
        "loop_s": seconds,
    }
    print(json.dumps({**{key: round(value, 5) for key, value in found.items()}, "errors": errors}), flush=True)
    end()  # may wait for the server; what the loop met is said by then


def ours(uri: str, scratch: Path) -> tuple[Callable[[dict[str, float], int], None], Callable[[], object]]:
    from raydino.tracking.mlflow_run import MLflowRun, create_run
    from raydino.tracking.opening import Opening
    from raydino.tracking.spool import Spool

    opening = Opening.of(
        experiment="outage", run_name="raydino", params={}, tags={}, dataset=None, recipe_yaml="", run_dir=scratch
    )
    run_id = create_run(opening, tracking_uri=uri)
    run = MLflowRun(Spool(scratch), tracking_uri=uri, run_id=run_id)
    return run.log, lambda: run.close("FINISHED")


def theirs(uri: str, *, synchronous: bool) -> tuple[Callable[[dict[str, float], int], object], Callable[[], object]]:
    import mlflow
    from mlflow.entities import Metric

    run_client = mlflow.MlflowClient(tracking_uri=uri)
    run_id = run_client.create_run(run_client.create_experiment("outage")).info.run_id
    mlflow.set_tracking_uri(uri)  # what flushing looks for

    def log(metrics: dict[str, float], step: int) -> None:
        now = round(time.time() * 1000)
        points = [Metric(name, value, now, step) for name, value in metrics.items()]
        run_client.log_batch(run_id, metrics=points, synchronous=synchronous)

    def end() -> None:
        if not synchronous:
            mlflow.flush_async_logging()
        run_client.set_terminated(run_id)

    return log, end


CONNECT = {
    "raydino": ours,
    "mlflow sync": lambda uri, _: theirs(uri, synchronous=True),
    "mlflow async": lambda uri, _: theirs(uri, synchronous=False),
}


def save(rows: list[dict]) -> None:
    """benchmarks/results/tracker_outage.json: the worst of our trials against the goal, and all of them."""
    from importlib.metadata import version

    print(f"\n{'fault':<12}{'client':<14}{'lost of 600':>12}{'longest block':>15}{'loop':>8}{'errors':>8}")
    worst = {}
    for fault in FAULTS:
        for name in CLIENTS:
            same = [row for row in rows if (row["fault"], row["client"]) == (fault, name)]
            top = {key: max(row[key] for row in same) for key in ("lost", "longest_block_s", "loop_s", "errors")}
            worst[fault, name] = top
            print(
                f"{fault:<12}{name:<14}{top['lost']:>12}{top['longest_block_s']:>13.3f} s{top['loop_s']:>6.1f} s"
                f"{top['errors']:>8}"
            )
    blocks = [row["longest_block_s"] for row in rows if row["client"] == "raydino"]
    lost = max(row["lost"] for row in rows if row["client"] == "raydino")
    sync = max(row["longest_block_s"] for row in rows if row["client"] == "mlflow sync")
    result = {
        "name": "tracker_outage",
        "device": f"{os.cpu_count()} CPU cores shared with other work, server and client on one machine; "
        f"mlflow {version('mlflow')}",
        "ratio": round(sync / max(blocks), 1),
        "ratio_is": "longest block of MLflow's synchronous client over ours",
        "spread": [min(blocks), max(blocks)],
        "goal": f"{GOAL_LOST} points lost, no block above {GOAL_BLOCK} s",
        "limit_share": round(min(1.0, GOAL_BLOCK / max(blocks)) if lost == 0 else 0.0, 4),
        "command": "python benchmarks/tracker_outage.py",
        "lost": lost,
        "worst": [{"fault": fault, "client": name, **top} for (fault, name), top in worst.items()],
        "trials": rows,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    verdict = "met" if lost <= GOAL_LOST and max(blocks) <= GOAL_BLOCK else "MISSED"
    print(f"\nraydino: {lost} points lost, longest block {max(blocks) * 1000:.1f} ms; goal {result['goal']}: {verdict}")


if __name__ == "__main__":
    main()
