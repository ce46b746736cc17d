"""Plain Ray Train as its guide shows it, beside raydino in recovery.py. As a script: the driver of a run in a folder."""

import hashlib
import io
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

STEPS, EVERY = 24, 3
PAUSE = 0.3  # seconds that every step lasts at least


def main(folder: Path) -> None:
    """The command of plain Ray Train."""
    import ray

    variables = {name: os.environ[name] for name in ("RAYDINO_AUDIT",)} | {"OMP_NUM_THREADS": "1"}
    ray.init(num_cpus=3, object_store_memory=600 * 2**20, include_dashboard=False, runtime_env={"env_vars": variables})
    train(folder, folder / "images", cpus=0.5)


def train(folder: Path, images: Path, *, cpus: float = 2) -> None:
    """Two workers of plain Ray Train on the Ray that is running; the name makes Ray take up what is there."""
    import ray
    import ray.data
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    if __name__ != "__main__":  # Ray's processes cannot import a module of another folder
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    files = [str(path) for path in sorted((images / "data").glob("train-*.parquet"))]
    data = ray.data.read_parquet(files, columns=["image"]).map_batches(decode, batch_format="pandas", num_cpus=0.25)
    TorchTrainer(
        loop,
        train_loop_config={"audit": str(folder / "audit")},
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": cpus}),
        run_config=RunConfig(
            name="plain", storage_path=str(folder / "ray"), failure_config=FailureConfig(max_failures=3)
        ),
        datasets={"train": data},
    ).fit()


def decode(batch: Any) -> dict[str, Any]:
    """Pixels [N, 3, 32, 32] and ids of encoded images."""
    import numpy as np
    from PIL import Image

    encoded = [row["bytes"] for row in batch["image"]]
    pictures = [Image.open(io.BytesIO(data)).convert("RGB").resize((32, 32)) for data in encoded]
    pixels = np.stack([np.asarray(picture, dtype=np.float32).transpose(2, 0, 1) / 255 for picture in pictures])
    return {"pixels": pixels, "id": np.array([hashlib.sha256(data).hexdigest()[:32] for data in encoded])}


def loop(config: dict[str, Any]) -> None:
    """What Ray's guide shows, with a line per step beside it."""
    import ray.train
    import torch
    from ray.train.torch import prepare_model

    rank, folder = ray.train.get_context().get_world_rank(), Path(config["audit"])
    folder.mkdir(parents=True, exist_ok=True)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 64), torch.nn.Linear(64, 64))
    model, step, epoch = prepare_model(network), 0, 0
    optimizer = torch.optim.AdamW(model.parameters())
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as saved:
            state = torch.load(Path(saved, "state.pt"))
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, epoch = state["step"], state["epoch"]

    def write(line: dict[str, Any]) -> None:
        with (folder / f"rank-{rank}.jsonl").open("a") as table:
            table.write(json.dumps({**line, "pid": os.getpid()}) + "\n")

    write({"begin": step, "world": 2})
    shard = ray.train.get_dataset_shard("train")
    while step < STEPS:
        for batch in shard.iter_torch_batches(batch_size=8, drop_last=True, collate_fn=lambda batch: batch):
            loss = model(torch.as_tensor(batch["pixels"].copy())).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            time.sleep(PAUSE)
            write({"step": step, "epoch": epoch, "ids": [str(name) for name in batch["id"]]})
            step += 1
            if step % EVERY == 0:
                save(model, optimizer, step, epoch, rank)
            if step == STEPS:
                break
        epoch += 1


def save(model: Any, optimizer: Any, step: int, epoch: int, rank: int) -> None:
    """torch.save into a folder for ray.train.report; every rank calls it."""
    import ray.train
    import torch

    with tempfile.TemporaryDirectory() as place:
        if rank == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "epoch": epoch}
            torch.save(state, Path(place, "state.pt"))
            checkpoint = ray.train.Checkpoint.from_directory(place)
            ray.train.report({"step": step}, checkpoint=checkpoint)
        else:
            ray.train.report({"step": step})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
