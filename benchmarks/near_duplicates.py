"""How well copies are found and what else is taken for one: recall for each change, precision, the better copy, speed, memory.

    python benchmarks/near_duplicates.py                # about ten minutes of one core; --photos 60 for a first look
    pip install --no-deps --target peers imagededup cleanvision ImageHash PyWavelets pdqhash; PYTHONPATH=peers python ...

Each photograph is changed in each way of copies/changes.py and written as a file. Our side sees all of them, through the doors
that a user's images go through; the peers and we again see one folder: some of the photographs with all their copies, and hard
negatives. A pair of an original and its copy counts as found; a pair of different pictures as false. Speed is measured in one
process and thread, methods taking turns, decoding included; memory in a process for each. Real images are looked for in
RAYDINO_DATA, else in ../shared/data.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from copies.changes import CHANGES, WORSE, Photo, write
from copies.measure import known, outcome, removed
from copies.peers import METHODS, single_threaded, speeds, version
from copies.photos import Pictures, negatives, photographs, spread

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "near_duplicates.json"
PRECISION_GOAL = 0.999  # of pairs
BEST_GOAL = 0.99  # mean over the changes that make a plainly worse copy
SPEED_GOAL = 600  # photographs of 500 × 375 a second and core
SAME_CLASS = 300  # of the first classes, in the shared folder: all of them take CleanVision and others minutes
TIMED, ROUNDS = 40, 5
WHY = {
    "border": "a border moves the picture off the centre crops that are hashed",
    "crop": "crops off the centre meet no key; 64 bits are coarser and forgive them, and join different pictures for it",
    "text_bar": "the second look compares whole thumbnails, which the bar spoils",
    "meme": "the second look compares whole thumbnails, which the text spoils",
    "screenshot": "a frame moves the picture off the centre crops that are hashed",
    "rotate": "rotation moves the borders most; the second look compares thumbnails as they lie",
    "less_contrast": "the copy is so flat that it is not compared",
    "darker": "the copy is so flat that it is not compared",
    "brighter": "much of the copy is white; what is left lies further away or fails the second look",
    "logo": "where there is little to see the block is most of it, for the hash and for the second look",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=1030, help="photographs that are changed; 1,030 are there")
    parser.add_argument("--beside", type=int, default=120, help="of these, how many the peers see")
    parser.add_argument("--out", type=Path, default=RESULT, help="where the figures are written")
    options = parser.parse_args()
    data = Path(os.environ.get("RAYDINO_DATA") or ROOT.parent / "shared" / "data")
    single_threaded()
    pictures, others = photographs(data, options.photos), negatives(data)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "images"
        folder.mkdir()
        rows = changed(pictures, folder, spread(len(pictures), options.beside))
        hard = [removed(one) for one in others]
        for one in hard:
            print(f"{one['set']}: {one['false']} false pairs, {one['over_removal']:.2%} of {one['pictures']} removed")
        groups = written(others, folder) | {file.name: _group(file.name, pictures) for file in folder.glob("p*")}
        beside = {name: run(name, folder, Path(scratch), groups) for name in METHODS}
        timed = sorted(folder.glob("p*-original.jpg"))[:TIMED]  # imagenet-sample comes first
        rates = speeds(timed, rounds=ROUNDS)
    for name, rounds in rates.items():
        beside[name] |= {
            "images_a_second": round(float(np.median(rounds)), 1),
            "rounds": [round(rate, 1) for rate in rounds],
        }
    save(options.out, rows, hard, beside, photos=len(pictures), shared=len(groups))


def changed(pictures: Pictures, folder: Path, shown: list[int]) -> list[dict[str, Any]]:
    """A row for each change; the copies of the photographs `shown` go into `folder`, and the originals with them."""
    photos = [Photo.of(data) for data in pictures.files]
    originals, group, rows = known(pictures.files), np.array(pictures.groups), []
    for number in shown:
        write(folder, f"p{number:04d}-original", pictures.files[number])
    for name, change in CHANGES.items():
        started = time.process_time()
        files = change.files(name, photos)
        for number in shown:
            write(folder, f"p{number:04d}-{name}", files[number])
        row = {
            "change": name,
            "goal": change.goal,
            **outcome(originals, known(files), group, files=(pictures.files, files)),
        }
        row["cpu_seconds"] = round(time.process_time() - started, 1)
        rows.append(row)
        print(
            f"{name:22} found {row['found']:.3f}  original kept {row['original']:.3f}  or an equal {row['unharmed']:.3f}"
            f"  false {row['false']}",
            flush=True,
        )
    return rows


def written(others: list[Pictures], folder: Path) -> dict[str, str]:
    """The groups of the hard negatives by file name, once they lie in `folder`."""
    groups = {}
    for number, pictures in enumerate(others):
        for row in range(len(pictures))[:SAME_CLASS]:
            write(folder, stem := f"n{number}-{row:04d}", pictures.files[row])
            groups[next(folder.glob(f"{stem}.*")).name] = pictures.groups[row]
    return groups


def _group(name: str, pictures: Pictures) -> str:
    return pictures.groups[int(name[1:5])]


def run(name: str, folder: Path, scratch: Path, groups: dict[str, str]) -> dict[str, Any]:
    """What one method makes of the folder, in a process of its own."""
    if (reason := METHODS[name].missing()) is not None:
        print(f"{name}: {reason}")
        return {"rule": METHODS[name].rule, "missing": reason}
    out = scratch / "pairs.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "copies" / "peers.py"), name, str(folder), str(out)]
    ended = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if ended.returncode:
        sys.exit(f"{name} failed: {ended.stderr[-2000:]}")
    found = json.loads(out.read_text())
    pairs = {tuple(pair) for pair in found.pop("pairs")}
    false = [pair for pair in pairs if groups[pair[0]] != groups[pair[1]]]
    copies: dict[str, list[bool]] = {change: [] for change in CHANGES}
    for original in folder.glob("p*-original.*"):
        for copy in folder.glob(f"{original.name[:5]}-*"):
            if copy != original:
                copies[copy.stem[6:]].append(tuple(sorted((original.name, copy.name))) in pairs)
    hit = {image for pair in false for image in pair if image.startswith("n")}
    of_negatives = sum(pair[0].startswith("n") and pair[1].startswith("n") for pair in false)
    of_16_bits = sum(
        "grey_16_bits" in pair[0] and "grey_16_bits" in pair[1] for pair in false
    )  # white, read without care
    result = {
        "rule": METHODS[name].rule,
        "version": version(METHODS[name].package),
        "pairs": len(pairs),
        "false_pairs": len(false),
        "false_of": {
            "hard negatives": of_negatives,
            "16-bit files": of_16_bits,
            "others": len(false) - of_negatives - of_16_bits,
        },
        "precision": 1 - len(false) / max(1, len(pairs)),
        "negatives_hit": len(hit) / sum(image.startswith("n") for image in groups),
        "recall": {change: float(np.mean(met)) for change, met in copies.items()},
        **{key: round(value, 1) for key, value in found.items()},
    }
    result["mean_recall"] = float(np.mean(list(result["recall"].values())))
    print(
        f"{name:18} mean recall {result['mean_recall']:.3f}  precision {result['precision']:.5f}  {len(false)} false pairs"
        f"  {result['cpu_seconds']:.0f} s  {result['peak_mb']:.0f} MB",
        flush=True,
    )
    return result


def ahead(beside: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Where a peer finds more copies of the same folder than we do, or is faster or smaller; each with what it costs or why."""
    ours, peers = (
        beside["raydino"],
        {name: one for name, one in beside.items() if name != "raydino" and "missing" not in one},
    )
    out = []
    for change, recall in ours["recall"].items():
        better = {name: one["recall"][change] for name, one in peers.items() if one["recall"][change] > recall}
        why = next((reason for part, reason in WHY.items() if part in change), "not known")
        if better:
            cost = {name: peers[name]["false_pairs"] for name in better}
            out.append({"row": change, "ours": recall, "peers": better, "their_false_pairs": cost, "why": why})
    for key, sign in (("precision", 1), ("images_a_second", 1), ("peak_mb", -1)):
        better = {name: one[key] for name, one in peers.items() if sign * one[key] > sign * ours[key]}
        if better:
            out.append({"row": key, "ours": ours[key], "peers": better})
    return out


