"""What each format wrote, run by the lines that it says of itself, against the model at several sizes."""

import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from raydino.config import ConfigError
from raydino.export import to_hf, to_onnx, to_safetensors, to_timm
from raydino.export.model import Model
from raydino.export.to_safetensors import read
from raydino.export.verify import LIMIT, OUTPUTS, Loading, sizes
from tests.export.conftest import KINDS, a_model

ON_SQUARES = [kind for kind in KINDS if kind not in ("oblong", "norm before the blocks", "resnet")]


def differences(model: Model, folder: Path, loading: Loading) -> dict[tuple[int, int], float]:
    """Largest difference of features by size, the lines of `loading` run in this process."""
    found, here = {}, Path.cwd()
    os.chdir(folder)
    try:
        names: dict[str, Any] = {}
        exec(loading.load, names)
        for high, wide in sizes(model):
            names["images"] = torch.randn(2, model.config.channels, high, wide)
            with torch.no_grad():
                exec(loading.use, names)
                expected = model.backbone(names["images"])
            assert expected.cls.std() > 0.01
            assert all(tuple(names[name].shape) == getattr(expected, name).shape for name in OUTPUTS)
            found[high, wide] = max(
                float(np.abs(np.asarray(names[name]) - getattr(expected, name).numpy()).max(initial=0))
                for name in OUTPUTS
            )
    finally:
        os.chdir(here)
    assert len(found) == 3
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("format", [to_timm, to_safetensors])
def test_write__others_compute_the_same_features(tmp_path: Path, format: ModuleType, kind: str):
    model = a_model(kind)
    loading = format.write(model, tmp_path)
    found = differences(model, tmp_path, loading)
    own, other, oblong = found.values()
    assert own <= LIMIT
    assert loading.any_size or (format is to_timm and kind == "offset")
    assert max(other, oblong) <= LIMIT if loading.any_size else max(other, oblong) > LIMIT


@pytest.mark.parametrize("kind", ON_SQUARES)
def test_hf__transformers_computes_the_same_features(tmp_path: Path, kind: str):
    pytest.importorskip("transformers")
    model = a_model(kind)
    loading = to_hf.write(model, tmp_path)
    own, other, oblong = differences(model, tmp_path, loading).values()
    assert own <= LIMIT
    assert loading.any_size == (kind != "offset")
    assert max(other, oblong) <= LIMIT if loading.any_size else max(other, oblong) > LIMIT
    expected = "Dinov2Model" if kind == "offset" else "Dinov2WithRegistersModel"
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [expected]


def test_hf__its_processor_prepares_images_as_the_model_wants_them(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    model = a_model("plain")
    to_hf.write(model, tmp_path)
    side = round(40 * 256 / 224)
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    found = transformers.AutoImageProcessor.from_pretrained(tmp_path)(pixels, return_tensors="pt")["pixel_values"][0]
    cut = (side - 40) // 2
    expected = model.normalisation(torch.from_numpy(pixels[cut : cut + 40, cut : cut + 40].transpose(2, 0, 1).copy()))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("kind", "text"),
    [("resnet", "no class for resnet18"), ("oblong", "24 × 40 pixels"), ("norm before the blocks", "norm_pre")],
)
def test_hf__refuses_by_name_what_transformers_has_not(tmp_path: Path, kind: str, text: str):
    pytest.importorskip("transformers")
    with pytest.raises(ConfigError, match=f"(?s)format = hf: .*({text})"):
        to_hf.write(a_model(kind), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["registers", "offset", "resnet"])
def test_onnx__onnxruntime_computes_the_same_features_at_all_sizes(tmp_path: Path, kind: str):
    pytest.importorskip("onnxscript")
    model = a_model(kind, **({"name": "test_resnet"} if kind == "resnet" else {"depth": 1}))
    loading = to_onnx.write(model, tmp_path)
    assert max(differences(model, tmp_path, loading).values()) <= LIMIT
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    side = 2 * model.config.patch_size
    for count in (1, 3):  # the batch is free too
        images = torch.randn(count, model.config.channels, side, side)
        (cls,) = session.run(["cls"], {"images": images.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(cls, model.backbone(images).cls, atol=LIMIT)


@pytest.mark.parametrize(("module", "format"), [("transformers", to_hf), ("onnxscript", to_onnx)])
def test_write__says_what_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, format: ModuleType
):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ConfigError, match=rf"{module} is not installed; run `make setup`"):
        format.write(a_model("plain"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_safetensors__keeps_all_that_is_known(tmp_path: Path):
    model = a_model("oblong")
    to_safetensors.write(model, tmp_path)
    for path in (tmp_path, tmp_path / "model.safetensors"):
        found = read(path)
        assert (found.name, found.step, found.size, found.digest) == ("oblong@7", 7, (24, 40), model.digest)
        assert (found.config, found.normalisation) == (model.config, model.normalisation)


def test_safetensors__refuses_what_it_did_not_write(tmp_path: Path):
    model = a_model("plain")
    to_safetensors.write(model, tmp_path)
    known = json.loads((tmp_path / "config.json").read_text())

    def refused(text: str, **changes: Any) -> None:
        (tmp_path / "config.json").write_text(json.dumps({**known, **changes}))
        with pytest.raises(ConfigError, match=text):
            read(tmp_path)

    refused("format raydino 2, and this reads raydino 1", version=2)
    refused("its config.json is not of this format", size="large")
    refused("there is no field 'code'", backbone={"code": "x"})
    refused(r"config\.json says 0123…", digest="0123")
    refused(r"vit\.blocks\.1\.attn\.proj\.bias is unknown", backbone={**known["backbone"], "depth": 1})
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x04 a pickle")
    refused("model.safetensors is damaged")
