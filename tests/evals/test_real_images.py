"""The evaluations on a few real images: columns as data sets have them, and an order between encoders that must hold."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raydino.evals.config import (
    CopiesConfig,
    DepthConfig,
    DiscoveryConfig,
    RetrievalConfig,
    SegmentationConfig,
    VideoConfig,
)
from raydino.evals.dense import decode_map, rows_with
from raydino.launch.evaluate import _asked, _parser
from raydino.launch.subjects import open_images
from raydino.nn.layers import Pixels

pytestmark = pytest.mark.data


def opened(folder: Path, size: int = 32) -> Any:
    """A folder as `recipes/evaluate.py` opens it for crops of `size` pixels."""
    from raydino.export.model import frozen
    from raydino.nn.config import BackboneConfig
    from raydino.views import Normalisation

    asked = _asked(_parser("").parse_args(["--model", "pixels", "--data", str(folder)]))
    model = frozen("pixels", Pixels(patch_size=8), BackboneConfig(), size=size, normalisation=Normalisation())
    return open_images(asked, str(folder), model)


def test_segmentation__pixels_tell_sky_from_road_and_a_constant_does_not(data_folder: Path) -> None:
    labelled = opened(data_folder / "camvid")
    config = SegmentationConfig(
        ignore=(11,), side=48, steps=40, train_images=24, test_images=10, lr=0.02, knn_bank=2000
    )
    found = config.build().run(Pixels(patch_size=8), labelled)
    maps = [decode_map(values["mask"]).ravel() for _, values in rows_with(labelled.test, ["mask"], np.arange(10))]
    table = np.bincount(np.concatenate(maps))
    constant = table[:11].max() / table[:11].sum()  # everything called the largest class
    assert found["accuracy"] > constant + 0.05 and found["miou_knn"] > 0.1


def test_depth_and_pose__of_a_room(data_folder: Path) -> None:
    labelled = opened(data_folder / "rgbd-redkitchen")
    depth = DepthConfig(side=48, steps=40, bins=32, lr=0.01, most=6.0).build()
    found = depth.run(Pixels(patch_size=8), labelled)
    assert 0.2 < found["rmse"] < 1.2 and found["delta1"] > 0.3
    poses = RetrievalConfig(metres=0.5, degrees=40).build()
    assert poses.unfit(labelled) is None
    assert poses.run(Pixels(patch_size=8), labelled)["first_metres"] < 1.5


def test_copies__versions_of_a_photo_are_nearer_than_others(data_folder: Path) -> None:
    labelled = opened(data_folder / "neardup-small")
    found = CopiesConfig(side=64).build().run(Pixels(patch_size=8), labelled)
    groups = [v["group"] for _, v in rows_with(labelled.test, ["group"], np.arange(len(labelled.test)))]
    same = np.array(groups)[:, None] == np.array(groups)
    chance = (same.sum() - len(groups)) / (len(groups) * (len(groups) - 1))
    assert found["micro_ap"] > 5 * chance


def test_video_and_discovery__of_a_rider(data_folder: Path) -> None:
    labelled = opened(data_folder / "video-bmx-trees")
    torch.manual_seed(0)
    found = VideoConfig(side=64, radius=4).build().run(Pixels(patch_size=4), labelled)
    assert 0 < found["j"] < 1 and 0 < found["f"] < 1
    front = DiscoveryConfig(side=64, images=10).build().run(Pixels(patch_size=4), labelled)
    assert set(front) == {"pca_jaccard", "pca_corloc"}  # pixels have no attention
