"""Image sets against Pillow by hand."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raydino.evals import images as images_module
from raydino.evals.images import ImageSet, centre_crop
from raydino.shards.reader import open_collection


def png(seed: int, *, size: tuple[int, int] = (40, 32)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_split(folder: Path, split: str, images: list[bytes], labels: list[int] | None) -> None:
    columns: dict[str, object] = {"image": [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(images)]}
    if labels is not None:
        columns["label"] = pa.array(labels, pa.int64())
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / f"{split}-00000-of-00001.parquet", row_group_size=7)


def by_hand(data: bytes, size: int) -> np.ndarray:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    side = round(size * 256 / 224)
    width, height = image.size
    short = min(width, height)
    image = image.resize((round(width * side / short), round(height * side / short)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size))).transpose(2, 0, 1)


@pytest.mark.parametrize("shape", [(40, 32), (32, 40), (300, 90), (9, 9)])
def test_centre_crop__is_what_pillow_does(shape: tuple[int, int]) -> None:
    data = png(1, size=shape)
    crop = centre_crop(np.asarray(Image.open(io.BytesIO(data))), 32)
    assert crop.shape == (3, 32, 32) and crop.dtype == np.uint8
    np.testing.assert_array_equal(crop, by_hand(data, 32))


def test_image_set__chunks_equal_single_images_and_bad_ones_are_left_out(tmp_path: Path) -> None:
    images = [png(i) for i in range(23)]
    images[5], images[20] = b"<html>not an image</html>", images[20][:90]
    write_split(tmp_path, "train", images, [i % 4 for i in range(23)])
    collection = open_collection(str(tmp_path), split="train")
    rows = np.array([22, 5, 3, 20, 0, 11])  # any order in, ascending out
    image_set = ImageSet(collection, rows, rows % 4, size=32)
    assert image_set.rows.tolist() == sorted(rows.tolist()) and image_set.labels.tolist() == [0, 3, 1, 3, 0, 2]
    for _ in range(2):  # decoded, then from memory
        seen = {}
        for pixels, places in image_set.chunks(np.arange(6), batch=4):
            seen |= dict(zip(image_set.rows[places].tolist(), pixels.numpy(), strict=True))
        assert sorted(seen) == [0, 3, 11, 22] and image_set.undecodable == 2
        for row, pixels in seen.items():
            np.testing.assert_array_equal(pixels, by_hand(images[row], 32))


def test_image_set__without_room_for_a_cache_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_split(tmp_path, "train", [png(i) for i in range(9)], list(range(9)))
    collection = open_collection(str(tmp_path), split="train")
    cached = ImageSet(collection, np.arange(9), np.arange(9), size=32)
    monkeypatch.setattr(images_module, "CACHE_BYTES", 0)
    uncached = ImageSet(collection, np.arange(9), np.arange(9), size=32)
    for one, two in zip(cached.chunks(np.arange(9), batch=4), uncached.chunks(np.arange(9), batch=4), strict=True):
        np.testing.assert_array_equal(one[0].numpy(), two[0].numpy())


def test_at_most__is_a_keyed_subset_of_rows_with_their_labels(tmp_path: Path) -> None:
    write_split(tmp_path, "train", [png(i) for i in range(30)], list(range(30)))
    whole = ImageSet(open_collection(str(tmp_path), split="train"), np.arange(30), np.arange(30), size=32)
    part, again, other = whole.at_most(8, seed=1), whole.at_most(8, seed=1), whole.at_most(8, seed=2)
    assert len(part) == 8 and part.rows.tolist() == again.rows.tolist() != other.rows.tolist()
    assert part.labels.tolist() == part.rows.tolist() == sorted(set(part.rows.tolist()))
    pixels, _ = next(part.chunks(np.arange(1), batch=1))
    np.testing.assert_array_equal(pixels[0].numpy(), by_hand(png(int(part.rows[0])), 32))


def test_image_set__refuses_labels_that_do_not_match(tmp_path: Path) -> None:
    write_split(tmp_path, "train", [png(0)], [0])
    with pytest.raises(ValueError, match="3 rows, 2 labels"):
        ImageSet(open_collection(str(tmp_path), split="train"), np.arange(3), np.arange(2), size=32)
