"""What cutting all views of a photograph costs a core: raydino's exact and fast way beside the official pipelines.

    python benchmarks/crops.py              # five minutes of one core
    python benchmarks/crops.py --images 16

Sides, each from the bytes of a JPEG to two crops of 224 and eight of 96 pixels, with DINOv2's published settings: DINO's and
DINOv2's pipelines written down again from the papers' settings with torchvision (on PIL, fp32 out, as published), an
albumentations `Compose` per crop (uint8 out), and raydino's two. All take turns on the same photographs in one process and one
thread; CPU time. Images are the photographs of imagenet-sample (RAYDINO_DATA, else ../shared/data).

Voided unless the statistics agree: over all crops the mean, the deviation, and the energy of the gradients of both ways.
"""

import argparse
import io
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import albumentations as A
import cv2
import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from torchvision import transforms as T

from raydino.data.crops import Cropper
from raydino.data.decode import decode
from raydino.methods.config import DINOv2Config
from raydino.nn.config import BackboneConfig
from raydino.shards.reader import open_collection

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "crops.json"
DATA = Path(os.environ.get("RAYDINO_DATA") or ROOT.parent / "shared" / "data")
GOALS = {"fast over DINOv2's": 10.0, "fast over albumentations": 1.8, "exact over DINOv2's": 4.0}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Side = Callable[[bytes, int], Any]


class PilBlur:
    """DINO's blur: PIL's, of a random radius."""

    def __call__(self, image: Image.Image) -> Image.Image:
        """The image, blurred."""
        return image.filter(ImageFilter.GaussianBlur(float(torch.empty(1).uniform_(0.1, 2.0))))


