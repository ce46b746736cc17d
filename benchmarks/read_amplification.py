"""How many rows an epoch reads for each row it uses: folders as they come against the same folders after curate.py.

    python benchmarks/read_amplification.py        # about two minutes; counts, so the machine does not matter

A row group that stands on a cut between two lanes is read by both, so large row groups are read in vain. Rows and bytes are
counted where Parquet is decoded, for every worker of 1, 2 and 4, over a whole epoch; the plan's own estimate is not asked.
The count is void, and the command fails, unless every number of workers delivers the same images, an epoch of them.
Real images are looked for in RAYDINO_DATA, else in ../shared/data.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from raydino.curation.synthetic import write_builtin
from raydino.data.fetch import Fetch, local_windows, requests
from raydino.data.plan import Plan
from raydino.recipe import Recipe
from raydino.shards.reader import Collection, open_collection

ROOT = Path(__file__).resolve().parents[1]
GOAL = 1.1
WORKERS = (1, 2, 4)
SETS = ("cifar10", "caltech101")
RESULT = ROOT / "benchmarks" / "results" / "read_amplification.json"


class Counted(Collection):
    """A collection that counts what its reader decodes."""

    decoded_rows = decoded_bytes = 0

    def read(self, group: int) -> pa.Table:
        """Row group `group`, counted."""
        table = super().read(group)
        self.decoded_rows += table.num_rows
        self.decoded_bytes += table["bytes"].nbytes
        return table


def main() -> None:
    data = Path(os.environ.get("RAYDINO_DATA") or ROOT.parent / "shared" / "data")
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, kind, folder in folders(data, Path(scratch)):
            print(f"counting {name}, {kind}", flush=True)
            rows += [{"images": name, "kind": kind, **row} for row in count(folder)]
    table(rows)
    save(rows)


def folders(data: Path, scratch: Path) -> Iterator[tuple[str, str, Path]]:
    """Name, kind and place of every folder to count: the built-in images are curated from the start."""
    write_builtin(str(scratch / "builtin"))
    yield "builtin", "curated", scratch / "builtin"
    for name in SETS:
        if not (data / name).is_dir():
            print(f"skipped {name}: {data / name} is not there (set RAYDINO_DATA)")
            continue
        yield name, "as it comes", data / name
        command = [sys.executable, str(ROOT / "recipes" / "curate.py"), "--source", str(data / name)]
        subprocess.run([*command, "--out", str(scratch / name)], check=True, stdout=subprocess.DEVNULL)
        yield name, "curated", scratch / name


def count(folder: Path) -> list[dict[str, float]]:
    """What 1, 2 and 4 workers read of `folder` in the first epoch of a recipe with the default order."""
    recipe, found = Recipe(), []
    delivered: list[bytes] | None = None
    for workers in WORKERS:
        images = open_collection(str(folder), split=recipe.data.split)
        plan = Plan(
            images.row_groups,
            seed=recipe.seed,
            global_batch=recipe.global_batch,
            lanes=recipe.lanes,
            window=recipe.data.window,
        )
        shelf, used, used_bytes, ids = Counted(images.folder, images.manifest), 0, 0, []
        for rank in range(workers):
            wanted = requests(plan, rank=rank, world=workers, start_step=0, steps=plan.steps_per_epoch)
            for window in local_windows(Fetch(shelf, None), wanted):
                used, used_bytes = used + window.num_rows, used_bytes + window["bytes"].combine_chunks().nbytes
                ids += window["id"].to_pylist()
        if used != plan.steps_per_epoch * plan.global_batch or (delivered not in (None, sorted(ids))):
            sys.exit(f"void: {workers} workers on {folder} delivered other images than 1 worker, {used:,} of them")
        delivered = sorted(ids)
        found.append(
            {
                "workers": workers,
                "row_groups": len(images.row_groups),
                "rows_used": used,
                "rows_read": shelf.decoded_rows,
                "bytes_used": used_bytes,
                "bytes_read": shelf.decoded_bytes,
                "ratio": round(shelf.decoded_rows / used, 4),
                "bytes_ratio": round(shelf.decoded_bytes / used_bytes, 4),
            }
        )
    return found


def table(rows: list[dict]) -> None:
    print(f"\n{'images':<12}{'kind':<13}{'workers':>8}{'groups':>8}{'used':>9}{'read':>9}{'rows x':>8}{'bytes x':>9}")
    for row in rows:
        print(
            f"{row['images']:<12}{row['kind']:<13}{row['workers']:>8}{row['row_groups']:>8}{row['rows_used']:>9,}"
            f"{row['rows_read']:>9,}{row['ratio']:>8.3f}{row['bytes_ratio']:>9.3f}"
        )


def save(rows: list[dict]) -> None:
    """benchmarks/results/read_amplification.json: the worst curated folder against the goal."""
    ours = [row for row in rows if row["kind"] == "curated"]
    ratios = [row["ratio"] for row in ours]
    result = {
        "name": "read_amplification",
        "device": "any: rows and bytes are counted, nothing is timed",
        "ratio": max(ratios),
        "spread": [min(ratios), max(ratios)],
        "goal": f"<= {GOAL}",
        "limit_share": round(1 / max(ratios), 4),  # the limit is one row read for each row used
        "command": "python benchmarks/read_amplification.py",
        "curated": ours,
        "as_they_come": [row for row in rows if row["kind"] != "curated"],
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    verdict = "met" if max(ratios) <= GOAL else "MISSED"
    print(f"\ncurated folders read at most {max(ratios):.3f} rows for each row used; goal {result['goal']}: {verdict}")


if __name__ == "__main__":
    main()
