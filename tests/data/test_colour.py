"""Colour on the device against torchvision on the same pixels and factors, against PIL and the exact crops on whole views, and in
a training step."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.transforms import functional as tv

from raydino.curation.synthetic import CLASSES, texture
from raydino.data.colour import coloured, recoloured, shown
from raydino.data.crops import Cropper
from raydino.data.decode import decode
from raydino.data.draws import COLOURS, JITTER_ORDERS, Draw, Jitter, colours
from raydino.launch.cluster import ClusterConfig
from raydino.launch.workers.worker import build_loop
from raydino.methods.config import DINOv2Config
from raydino.nn.config import BackboneConfig
from raydino.recipe import Recipe
from raydino.shards.reader import open_collection
from raydino.tracking.run import LOSS_TOTAL
from raydino.train.config import OptimConfig
from raydino.train.steps import train_step
from raydino.views import Batch, Normalisation, Views

PLAIN = Draw(0, 0, 1, 1, flip=False, jitter=None, gray=False, sigma=None, solarize=False)
STILL = Jitter((0, 1, 2, 3), (1.0, 1.0, 1.0), 0.0)


def builtin(number: int) -> np.ndarray:
    """Three of the built-in images as red, green and blue, each stretched to the ends of the range in some of them."""
    planes = [texture(CLASSES[(number + at) % 8], 0, "train", 3 * number + at) for at in range(3)]
    return np.clip((np.stack(planes, axis=2).astype(float) - 128) * (1 + number % 3) + 128, 0, 255).astype(np.uint8)


def some(images: int) -> list[np.ndarray]:
    return [builtin(number) for number in range(images)]


def by_device(images: list[np.ndarray], draws: list[Draw]) -> np.ndarray:
    """float [N, H, W, C], the colours of each image changed as its draw says, all at once."""
    pixels = torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).copy())[None]
    found = recoloured(pixels, torch.tensor([[colours(draw) for draw in draws]], dtype=torch.float32))
    assert found.dtype == torch.float32 and found.shape == pixels.shape
    return found[0].permute(0, 2, 3, 1).numpy().astype(float)


def by_torchvision(picture, draw: Draw):
    """One after another, on a PIL image or a float tensor of 0..1; without those that change nothing, since PIL's hue would."""
    jitter = draw.jitter or STILL
    for number in jitter.order:
        change = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)[number]
        by, none = (*jitter.factors, jitter.hue)[number], (1.0, 1.0, 1.0, 0.0)[number]
        picture = change(picture, by) if by != none else picture
    if draw.gray:
        picture = tv.rgb_to_grayscale(picture, 3)
    if draw.sigma:
        picture = tv.gaussian_blur(picture, [9, 9], [draw.sigma, draw.sigma])
    return tv.solarize(picture, 128 / 255 if torch.is_tensor(picture) else 128) if draw.solarize else picture


def in_floats(image: np.ndarray, draw: Draw) -> np.ndarray:
    changed = by_torchvision(torch.from_numpy(image.transpose(2, 0, 1).copy()).double() / 255, draw)
    return 255 * changed.permute(1, 2, 0).numpy()


def in_bytes(image: np.ndarray, draw: Draw) -> np.ndarray:
    return np.asarray(by_torchvision(Image.fromarray(image), draw)).astype(float)


def jittered(**fields) -> Draw:
    return replace(PLAIN, jitter=replace(STILL, **fields))


