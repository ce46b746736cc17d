"""What cutting all views of a photograph costs a core: raydino's ways beside the official pipelines.

    python benchmarks/crops.py              # five minutes of one core
    python benchmarks/crops.py --images 16
    python benchmarks/crops.py --colour cuda            # what the third way leaves to the device, alone; or cpu

Sides, each from the bytes of a JPEG to two crops of 224 and eight of 96 pixels, with DINOv2's published settings: DINO's and
DINOv2's pipelines written down again from the papers' settings with torchvision (on PIL, fp32 out, as published), an
albumentations `Compose` per crop (uint8 out), and raydino's three, of which the third leaves colours to the device. All take
turns on the same photographs in one process and one thread; CPU time. Images are the photographs of imagenet-sample
(RAYDINO_DATA, else ../shared/data).

Voided unless the statistics agree: over all crops the mean, the deviation, and the energy of the gradients of all three ways.
"""

import argparse
import io
import json
import os
import sys
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

from raydino.data.colour import recoloured
from raydino.data.crops import Cropper
from raydino.data.decode import decode
from raydino.data.draws import colours_of
from raydino.methods.config import DINOv2Config
from raydino.nn.config import BackboneConfig
from raydino.shards.reader import open_collection
from raydino.views import FastCrops

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


VIEWS = DINOv2Config(blur="paper").views(BackboneConfig(patch_size=16))


def our_side(*, fast_crops: FastCrops) -> Side:
    cropper = Cropper(VIEWS.override({"fast_crops": fast_crops}), seed=0)

    def cut(data: bytes, number: int) -> Any:
        image = decode(data, least=cropper.least)
        return cropper(image, epoch=number, sample=b"benchmark")

    return cut


def with_colour(side: Side) -> Side:
    """The third way to its end, on the CPU."""

    def cut(data: bytes, number: int) -> Any:
        left = {name: torch.from_numpy(array)[:, None] for name, array in side(data, number).items()}
        return {name: recoloured(left[name], left[colours_of(name)])[:, 0].numpy() for name in VIEWS.crops}

    return cut


def decode_side(data: bytes, _: int) -> Any:
    """The floor: the JPEG decoded and nothing else."""
    return decode(data)


def pillow_side(data: bytes, _: int) -> Any:
    """The same with Pillow."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


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


def colour_alone(device: torch.device, photographs: list[bytes], images: int, rounds: int) -> None:
    """Print what the third way leaves to `device`: images a second, and the share that copying as many bytes once would take."""
    side = our_side(fast_crops="device")
    cut = [side(photographs[number % len(photographs)], number) for number in range(images)]
    left = {name: torch.from_numpy(np.stack([one[name] for one in cut], axis=1)).to(device) for name in cut[0]}

    def seconds(work: Callable[[], object]) -> float:
        begun = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    floats = [left[name].float() for name in VIEWS.crops]
    ways = {
        "colour": lambda: [recoloured(left[name], left[colours_of(name)]) for name in VIEWS.crops],
        "a copy in float32": lambda: [values.clone() for values in floats],
    }
    for turn in range(2):  # the first warms up
        spent = {name: [seconds(way) for _ in range(rounds if turn else 1)] for name, way in ways.items()}
    known = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU thread"
    for name, values in spent.items():
        rates = sorted(images / value for value in values)
        print(
            f"{known}: {name} {median(rates):,.0f} images/s ({rates[0]:,.0f} to {rates[-1]:,.0f}), batches of {images}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--colour", default="", help="device whose part of the third way is timed, and nothing else")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    rows = open_collection(str(DATA / "imagenet-sample"), split="train").read(0)
    photographs = [row for row in rows["bytes"].to_pylist() if row[:2] == b"\xff\xd8"][: arguments.images]
    if arguments.colour:
        colour_alone(torch.device(arguments.colour), photographs, arguments.images, arguments.rounds)
        return
    sides = {
        "DINO's": torchvision_side(global_scale=(0.4, 1.0), local_scale=(0.05, 0.4), pil_blur=True),
        "DINOv2's": torchvision_side(global_scale=(0.32, 1.0), local_scale=(0.05, 0.32), pil_blur=False),
        "albumentations": albumentations_side(),
        "exact": our_side(fast_crops=False),
        "fast": our_side(fast_crops=True),
        "for the device": our_side(fast_crops="device"),
        "decode alone": decode_side,
        "Pillow's decode": pillow_side,
    }
    for data in photographs:
        np.testing.assert_array_equal(decode_side(data, 0), pillow_side(data, 0))
    compared = {name: sides[name] for name in ("exact", "fast")} | {"device": with_colour(sides["for the device"])}
    found = {name: statistics(side, photographs, draws=4) for name, side in compared.items()}
    for name, group in ((name, group) for name in ("fast", "device") for group in VIEWS.crops):
        exact, own = found["exact"][group], found[name][group]
        apart = [abs(b / a - 1) for a, b in zip(exact, own, strict=True)]
        print(f"{group}: exact {exact}, {name} {own}")
        assert apart[0] < 0.02 and apart[1] < 0.03 and apart[2] < 0.10, f"{name}, {group}: {apart}"
    report(timed(sides, photographs, arguments.rounds), found, len(photographs))


def report(spent: dict[str, list[float]], found: dict[str, dict[str, list[float]]], images: int) -> None:
    """Print and write what was measured."""
    table = {name: median(values) for name, values in spent.items()}
    for name, value in table.items():
        print(f"{name:16s} {value:7.2f} ms  {1000 / value:7.0f} images/s and core")
    pairs = {
        "fast over DINOv2's": ("DINOv2's", "fast"),
        "fast over albumentations": ("albumentations", "fast"),
        "exact over DINOv2's": ("DINOv2's", "exact"),
        "for the device over DINOv2's": ("DINOv2's", "for the device"),
        "for the device over exact": ("exact", "for the device"),
        "for the device over fast": ("fast", "for the device"),
        "decode over Pillow's": ("Pillow's decode", "decode alone"),
    }
    ratios = {
        name: sorted(a / b for a, b in zip(spent[slow], spent[quick], strict=True))
        for name, (slow, quick) in pairs.items()
    }
    told = {
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
        "command": "python benchmarks/crops.py" + "".join(f" {word}" for word in sys.argv[1:]),
        "milliseconds_an_image": {name: round(value, 3) for name, value in table.items()},
        "statistics": found,
        "images": images,
    }
    RESULT.write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(told["ratios"]), "missed:", told["missed"])


if __name__ == "__main__":
    main()
