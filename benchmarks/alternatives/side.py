"""One side of peers.py in a process of its own: trains a block whenever a line arrives on stdin, and rests in between.

python side.py SIDE SETTING FOLDER DATA WORKERS
"""

import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from alternatives.setting import SETTINGS


def main(side: str, setting_name: str, folder: str, data: str, workers: str) -> None:
    told = os.fdopen(os.dup(1), "w")  # libraries print to stdout
    os.dup2(2, 1)
    setting = SETTINGS[setting_name]
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if side.startswith("raydino"):
        from alternatives import ours

        cluster = ours.OWN_CHOICE if "own precision" in side else ours.CLUSTER
        losses = ours.train(setting, data, fast="fast crops" in side, cluster=cluster)
    elif side == "plain torch":
        from alternatives import plain

        losses = plain.train(setting, Path(folder), workers=int(workers))
    else:
        from alternatives import lightly_dino

        losses = lightly_dino.train(setting, Path(folder), workers=int(workers))
    loss = next(losses)
    print(json.dumps({"loss": loss}), file=told, flush=True)
    for line in sys.stdin:
        if line.strip() == "end":
            break
        for _ in range(setting.settle):
            loss = next(losses)
        begun = time.perf_counter()
        for _ in range(setting.timed):
            loss = next(losses)
        rate = setting.timed * setting.images / (time.perf_counter() - begun)
        images = (setting.settle + setting.timed) * setting.images
        print(json.dumps({"images_per_second": rate, "images": images, "loss": loss}), file=told, flush=True)
    losses.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
