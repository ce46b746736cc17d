"""Pictures are checked where their pixels are known: tiles, dark patches, colours of known features."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from raydino.evals.pictures import attention_maps, cls_attention, crop_sheet, patch_grids, patch_pca
from raydino.views import Normalisation


class Output(NamedTuple):
    patches: Tensor


class Encoder(nn.Module):
    """Stands in for a backbone with patches of 8 pixels: its feature is its mean colour, its attention the red."""

    patch_size = 8

    def __init__(self) -> None:
        super().__init__()
        self.zero = nn.Parameter(torch.zeros(()))

    def forward(self, images: Tensor) -> Output:
        return Output(patches=nn.functional.avg_pool2d(images, 8).flatten(2).transpose(1, 2) + self.zero)

    def attention(self, images: Tensor) -> Tensor:
        red = nn.functional.avg_pool2d(images, 8).flatten(2)[:, 0].softmax(1)
        return torch.stack([red, red.flip(1)], dim=1)


def found(sheet: Image.Image, tile: np.ndarray) -> list[tuple[int, int]]:
    """Corners (y, x) at which a tile stands in a sheet, pixel for pixel."""
    pixels, (height, width) = np.asarray(sheet), tile.shape[:2]
    corners = np.argwhere((pixels[: -height + 1, : -width + 1] == tile[0, 0]).all(-1))
    return [(int(y), int(x)) for y, x in corners if (pixels[y : y + height, x : x + width] == tile).all()]


def enlarged(image: Tensor, factor: int) -> np.ndarray:
    return image.permute(1, 2, 0).numpy().repeat(factor, 0).repeat(factor, 1)


def noise(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_crop_sheet__rows_are_images_columns_are_views_and_all_have_one_scale() -> None:
    crops = {"global": noise(2, 3, 3, 32, 32), "local": noise(4, 3, 3, 16, 16)}
    sheet = crop_sheet(crops, None, 8, images=2)
    factor = 144 // 32
    for name, group in crops.items():
        rows, columns = set(), []
        for image in range(2):
            places = [found(sheet, enlarged(group[view, image], factor)) for view in range(len(group))]
            assert all(len(place) == 1 for place in places), name
            rows.add(frozenset(y for [(y, _)] in places))
            columns.append([x for [(_, x)] in places])
        assert len(rows) == 2 and all(len(row) == 1 for row in rows)
        assert columns[0] == columns[1] == sorted(columns[0])
    assert not found(sheet, enlarged(crops["global"][0, 2], factor))  # the third image was not asked for


def test_crop_sheet__masked_patches_and_no_others_are_dark() -> None:
    crops = torch.full((1, 1, 3, 32, 32), 255, dtype=torch.uint8)
    masks = torch.zeros(1, 1, 16, dtype=torch.bool)
    masks[0, 0, 6] = True  # row 1, column 2 of the grid
    pixels = np.asarray(crop_sheet({"global": crops}, masks, 8))
    bare = np.asarray(crop_sheet({"global": crops}, torch.zeros_like(masks), 8))
    ys, xs = np.nonzero((pixels != bare).any(-1))
    assert (ys.max() - ys.min() + 1, xs.max() - xs.min() + 1) == (32, 32) and len(ys) == 32 * 32
    assert pixels[ys[0], xs[0]].max() < 100


def test_crop_sheet__refuses_nothing_and_masks_of_another_size() -> None:
    with pytest.raises(ValueError, match="no crops"):
        crop_sheet({"global": noise(0, 1, 3, 32, 32)}, None, 8)
    with pytest.raises(ValueError, match="4 x 4 patches"):
        crop_sheet({"global": noise(1, 1, 3, 32, 32)}, torch.zeros(1, 1, 9, dtype=torch.bool), 8)


def test_patch_pca__equal_patches_have_one_colour_across_images() -> None:
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    images[0, 0, :16], images[0, 2, 16:] = 255, 255  # red above blue
    images[1, 2, :16], images[1, 0, 16:] = 255, 255  # blue above red
    sheet = patch_pca(Encoder(), images, Normalisation())  # type: ignore[arg-type]
    [(y, left)], [(_, right)] = (found(sheet, enlarged(image, 4)) for image in images)
    pixels, below = np.asarray(sheet), y + 128 + 8
    upper, lower = pixels[below + 32, left + 64].tolist(), pixels[below + 96, left + 64].tolist()
    assert upper != lower
    assert pixels[below + 32, right + 64].tolist() == lower and pixels[below + 96, right + 64].tolist() == upper


def test_patch_pca__flat_images_and_one_image_work() -> None:
    assert patch_pca(Encoder(), torch.zeros(1, 3, 32, 32, dtype=torch.uint8), Normalisation()).width > 128  # type: ignore[arg-type]


def test_attention_maps__brightest_patch_is_where_the_attention_is() -> None:
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    image[0, 0, 8:16, 16:24] = 255  # patch at row 1, column 2
    sheet = attention_maps(Encoder(), image, Normalisation())  # type: ignore[arg-type]
    [(y, x)] = found(sheet, enlarged(image[0], 4))
    head_1 = x + 2 * (128 + 24)
    tile = np.asarray(sheet).astype(int).sum(-1)[y : y + 128, head_1 : head_1 + 128]
    grid = tile.reshape(4, 32, 4, 32).mean((1, 3))
    assert np.unravel_index(grid.argmax(), grid.shape) == (1, 2)
    flipped = (
        np.asarray(sheet)
        .astype(int)
        .sum(-1)[y : y + 128, head_1 + 136 : head_1 + 264]
        .reshape(4, 32, 4, 32)
        .mean((1, 3))
    )
    assert np.unravel_index(flipped.argmax(), flipped.shape) == (2, 1)


@pytest.mark.parametrize("draw", [patch_pca, attention_maps])
def test_pictures__mode_is_put_back_and_no_images_is_an_error(draw: object) -> None:
    encoder = Encoder().train()
    draw(encoder, noise(2, 3, 32, 32), Normalisation())  # type: ignore[operator]
    assert encoder.training
    with pytest.raises(ValueError, match="no images to draw"):
        draw(encoder, noise(0, 3, 32, 32), Normalisation())  # type: ignore[operator]
    assert encoder.training


def test_cls_attention__is_a_slow_softmax_without_cls_and_registers(small_vit: Callable[..., Any]) -> None:
    encoder, normalise, seen = small_vit(depth=2).eval(), Normalisation(), {}
    images = [noise(3, 16, 24), noise(3, 16, 16)]
    last = encoder.vit.blocks[-1].attn
    hook = last.qkv.register_forward_hook(lambda _module, _input, output: seen.update(qkv=output))
    for image, found in zip(images, cls_attention(encoder, images, normalise) or [], strict=True):
        with torch.no_grad():
            encoder(normalise(image[None]))
        heads, width = last.num_heads, encoder.width // last.num_heads
        query, key, _ = (part.view(-1, heads, width) for part in seen["qkv"][0].chunk(3, dim=-1))
        patches = image.shape[1] * image.shape[2] // 64
        assert len(key) == 2 + patches  # cls and one register come first
        for head in range(heads):
            scores = [float(query[0, head] @ key[token, head]) / width**0.5 for token in range(len(key))]
            shares = np.exp(scores) / np.exp(scores).sum()
            np.testing.assert_allclose(found[head], shares[2:], rtol=1e-4)
            assert found[head].sum() == pytest.approx(1 - shares[:2].sum(), abs=1e-5) and found[head].sum() < 1
    hook.remove()


def test_attention_maps__none_for_a_network_without_attention() -> None:
    encoder = Encoder()
    encoder.attention = lambda images: None  # type: ignore[assignment]
    assert attention_maps(encoder, noise(1, 3, 32, 32), Normalisation()) is None  # type: ignore[arg-type]


def test_patch_grids__images_of_other_sizes_keep_their_shape() -> None:
    images = [noise(3, 16, 40), noise(3, 48, 16)]
    grids = patch_grids(Encoder(), images, Normalisation())  # type: ignore[arg-type]
    assert [tuple(grid.shape) for grid in grids] == [(2, 5, 3), (6, 2, 3)]
    expected = Normalisation()(images[0][None])[0, :, 8:16, 24:32].mean((1, 2))
    torch.testing.assert_close(grids[0][1, 3], expected)
