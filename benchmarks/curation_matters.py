"""What curation is worth: encoders trained on pools full of copies, and scores lifted by leaks, each raw and screened.

    python benchmarks/curation_matters.py           # some 20 minutes of one core; goes on where it was interrupted
    python benchmarks/curation_matters.py --quick   # a minute or two: one seed, few steps; tells whether it works, no more

Duplicates: of a pool of fixed size, 0, 20 or 50 % are changed copies, which fall on few pictures as in crawls (Zipf). DINOv2
without iBOT trains a small ResNet on it, raw and under the keep-mask of `screen`, the same number of steps. (A ViT learns
nothing from real images in a minute of one core.) Bank and queries of k-NN are clean and the same for all, so only the encoder
differs. Leaks: changed copies of 5, 20 or 50 % of the queries stand in the training split with their labels; it is the bank,
as it comes, screened against the queries, and without ever having had a leak.

Every finished piece is a line under runs/curation_matters/. Real images are looked for in RAYDINO_DATA, else in ../shared/data.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the same sums, in the same order, on every machine
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))

import numpy as np
import torch
from presets import DINOV2
from safetensors.torch import load_file, save_file

from planted.images import POPULAR, Clean, changed, clean, curated, names, pool_with_copies, write
from planted.picture import BANKS, draw
from raydino.data.batches import batches
from raydino.data.fetch import local_windows
from raydino.data.plan import Plan
from raydino.evals.config import KNNConfig
from raydino.evals.evaluation import Labelled
from raydino.evals.images import ImageSet
from raydino.evals.knn import KNN, pixels_knn
from raydino.keyed import generator, key64
from raydino.launch.cluster import ClusterConfig
from raydino.launch.workers.worker import build_loop
from raydino.recipe import Recipe
from raydino.schedule import cosine
from raydino.shards.reader import Collection, open_collection
from raydino.train.steps import Loop, training_steps

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "curation_matters.json"
PICTURE = ROOT / "docs" / "curation_matters.png"
DUPLICATES, LEAKS = (0.0, 0.2, 0.5), (0.05, 0.2, 0.5)
ARMS = [(share, screened) for share in DUPLICATES for screened in (False, True) if share or not screened]
SIDE = 32
LEFT = 0.005  # top-1 that leaks may still add after screening: half a standard error of 2,000 queries


class Size(NamedTuple):
    """How much is done."""

    seeds: int = 3
    pool: int = 1500  # half of it fits a dozen times into the images seen, so a lack of pictures can be felt
    bank: int = 4000
    queries: int = 4000
    leak_queries: int = 2000  # half of them are planted at most, a fifth of the bank then
    steps: int = 80
    looks: int = 4  # k-NN while it trains, the last one included

    @property
    def recipe(self) -> Recipe:
        """What every encoder is trained with; the teacher's memory of 10 to 100 steps fits so short a run."""
        changes = {
            "steps": self.steps,
            "backbone": {"name": "test_resnet", "patch_size": 32, "width": None, "depth": None, "heads": None},
            "method.ibot_weight": 0.0,
            "method.local_crops.count": 0,
            "method.teacher_momentum": cosine(0.9, 0.99),
            "optim.lr": 4e-3,
        }
        return DINOV2["cifar-cpu"].override(changes)


QUICK = Size(seeds=1, pool=400, bank=1000, queries=500, leak_queries=500, steps=8, looks=1)


def labelled(bank: ImageSet, queries: ImageSet) -> Labelled:
    return Labelled(bank, queries, tuple(str(label) for label in range(10)))


def image_set(collection: Collection, rows: np.ndarray) -> ImageSet:
    return ImageSet(collection, rows, collection.labels()[rows], size=SIDE)


# ---------------------------------------------------------------- duplicates


def train(recipe: Recipe, pool: Collection, keep: np.ndarray | None, look: Callable[[int, Loop], None]) -> Loop:
    """The whole chain but Ray, on one thread; `look` is called before the first step and after each."""
    loop = build_loop(recipe, ClusterConfig(), torch.device("cpu"))
    torch.set_num_threads(1)
    plan = Plan(
        pool.row_groups,
        seed=recipe.seed,
        global_batch=recipe.global_batch,
        lanes=recipe.lanes,
        window=recipe.data.window,
        keep=keep,
    )
    stream = batches(
        pool,
        plan,
        recipe.views,
        seed=recipe.seed,
        rank=0,
        world=1,
        start_step=0,
        steps=recipe.steps,
        max_bad=0.0,
        on_bad=lambda _: None,
        read=local_windows,
    )
    look(0, loop)
    for report in training_steps(loop, stream):
        look(report.step + 1, loop)
    return loop