NUMBERS = np.random.default_rng(0)
# What is drawn, and by how many grey levels a pixel may differ from PIL's, which rounds: on average, and at most.
CHANGES = {
    "nothing": (lambda: PLAIN, 1e-3, 1e-3),
    "brightness": (lambda: jittered(factors=(NUMBERS.uniform(0.6, 1.4), 1.0, 1.0)), 0.6, 1.01),
    "contrast": (lambda: jittered(factors=(1.0, NUMBERS.uniform(0.6, 1.4), 1.0)), 0.7, 1.3),
    "saturation": (lambda: jittered(factors=(1.0, 1.0, NUMBERS.uniform(0.8, 1.2))), 0.6, 1.3),
    "hue": (lambda: jittered(hue=NUMBERS.uniform(-0.1, 0.1)), 1.5, 20.0),
    "gray": (lambda: replace(PLAIN, gray=True), 0.6, 1.3),
    "blur": (lambda: replace(PLAIN, sigma=NUMBERS.uniform(0.1, 2.0)), 0.3, 0.6),
    "solarize": (lambda: replace(PLAIN, solarize=True), 1e-3, 1e-3),
}


@pytest.mark.parametrize("name", CHANGES)
def test_recoloured__a_change_is_torchvisions(name: str):
    """To 0.05 grey levels of its arithmetic on floats; of PIL's to what that rounds."""
    make, mean, most = CHANGES[name]
    images = some(8)
    draws = [make() for _ in images]
    found = by_device(images, draws)
    exact = np.stack([in_floats(*pair) for pair in zip(images, draws, strict=True)])
    assert np.abs(found - exact).max() < 0.05
    apart = np.abs(found - np.stack([in_bytes(*pair) for pair in zip(images, draws, strict=True)]))
    assert apart.mean() <= mean and apart.max() <= most


def test_recoloured__all_orders_of_jitter_in_one_batch():
    """Clipped between the changes like torchvision's floats: else they could not agree on images that reach 0 and 255."""
    draws = [
        replace(PLAIN, jitter=Jitter(order, tuple(NUMBERS.uniform((0.6, 0.6, 0.8), (1.4, 1.4, 1.2))), turn))
        for order, turn in zip(JITTER_ORDERS, NUMBERS.uniform(-0.1, 0.1, 24), strict=True)
    ]
    images = [builtin(2)] * 24
    found, expected = by_device(images, draws), np.stack([in_floats(*pair) for pair in zip(images, draws, strict=True)])
    assert (images[0] == 0).any() and (images[0] == 255).any()
    assert np.abs(found - expected).max() < 0.3  # the luma's weights have three digits here and four there
    assert len({view.tobytes() for view in found.round()}) == 24


@pytest.mark.parametrize("turn", [-0.5, -0.2, 0.3, 0.5])
def test_recoloured__any_turn_of_the_hue(turn: float):
    images = some(4)
    expected = np.stack([in_floats(image, jittered(hue=turn)) for image in images])
    assert np.abs(by_device(images, [jittered(hue=turn)] * 4) - expected).max() < 0.05


def draws_of(number: int) -> Draw:
    """A view with everything that may be drawn."""
    at = np.random.default_rng(number)
    factors = tuple(at.uniform((0.6, 0.6, 0.8), (1.4, 1.4, 1.2)))
    jitter = Jitter(JITTER_ORDERS[at.integers(24)], factors, at.uniform(-0.1, 0.1)) if at.random() < 0.8 else None
    sigma = at.uniform(0.1, 2.0) if at.random() < 0.5 else None
    return replace(PLAIN, jitter=jitter, gray=at.random() < 0.2, sigma=sigma, solarize=at.random() < 0.2)


def test_recoloured__a_view_does_not_depend_on_those_beside_it():
    images, draws = some(12), [draws_of(number) for number in range(12)]
    together = by_device(images, draws)
    alone = np.concatenate([by_device([image], [draw]) for image, draw in zip(images, draws, strict=True)])
    np.testing.assert_allclose(together, alone, atol=1e-3)
    expected = np.stack([in_floats(*pair) for pair in zip(images, draws, strict=True)])
    assert np.abs(together - expected).max() < 1.3  # what would round to 128 is inverted here, and from 128 on there
    assert np.abs(together - expected).mean() < 0.05


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_recoloured__other_channels_have_no_colours(channels: int):
    image = np.concatenate(some(2), axis=2)[..., :channels]
    jitter = Jitter((3, 1, 2, 0), (1.2, 0.7, 0.1), 0.4)
    found = by_device([image], [replace(PLAIN, jitter=jitter, gray=True, solarize=True)])[0]
    contrast = np.clip(image * 0.7 + image.mean() * 0.3, 0, 255)
    expected = np.clip(contrast * 1.2, 0, 255)
    np.testing.assert_allclose(found, np.where(expected >= 127.5, 255 - expected, expected), atol=0.01)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 2), (4, 9), (5, 5)])