def save(out: Path, rows: list[dict], hard: list[dict], beside: dict[str, dict], *, photos: int, shared: int) -> None:
    """The figures as JSON; `ratio` is our mean recall on the shared folder over that of the best peer there."""
    precision = 1 - sum(row["false"] for row in rows) / max(1, sum(row["pairs"] for row in rows))
    missed = [row["change"] for row in rows if row["goal"] is not None and row["found"] < row["goal"]]
    missed += ["precision"] * (precision < PRECISION_GOAL)
    missed += ["equal pixels"] * any(row["equal_false"] or (row["goal"] == 1 and row["equal"] < 1) for row in rows)
    unharmed = float(np.mean([row["unharmed"] for row in rows if row["change"] in WORSE]))
    missed += ["best copy"] * (unharmed < BEST_GOAL)
    missed += ["images a second"] * (beside["raydino"]["images_a_second"] < SPEED_GOAL)
    peers = {name: one["mean_recall"] for name, one in beside.items() if name != "raydino" and "missing" not in one}
    best = max(peers, key=peers.__getitem__, default=None)
    behind = ahead(beside)
    for row in behind:
        print("a peer is ahead:", json.dumps(row))
    result = {
        "name": "near_duplicates",
        "device": "CPU, one thread",
        "ratio": None if best is None else round(beside["raydino"]["mean_recall"] / peers[best], 3),
        "ratio_to": best,
        "spread": [round(min(row["found"] for row in rows), 3), round(max(row["found"] for row in rows), 3)],
        "goal": "equal pixels always; recall 0.995 on plain changes, 0.95 on crops of 5 %, 0.90 on logos of 3 %; precision 0.999",
        "missed": missed,
        "limit_share": float(np.mean([row["found"] for row in rows])),
        "command": "python benchmarks/near_duplicates.py",
        "photos": photos,
        "precision": precision,
        "best_copy": unharmed,
        "changes": rows,
        "hard_negatives": hard,
        "shared_folder": shared,
        "beside": beside,
        "a_peer_is_ahead": behind,
    }
    table(rows, beside)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{out}; goals missed: {', '.join(missed) or 'none'}")


def table(rows: list[dict], beside: dict[str, dict]) -> None:
    """As it stands in docs/curation.md."""
    names = [name for name, one in beside.items() if "missing" not in one]
    lines = [["change", "goal", "recall", *names, "original kept", "or an equal"], ["---"] * (5 + len(names))]
    for row in rows:
        shared = [f"{beside[name]['recall'][row['change']]:.3f}" for name in names]
        goal = "" if row["goal"] is None else f"{row['goal']:g}"
        lines.append(
            [row["change"], goal, f"{row['found']:.3f}", *shared, f"{row['original']:.2f}", f"{row['unharmed']:.2f}"]
        )
    for key, label in (
        ("mean_recall", "mean recall"),
        ("precision", "precision"),
        ("images_a_second", "images a second"),
        ("peak_mb", "peak memory, MB"),
    ):
        lines.append([label, "", "", *(f"{beside[name][key]:.5g}" for name in names), "", ""])
    for kind in beside[names[0]]["false_of"]:
        lines.append([f"false pairs, {kind}", "", "", *(str(beside[name]["false_of"][kind]) for name in names), "", ""])
    print("\n".join(f"| {' | '.join(line)} |" for line in lines))


if __name__ == "__main__":
    main()