def duplicates(size: Size, images: Clean, judged: Labelled, scratch: Path, work: Path, *, key: dict) -> dict[str, Any]:
    """One encoder: of a seed, a share of copies, screened or not."""
    seed, share, screened = key["seed"], key["share"], key["screened"]
    pool = curated(scratch, pool_with_copies(images.pools[seed], share, seed))
    keep = pool.keep()
    assert keep is not None
    recipe, curve = size.recipe.override({"seed": seed}), []

    def look(step: int, loop: Loop) -> None:
        if step % (recipe.steps // size.looks) == 0:
            top1 = KNN(KNNConfig()).run(loop.method.encoder(), judged)["top1"]
            curve.append([step * recipe.global_batch, round(top1, 5)])

    loop = train(recipe, pool, keep if screened else None, look)
    if share == 0:
        save_file(loop.method.encoder().state_dict(), work / f"encoder-{seed}.safetensors")
    seen = names(pool)[keep] if screened else names(pool)
    shown = {name.rpartition(":")[2] for name in seen}  # of each picture one is to stay, be it a copy
    return {"images": len(seen), "different_pictures": len(shown), "knn": curve}


# ---------------------------------------------------------------- leaks


def leaks(size: Size, images: Clean, scratch: Path, work: Path, *, key: dict) -> dict[str, Any]:
    """Scores with the bank as it comes, screened, and never leaked; of raw pixels and of the seed's encoder."""
    seed, share = key["seed"], key["leaked"]
    rng, queries = generator(seed, "leaks", str(share)), images.queries[: size.leak_queries]
    chosen = rng.permutation(len(queries))[: round(share * len(queries))]
    planted = [changed(queries[place], f"leak/{place}", rng) for place in chosen]
    bank = [*images.bank, *planted]
    found = curated(scratch, [bank[place] for place in rng.permutation(len(bank))], queries)
    keep, leak = found.keep(), np.char.startswith(names(found), "leak/")
    assert keep is not None
    loop = build_loop(size.recipe.override({"seed": seed}), ClusterConfig(), torch.device("cpu"))
    encoder = loop.method.encoder()
    encoder.load_state_dict(load_file(work / f"encoder-{seed}.safetensors"))
    asked = image_set(open_collection(str(scratch / "queries")), np.arange(len(queries)))
    scores: dict[str, Any] = {"pixels": {}, "encoder": {}}
    for name, rows in zip(BANKS, (np.ones_like(keep), keep, ~leak), strict=True):
        judged = labelled(image_set(found, np.flatnonzero(rows)), asked)
        scores["pixels"][name] = round(pixels_knn(judged)["top1"], 5)
        scores["encoder"][name] = round(KNN(KNNConfig()).run(encoder, judged)["top1"], 5)
    caught, innocent = int((leak & ~keep).sum()), int((~leak & ~keep).sum())
    return {"leaks": int(leak.sum()), "caught": caught, "innocent_dropped": innocent, **scores}


# ---------------------------------------------------------------- pieces, figures, picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed and few steps; writes no result")
    size = QUICK if parser.parse_args().quick else Size()
    data = Path(os.environ.get("RAYDINO_DATA") or ROOT.parent / "shared" / "data")
    settings = key64(0, repr(size), size.recipe.fingerprint(), POPULAR, repr((DUPLICATES, LEAKS)))
    work = ROOT / "runs" / "curation_matters" / f"{settings:016x}"
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        done = pieces(size, data, Path(scratch), work)
    pools, banks = pool_figures(done), bank_figures(done)
    table(pools, banks)
    if size != QUICK:
        save(size, done, pools, banks)
        draw(pools, banks, PICTURE)


def pieces(size: Size, data: Path, scratch: Path, work: Path) -> list[dict[str, Any]]:
    """All pieces, those of an earlier call from their lines."""
    file, seeds = work / "pieces.jsonl", range(size.seeds)
    done = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    wanted: list[dict[str, Any]] = [{"pixels": "clean"}]
    wanted += [{"seed": seed, "share": share, "screened": yes} for seed in seeds for share, yes in ARMS]
    wanted += [{"seed": seed, "leaked": share} for seed in seeds for share in LEAKS]
    if not (todo := [key for key in wanted if not any(key.items() <= one.items() for one in done)]):
        return done
    images = clean(data, scratch, pools=size.seeds, pool=size.pool, bank=size.bank, queries=size.queries)
    sets = (write(scratch / name, name, part) for name, part in (("train", images.bank), ("test", images.queries)))
    judged = labelled(*(image_set(part, np.arange(len(part))) for part in map(open_collection, sets)))
    for number, key in enumerate(todo):
        place = scratch / str(number)
        if "leaked" in key:
            found = leaks(size, images, place, work, key=key)
        elif "share" in key:
            found = duplicates(size, images, judged, place, work, key=key)
        else:
            found = {"top1": round(pixels_knn(judged)["top1"], 5)}
        done.append({**key, **found})
        with file.open("a") as lines:
            lines.write(json.dumps(done[-1]) + "\n")
        print(json.dumps(done[-1]), flush=True)
    return done


def pool_figures(done: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By share of copies, raw and screened: k-NN against images seen, over seeds, and what screening gains on each seed."""
    rows, last = [], {(one["seed"], one["share"], one["screened"]): one["knn"][-1][1] for one in done if "share" in one}
    for share, yes in ARMS:
        mine = [one for one in done if (one.get("share"), one.get("screened")) == (share, yes)]
        curves = np.array([one["knn"] for one in mine])  # [seeds, looks, 2]
        seeds, end = [one["seed"] for one in mine], curves[:, -1, 1]
        row = {"copies": share, "screened": yes, "images_seen": [int(n) for n in curves[0, :, 0]]}
        row |= {key: round(float(np.mean([one[key] for one in mine])), 1) for key in ("images", "different_pictures")}
        row |= {"top1": summary(end), "curve": [summary(look) for look in curves[:, :, 1].T]}
        if yes:
            row["gain"] = [round(last[seed, share, True] - last[seed, share, False], 5) for seed in seeds]
            row["ratio"] = [round(last[seed, share, True] / last[seed, share, False], 4) for seed in seeds]
        rows.append(row)
    return rows


def bank_figures(done: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By share of queries leaked: k-NN with each bank, what the leak adds, and what is left of that after screening."""
    rows = []
    for share in LEAKS:
        mine = [one for one in done if one.get("leaked") == share]
        planted, caught = (sum(one[key] for one in mine) for key in ("leaks", "caught"))
        innocent = [one["innocent_dropped"] for one in mine]
        row: dict[str, Any] = {"leaked": share, "recall": round(caught / planted, 5), "innocent_dropped": innocent}
        for kind in ("pixels", "encoder"):
            scores = {bank: np.array([one[kind][bank] for one in mine]) for bank in BANKS}
            row[kind] = {bank: summary(values) for bank, values in scores.items()}
            row[kind]["added_by_leaks"] = summary(scores["leaky"] - scores["never_leaked"])
            row[kind]["left_after_screening"] = summary(scores["screened"] - scores["never_leaked"])
        rows.append(row)
    return rows


def summary(values: np.ndarray) -> list[float]:
    """Mean, least, most."""
    return [round(float(value), 5) for value in (values.mean(), values.min(), values.max())]


def table(pools: list[dict[str, Any]], banks: list[dict[str, Any]]) -> None:
    print(f"\n{'copies':>7}{'':>10}{'images':>8}{'pictures':>10}   untrained   top-1 (least, most)        gain by seed")
    for row in pools:
        name, gain = "screened" if row["screened"] else "raw", " ".join(f"{x:+.4f}" for x in row.get("gain", []))
        mean, least, most = row["top1"]
        print(
            f"{row['copies']:>7.0%}{name:>10}{row['images']:>8.0f}{row['different_pictures']:>10.0f}{row['curve'][0][0]:>12.4f}"
            f"   {mean:.4f} ({least:.4f}, {most:.4f})    {gain}"
        )
    print(f"\n{'leaked':>7}{'recall':>8}{'innocent':>10}{'':>9}{'leaky':>9}{'screened':>10}{'never leaked':>14}")
    for row in banks:
        for kind in ("pixels", "encoder"):
            scores = "".join(f"{row[kind][bank][0]:>{wide}.4f}" for bank, wide in zip(BANKS, (9, 10, 14), strict=True))
            print(f"{row['leaked']:>7.0%}{row['recall']:>8.3f}{sum(row['innocent_dropped']):>10}{kind:>9}{scores}")


def save(size: Size, done: list[dict[str, Any]], pools: list[dict[str, Any]], banks: list[dict[str, Any]]) -> None:
    """The ratio is k-NN with a screened pool over k-NN with the raw one, at the largest share of copies; the limit is a pool
    without copies."""
    worst = pools[-1]
    left = max(abs(x) for row in banks for kind in ("pixels", "encoder") for x in row[kind]["left_after_screening"])
    goals = {"> 1 on every seed": min(worst["ratio"]) > 1, f"banks within {LEFT} of never leaked": left <= LEFT}
    result = {
        "name": "curation_matters",
        "device": "CPU, one thread",
        "ratio": round(float(np.mean(worst["ratio"])), 4),
        "spread": [min(worst["ratio"]), max(worst["ratio"])],
        "goal": "; ".join(goals),
        "missed": [goal for goal, met in goals.items() if not met],
        "limit_share": round(worst["top1"][0] / pools[0]["top1"][0], 4),
        "command": "python benchmarks/curation_matters.py",
        **size._asdict(),
        "batch": size.recipe.global_batch,
        "raw_pixels": next(one["top1"] for one in done if "pixels" in one and "top1" in one),
        "mean_least_most": {"duplicates": pools, "leaks": banks},
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