def test_recoloured__blur_of_views_smaller_than_its_kernel(size: tuple[int, int]):
    """Mirrored at the edges as often as it takes, which is what NumPy calls reflect."""
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    weights = np.exp(-0.5 * (np.arange(-4, 5) / 1.5) ** 2)
    kernel = np.outer(weights, weights) / weights.sum() ** 2
    padded = np.pad(image.astype(float), ((4, 4), (4, 4), (0, 0)), mode="reflect")
    expected = sum(kernel[y, x] * padded[y : y + size[0], x : x + size[1]] for y in range(9) for x in range(9))
    np.testing.assert_allclose(by_device([image], [replace(PLAIN, sigma=1.5)])[0], expected, atol=0.01)


def test_recoloured__with_normalisation_asks_a_device_for_nothing_and_sends_it_nothing():
    """On tensors without values a question about one is an error; numbers of the host become tensors by `lift_fresh` alone."""

    class There(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            assert {tensor.device.type for tensor in tree_leaves(out)} == {"meta"}
            assert func is not torch.ops.aten.lift_fresh.default
            return out

    pixels = torch.empty(2, 3, 3, 32, 48, dtype=torch.uint8, device="meta")
    numbers = torch.empty(2, 3, COLOURS, device="meta")
    with There():
        assert Normalisation()(recoloured(pixels, numbers)).shape == pixels.shape


def test_coloured__only_what_is_left_to_do():
    pixels, ids = torch.from_numpy(builtin(0).transpose(2, 0, 1).copy())[None, None], (b"a",)
    done = Batch({"global": pixels}, None, ids, 0)
    assert coloured(done) is done and torch.equal(shown(done, 6)["global"], pixels)
    numbers = torch.tensor([[colours(replace(PLAIN, solarize=True))]])
    none = torch.empty(0, 1, 3, 8, 8, dtype=torch.uint8)
    left = replace(
        done, crops={"global": pixels, "none": none}, colours={"global": numbers, "none": torch.empty(0, 1, COLOURS)}
    )
    inverted = torch.where(pixels >= 128, 255 - pixels, pixels)
    found = coloured(left)
    assert found.colours is None and (found.crops["global"] - inverted).abs().max() < 1e-3
    assert found.crops["none"].shape == none.shape
    assert shown(left, 6)["global"].dtype == torch.uint8 and torch.equal(shown(left, 6)["global"], inverted)


def cut(views: Views, images: list[np.ndarray], epochs: int) -> dict[str, torch.Tensor]:
    """All views of all images, by group [V, B, C, H, W], and what else comes with them."""
    cropper = Cropper(views, seed=0)
    each = [
        cropper(image, epoch=epoch, sample=b"%d" % at) for epoch in range(epochs) for at, image in enumerate(images)
    ]
    return {name: torch.from_numpy(np.stack([one[name] for one in each], axis=1)) for name in each[0]}


def agree(views: Views, images: list[np.ndarray], *, apart: float, epochs: int = 1) -> None:
    """Views of the same draws are near to the exact ones, nearer than the fast way's, and have the same statistics."""
    ways = [cut(views.override({"fast_crops": way}), images, epochs) for way in (False, True, "device")]
    for name in views.crops:
        exact, fast, device = (way[name] for way in ways)
        device = recoloured(device, ways[2][f"colours/{name}"])
        exact, fast, device = (side.flatten(0, 1).numpy().astype(float) for side in (exact, fast, device))
        assert np.abs(exact - device).mean() < min(apart, np.abs(exact - fast).mean())
        assert abs(exact.mean() - device.mean()) < 1.5  # of which decimals that OpenCV cuts off are 0.7
        assert device.std(axis=(1, 2, 3)).mean() == pytest.approx(exact.std(axis=(1, 2, 3)).mean(), rel=0.03)
        gradients = [np.abs(np.diff(side, axis=3)).mean() for side in (exact, device)]
        assert gradients[1] == pytest.approx(gradients[0], rel=0.1)
        grey = [np.ptp(side, axis=1).max(axis=(1, 2)) < 1e-3 for side in (exact, device)]
        assert (grey[0] == grey[1]).all() and grey[0].any()


PUBLISHED = DINOv2Config(blur="paper").views(BackboneConfig(patch_size=16))
SMALL = PUBLISHED.override({"crops.global.size": 32, "crops.local": {"size": 16, "count": 2}})


def test_cropper__device_and_exact_views_of_builtin_images():
    agree(SMALL, some(24), apart=8, epochs=20)


def test_cropper__what_is_cut_for_the_device_is_the_fast_box_untouched():
    """Only the photometric changes may differ: without any, the fast way's pixels, byte for byte."""
    still = {"jitter": 0.0, "gray": 0.0, "blur": (0.0,), "solarize": (0.0,)}
    plain = SMALL.override({"crops.global": still, "crops.local": still})
    for image in some(4):
        fast = Cropper(plain.override({"fast_crops": True}), seed=0)(image, epoch=0, sample=b"a")
        device = Cropper(SMALL.override({"fast_crops": "device"}), seed=0)(image, epoch=0, sample=b"a")
        for name in SMALL.crops:
            np.testing.assert_array_equal(device[name], fast[name])


@pytest.mark.data
def test_cropper__device_and_exact_views_of_photographs(data_folder):
    rows = open_collection(str(data_folder / "imagenet-sample"), split="train").read(0)
    photographs = [decode(data) for data in rows["bytes"].to_pylist()[:10]]
    agree(PUBLISHED, photographs, apart=5)


RECIPE = Recipe(
    global_batch=16,
    optim=OptimConfig(lr=1e-4),
    backbone=BackboneConfig(name="vit_tiny_patch16_224", patch_size=8, width=64, depth=2, heads=4, drop_path=0),
    method=DINOv2Config(ibot_weight=0.0, koleo_weight=0.0).override(
        {
            "global_crops.size": 32,
            "local_crops": {"size": 16, "count": 2},
            "head": {"prototypes": 64, "hidden": 32, "bottleneck": 16},
        }
    ),
)


def losses(fast_crops: bool | str, accumulate: int = 1, steps: int = 4) -> list[float]:
    recipe = RECIPE.override({"data.fast_crops": fast_crops})
    loop = build_loop(recipe, ClusterConfig(precision="fp32", attention="fused"), torch.device("cpu"))
    loop = replace(loop, accumulate=accumulate)
    found = []
    for step in range(steps):
        whole = cut(recipe.views, [builtin(16 * step + at) for at in range(16)], epochs=1)
        crops = {name: whole[name] for name in recipe.views.crops}
        left = {name: whole[f"colours/{name}"] for name in crops} if fast_crops == "device" else None
        batch = Batch(crops, None, (b"",) * 16, step, colours=left)
        found.append(float(train_step(loop, batch).metrics[LOSS_TOTAL]))
    return found


def test_train_step__losses_on_device_coloured_crops_are_near_those_on_exact_ones():
    exact, device = losses(False), losses("device")
    assert device == pytest.approx(exact, rel=0.02) and device != exact


def test_train_step__micro_batches_bring_their_draws_along():
    """Halves of a batch lose on average what the whole loses, to the rounding of float32."""
    assert losses("device", accumulate=2, steps=1) == pytest.approx(losses("device", steps=1), rel=1e-5)
