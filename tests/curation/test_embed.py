"""Descriptors of a few thousand weights, made here: what they see and refuse, and that batches and threads do not count."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from raydino.config import ConfigError
from raydino.curation.cells import pairs_within
from raydino.curation.cosine import centred
from raydino.curation.embed import Descriptor, embed, from_encoder, open_descriptor
from raydino.curation.ingest import ingest
from raydino.curation.synthetic import scene
from raydino.shards.reader import Collection, open_collection
from raydino.views import Normalisation

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])  # ImageNet's
MODEL = "test_resnet"  # timm's own for tests


class Network(nn.Module):
    """A copy descriptor's form: images to vectors, not of unit length."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 4, stride=4)
        self.line = nn.Linear(6 * 8 * 8, 12)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 3 * self.line(self.conv(images).flatten(1))


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.torchscript.pt"
    torch.manual_seed(0)
    torch.jit.script(Network()).save(str(path))
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as timm publishes it, with a classifier."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    torch.manual_seed(1)
    save_file(timm.create_model(MODEL, pretrained=False).state_dict(), path)
    return path


def encoded(image: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


BAD = 7


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    """24 images of several sizes, the eighth broken."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = [encoded(scene(seed)[: 60 + seed, : 90 - seed]) for seed in range(24)]
    images[BAD] = images[BAD][:100]
    folder = tmp_path_factory.mktemp("images")
    table = pa.table({"image": [{"bytes": data, "path": f"{n}.png"} for n, data in enumerate(images)]})
    pq.write_table(table, folder / "train-00000-of-00001.parquet", row_group_size=10)
    return open_collection(str(folder))


def by_hand(collection: Collection, row: int) -> np.ndarray:
    """What the TorchScript network says of a row, worked out with Pillow and NumPy."""
    data = collection.rows(np.array([row]))["bytes"][0].as_py()
    image = Image.open(io.BytesIO(data)).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
    pixels = (np.asarray(image, dtype=np.float64) / 255 - MEAN) / STD
    torch.manual_seed(0)
    with torch.no_grad():
        out = Network()(torch.from_numpy(pixels.transpose(2, 0, 1)[None]).float())[0].numpy()
    return out / np.linalg.norm(out)


def test_torchscript__is_a_copy_descriptor_of_squashed_images(script: Path, collection: Collection):
    descriptor = open_descriptor(f"torchscript:{script}@32")
    assert (descriptor.kind, descriptor.dim, descriptor.size) == ("copy", 12, 32)
    assert descriptor.name == "torchscript:tiny.torchscript.pt@32"  # without the folder
    assert descriptor.digest == hashlib.sha256(script.read_bytes()).hexdigest()
    vectors = embed(collection, descriptor, threads=2)
    assert vectors.dtype == np.float16 and vectors.shape == (24, 12)
    for row in (0, 6, 8, 23):  # in row order, on either side of the broken one
        np.testing.assert_allclose(vectors[row], by_hand(collection, row), atol=1e-3)


def test_embed__undecodable_images_are_zero_and_in_no_pair(script: Path, collection: Collection):
    vectors = embed(collection, open_descriptor(f"torchscript:{script}@32"), threads=1)
    assert not vectors[BAD].any()
    norms = np.linalg.norm(np.delete(vectors, BAD, axis=0).astype(np.float64), axis=1)
    np.testing.assert_allclose(norms, 1, atol=1e-3)
    pairs = pairs_within(vectors, least=0.01)
    assert len(pairs) and BAD not in set(pairs.first) | set(pairs.second)


@pytest.mark.parametrize("kind", ["torchscript", "timm"])
def test_embed__batches_and_threads_do_not_count(kind: str, script: Path, weights: Path, collection: Collection):
    descriptor = open_descriptor(f"torchscript:{script}@32" if kind == "torchscript" else f"timm:{MODEL}@{weights}")
    whole = embed(collection, descriptor, threads=3)
    for batch in (1, 5):
        np.testing.assert_allclose(embed(collection, descriptor, threads=1, batch=batch), whole, atol=1e-3, rtol=0)


def test_embed__tells_of_all_images(script: Path, collection: Collection):
    told: list[tuple[int, int]] = []
    descriptor = open_descriptor(f"torchscript:{script}@32")
    embed(collection, descriptor, threads=1, batch=9, progress=lambda _, done, total: told.append((done, total)))
    assert told == [(9, 24), (18, 24), (24, 24)]
    for wrong in ({"threads": 0}, {"threads": 1, "batch": 0}):
        with pytest.raises(ConfigError, match=" = 0: give 1 or more"):
            embed(collection, descriptor, **wrong)


def test_timm__sees_what_timm_says_and_gives_the_features_before_the_classifier(weights: Path, collection: Collection):
    descriptor = open_descriptor(f"timm:{MODEL}@{weights}")
    model = timm.create_model(MODEL, pretrained=False).eval()
    model.load_state_dict(load_file(weights))
    settings = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**settings)
    data = collection.rows(np.array([3]))["bytes"][0].as_py()
    with torch.no_grad():
        images = transform(Image.open(io.BytesIO(data)).convert("RGB"))[None]
        expected = model.forward_head(model.forward_features(images), pre_logits=True)[0].numpy()
    found = embed(collection, descriptor, threads=1)[3]
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=2e-3)
    assert descriptor.kind == "semantic" and descriptor.dim == len(expected)
    assert descriptor.size == settings["input_size"][-1] and descriptor.name == f"timm:{MODEL}@tiny.safetensors"


def test_timm__digest_is_of_the_weights_not_of_the_file(weights: Path, tmp_path: Path):
    one = load_file(weights)
    save_file(one, tmp_path / "same.safetensors", metadata={"note": "other bytes, same weights"})
    key = next(name for name, value in one.items() if value.dtype == torch.float32 and not name.startswith("fc"))
    save_file({**one, key: one[key] + 1e-6}, tmp_path / "other.safetensors")
    same, other = (
        open_descriptor(f"timm:{MODEL}@{tmp_path / name}") for name in ("same.safetensors", "other.safetensors")
    )
    assert open_descriptor(f"timm:{MODEL}@{weights}").digest == same.digest != other.digest


def test_timm__refuses_files_that_are_not_of_the_model(weights: Path, tmp_path: Path):
    whole = load_file(weights)
    first = next(name for name in whole if name.endswith("conv1.weight"))
    files = {
        "less": ({key: value for key, value in whole.items() if key != first}, f"1 are missing .{first}., 0 unknown"),
        "more": ({**whole, "unknown.weight": torch.zeros(3)}, "0 are missing .., 1 unknown .unknown.weight."),
        "shape": ({**whole, first: whole[first][:1].clone()}, f"no weights of this model .*size mismatch for {first}"),
    }
    for name, (tensors, message) in files.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
        with pytest.raises(ConfigError, match=f"(?s){message}"):
            open_descriptor(f"timm:{MODEL}@{tmp_path / name}.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ConfigError, match="no weights of this model"):
        open_descriptor(f"timm:{MODEL}@{tmp_path / 'torn.safetensors'}")
    for path in (tmp_path / "absent.safetensors", tmp_path / "pickle.pth"):
        with pytest.raises(ConfigError, match=r"is no \.safetensors file"):
            open_descriptor(f"timm:{MODEL}@{path}")
    with pytest.raises(ConfigError, match=r"Unknown model \(no_such_model\)"):
        open_descriptor("timm:no_such_model")


def test_torchscript__refuses_what_it_cannot_use(script: Path, weights: Path, tmp_path: Path):
    for spec, message in (
        (f"{tmp_path}/absent.pt", "no such file"),
        (f"{script}@0", "no such size"),
        (str(weights), "is no TorchScript archive"),
        (f"{script}@48", "cannot take images of 48 pixels"),
        (str(script), "cannot take images of 320 pixels"),
    ):
        with pytest.raises(ConfigError, match=message):
            open_descriptor(f"torchscript:{spec}")
    torch.jit.script(nn.Identity()).save(str(tmp_path / "maps.pt"))
    with pytest.raises(ConfigError, match="not a vector for each"):
        open_descriptor(f"torchscript:{tmp_path}/maps.pt@32")


@pytest.mark.parametrize("spec", ["", "sscd.pt", "timm:", "torchscript:", "pickle:x.pt", "run:runs/x"])
def test_open_descriptor__other_specs_are_refused(spec: str):
    with pytest.raises(ConfigError, match="give torchscript:FILE"):
        open_descriptor(spec)


def test_open_descriptor__runs_are_opened_by_the_floor_above(script: Path):
    known = open_descriptor(f"torchscript:{script}@32")
    asked: list[tuple[str, str]] = []

    def open_run(folder: str, device: str) -> Descriptor:
        asked.append((folder, device))
        return known

    assert open_descriptor("run:runs/a:b", open_run=open_run) is known and asked == [("runs/a:b", "cpu")]


def test_descriptor__refuses_other_images_and_broken_weights():
    def always(value: float) -> Descriptor:
        return from_encoder(
            "test", "semantic", lambda images: images.mean((2, 3)) * 0 + value, normalise=Normalisation(), size=(8, 6),
            digest="", prepare=lambda image: image,
        )  # fmt: skip

    good = np.zeros((2, 3, 8, 6), np.uint8)
    np.testing.assert_allclose(always(2.0)(good), np.full((2, 3), 3**-0.5), rtol=1e-6)
    assert not always(0.0)(good).any() and always(1.0)(good[:0]).shape == (0, 3)
    for wrong in (good.astype(np.float32), good[:, :, :6], good.transpose(0, 2, 3, 1)):
        with pytest.raises(ValueError, match=r"takes uint8 \[B, 3, 8, 6\]"):
            always(1.0)(wrong)
    with pytest.raises(ValueError, match="not finite"):
        always(float("nan"))(good)


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_centred__is_of_unit_length_without_the_mean_and_leaves_zeros(kind: type):
    draw = np.random.default_rng(0)
    raw = draw.normal(size=(50, 6)) + 2
    raw /= np.linalg.norm(raw, axis=1, keepdims=True)
    raw[4] = 0
    mean = np.delete(raw, 4, axis=0).mean(0)
    found = centred(raw.astype(kind), mean)
    expected = raw - mean
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    expected[4] = 0
    assert found.dtype == kind
    np.testing.assert_allclose(found, expected, atol=2e-3 if kind is np.float16 else 1e-5)
    assert not centred(np.tile(raw[:1], (2, 1)).astype(np.float32), raw[0].astype(np.float32)).any()


def test_embed__a_copy_that_is_squashed_and_recompressed_is_nearest_to_its_picture(tmp_path: Path, weights: Path):
    """End to end: files, shards, descriptor, pairs."""
    (tmp_path / "in").mkdir()
    for seed in range(12):
        (tmp_path / "in" / f"{seed:02d}.png").write_bytes(encoded(scene(seed)))
    copy = np.asarray(Image.fromarray(scene(5)).resize((120, 70)))
    (tmp_path / "in" / "copy.jpg").write_bytes(encoded(copy, "JPEG"))
    ingest([str(tmp_path / "in")], str(tmp_path / "out"))
    images = open_collection(str(tmp_path / "out"))
    paths = [path for group in range(len(images.row_groups)) for path in images.read(group)["path"].to_pylist()]
    vectors = embed(images, open_descriptor(f"timm:{MODEL}@{weights}"), threads=2)
    pairs = pairs_within(centred(vectors, vectors.mean(0, dtype=np.float32)), least=0.01)
    best = int(pairs.cosine.argmax())
    names = {paths[row].rpartition("/")[2] for row in (pairs.first[best], pairs.second[best])}
    assert names == {"05.png", "copy.jpg"}