def official(*, size: int, scale: tuple[float, float], blur: float, solarize: float, pil_blur: bool) -> T.Compose:
    """One crop as the papers' settings have it, in torchvision on PIL images."""
    blurring = PilBlur() if pil_blur else T.GaussianBlur(9, (0.1, 2.0))
    return T.Compose(
        [
            T.RandomResizedCrop(size, scale=scale, interpolation=T.InterpolationMode.BICUBIC),
            T.RandomHorizontalFlip(0.5),
            T.RandomApply([T.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            T.RandomGrayscale(0.2),
            T.RandomApply([blurring], p=blur),
            *([T.Lambda(lambda image: ImageOps.solarize(image))] if solarize == 1 else []),
            *([T.RandomSolarize(128, solarize)] if 0 < solarize < 1 else []),
            T.ToTensor(),
            T.Normalize(MEAN, STD),
        ]
    )


def torchvision_side(*, global_scale: tuple[float, float], local_scale: tuple[float, float], pil_blur: bool) -> Side:
    views = [
        official(size=224, scale=global_scale, blur=1.0, solarize=0.0, pil_blur=pil_blur),
        official(size=224, scale=global_scale, blur=0.1, solarize=0.2, pil_blur=pil_blur),
        *[official(size=96, scale=local_scale, blur=0.5, solarize=0.0, pil_blur=pil_blur)] * 8,
    ]

    def cut(data: bytes, _: int) -> Any:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        return [view(image) for view in views]

    return cut


def albumentations_side() -> Side:
    def one(size: int, scale: tuple[float, float], blur: float, solarize: float) -> A.Compose:
        return A.Compose(
            [
                A.RandomResizedCrop((size, size), scale=scale, interpolation=cv2.INTER_CUBIC),
                A.HorizontalFlip(p=0.5),
                A.ColorJitter((0.6, 1.4), (0.6, 1.4), (0.8, 1.2), (-0.1, 0.1), p=0.8),
                A.ToGray(p=0.2),
                A.GaussianBlur(blur_limit=9, sigma_limit=(0.1, 2.0), p=blur),
                A.Solarize((0.5, 0.5), p=solarize),
            ]
        )

    views = [
        one(224, (0.32, 1.0), 1.0, 0.0),
        one(224, (0.32, 1.0), 0.1, 0.2),
        *[one(96, (0.05, 0.32), 0.5, 0.0)] * 8,
    ]

    def cut(data: bytes, _: int) -> Any:
        image = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        return [view(image=image)["image"].transpose(2, 0, 1).copy() for view in views]

    return cut


def our_side(*, fast: bool) -> Side:
    views = DINOv2Config(blur="paper").views(BackboneConfig(patch_size=16)).override({"fast_crops": fast})
    cropper = Cropper(views, seed=0)

    def cut(data: bytes, number: int) -> Any:
        image = decode(data, least=cropper.least)
        return cropper(image, epoch=number, sample=b"benchmark")

    return cut


def decode_side(data: bytes, _: int) -> Any:
    """The floor: the JPEG decoded and nothing else."""
    return decode(data)


def timed(sides: dict[str, Side], photographs: list[bytes], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of CPU per image and round, the sides taking turns."""
    spent: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():  # warm
        side(photographs[0], 0)
    for turn in range(rounds):
        for name, side in sides.items():
            begun = time.process_time()
            for data in photographs:
                side(data, turn)
            spent[name].append(1000 * (time.process_time() - begun) / len(photographs))
    return spent


def statistics(side: Side, photographs: list[bytes], draws: int) -> dict[str, list[float]]:
    """Of each group of crops: mean, deviation, and mean size of the horizontal and vertical gradients, in grey levels."""
    sums: dict[str, list[list[float]]] = {}
    for number in range(draws):
        for data in photographs:
            for name, crops in side(data, number).items():
                values = crops.astype(np.float32)
                gradient = np.abs(np.diff(values, axis=-1)).mean() + np.abs(np.diff(values, axis=-2)).mean()
                sums.setdefault(name, []).append([values.mean(), values.std(axis=(1, 2, 3)).mean(), gradient])
    return {name: [float(x) for x in np.mean(rows, axis=0)] for name, rows in sums.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    rows = open_collection(str(DATA / "imagenet-sample"), split="train").read(0)
    photographs = [row for row in rows["bytes"].to_pylist() if row[:2] == b"\xff\xd8"][: arguments.images]
    sides = {
        "DINO's": torchvision_side(global_scale=(0.4, 1.0), local_scale=(0.05, 0.4), pil_blur=True),
        "DINOv2's": torchvision_side(global_scale=(0.32, 1.0), local_scale=(0.05, 0.32), pil_blur=False),
        "albumentations": albumentations_side(),
        "exact": our_side(fast=False),
        "fast": our_side(fast=True),
        "decode alone": decode_side,
    }
    exact, fast = (statistics(sides[name], photographs, draws=4) for name in ("exact", "fast"))
    for group in exact:
        apart = [abs(b / a - 1) for a, b in zip(exact[group], fast[group], strict=True)]
        print(f"{group}: exact {exact[group]}, fast {fast[group]}")
        assert apart[0] < 0.02 and apart[1] < 0.03 and apart[2] < 0.10, f"{group}: {apart}"
    spent = timed(sides, photographs, arguments.rounds)
    table = {name: median(values) for name, values in spent.items()}
    for name, value in table.items():
        print(f"{name:16s} {value:7.2f} ms  {1000 / value:7.0f} images/s and core")
    pairs = {
        "fast over DINOv2's": ("DINOv2's", "fast"),
        "fast over albumentations": ("albumentations", "fast"),
        "exact over DINOv2's": ("DINOv2's", "exact"),
    }
    ratios = {
        name: sorted(a / b for a, b in zip(spent[slow], spent[quick], strict=True))
        for name, (slow, quick) in pairs.items()
    }
    report = {
        "name": "crops",
        "device": f"one core of {os.cpu_count()}",
        "ratio": round(median(ratios["fast over DINOv2's"]), 2),
        "spread": [round(ratios["fast over DINOv2's"][0], 2), round(ratios["fast over DINOv2's"][-1], 2)],
        "goal": GOALS,
        "ratios": {
            name: [round(x, 2) for x in (median(values), values[0], values[-1])] for name, values in ratios.items()
        },
        "missed": [name for name, goal in GOALS.items() if median(ratios[name]) < goal],
        "limit_share": round(table["decode alone"] / table["fast"], 3),
        "command": "python benchmarks/crops.py",
        "milliseconds_an_image": {name: round(value, 3) for name, value in table.items()},
        "statistics": {"exact": exact, "fast": fast},
        "images": len(photographs),
    }
    RESULT.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report["ratios"]), "missed:", report["missed"])


if __name__ == "__main__":
    main()
