"""DINOv2's training files as recipes: the three that it published are the presets, which were written by hand from the papers."""

from pathlib import Path

import presets
import pytest

from raydino.config import in_steps
from raydino.launch import convert
from raydino.launch.terminal.command import parse
from raydino.recipe import Recipe

LONG = """
dino: {head_n_prototypes: 131072, head_bottleneck_dim: 384}
ibot: {separate_head: true, head_n_prototypes: 131072}
train: {batch_size_per_gpu: %d, dataset_path: ImageNet22k, centering: sinkhorn_knopp}
student: {arch: %s, patch_size: 14, drop_path_rate: 0.4, ffn_layer: swiglufused, block_chunks: 4}
teacher: {momentum_teacher: 0.994}
optim: {epochs: 500, weight_decay_end: 0.2, base_lr: 2.0e-04, warmup_epochs: 80, layerwise_decay: 1.0}
crops: {local_crops_size: 98}
"""
PUBLISHED = {
    "vitl16_short": (
        "train: {dataset_path: 'ImageNet:split=TRAIN', batch_size_per_gpu: 64}\nstudent: {block_chunks: 4}",
        32,
    ),
    "vitl14": (LONG % (32, "vit_large"), 96),
    "vitg14": (LONG % (12, "vit_giant2"), 256),
}


def converted(folder: Path, text: str, *, gpus: int = 8, name: str = "official") -> Recipe:
    """What recipes/dinov2.py trains from the file that the command line writes for an official one."""
    source, out = folder / f"{name}.yaml", folder / "out.yaml"
    source.write_text(text)
    assert convert.main("", [str(source), "--gpus", str(gpus), "--out", str(out)]) == 0
    return parse(presets.DINOV2["laptop"], presets.DINOV2, description="", argv=["--config", str(out)]).recipe


def refused(folder: Path, text: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command line says of a file that it refuses, having written nothing."""
    (folder / "official.yaml").write_text(text)
    assert convert.main("", [str(folder / "official.yaml"), "--gpus", "8", "--out", str(folder / "out.yaml")]) == 2
    assert not (folder / "out.yaml").exists()
    return capsys.readouterr().err


@pytest.mark.parametrize("name", PUBLISHED)
def test_main__what_was_published_is_the_preset_of_its_name(tmp_path: Path, name: str):
    text, gpus = PUBLISHED[name]
    assert converted(tmp_path, text, gpus=gpus, name=name) == presets.DINOV2[name.replace("_", "-")]


def test_main__lengths_in_epochs_are_as_many_steps(tmp_path: Path):
    text = """
    train: {OFFICIAL_EPOCH_LENGTH: 131}
    optim: {epochs: 7, warmup_epochs: 2, freeze_last_layer_epochs: 3}
    teacher: {warmup_teacher_temp_epochs: 5}
    """
    recipe = converted(tmp_path, text)
    lengths = recipe.method.lengths()
    got = [recipe.optim.warmup, lengths["freeze_last_layer"], lengths["teacher_temperature.warmup"]]
    assert recipe.steps == 7 * 131
    assert [in_steps(length, recipe.steps) for length in got] == [2 * 131, 3 * 131, 5 * 131]


@pytest.mark.parametrize(
    ("student", "name", "ffn", "registers"),
    [
        ("{arch: vit_small, patch_size: 14, num_register_tokens: 4}", "vit_small_patch14_dinov2", "model", 4),
        ("{arch: vit_base, patch_size: 8}", "vit_base_patch16_224", "model", 0),
        ("{arch: vit_giant2, patch_size: 14}", "vit_giant_patch14_dinov2", "mlp", 0),
    ],
)
def test_main__other_networks(tmp_path: Path, student: str, name: str, ffn: str, registers: int):
    backbone = converted(tmp_path, f"student: {student}\ncrops: {{local_crops_size: 112}}").backbone
    assert (backbone.name, backbone.ffn, backbone.registers) == (name, ffn, registers)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optim: {base_lrr: 1.0e-3}", ["optim.base_lrr", "did you mean 'base_lr'?"]),
        ("student: {arch: vit_huge}", ["student.arch", "vit_huge", "vit_giant2"]),
        ("student: {qkv_bias: false}", ["student.qkv_bias", "False"]),
        (
            "student: {interpolate_offset: 0.0}",
            ["interpolate_antialias = False", "interpolate_offset = 0.0", "(true, 0.0)"],
        ),
        ("optim: {scaling_rule: linear_wrt_256}", ["optim.scaling_rule", "linear_wrt_256", "sqrt_wrt_1024"]),
        ("crops: {local_crops_size: 100}", ["local_crops.size = 100", "patch_size = 16"]),
        ("optim: [1, 2]", ["optim"]),
    ],
)
def test_main__what_cannot_be_taken_over_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: list[str]
):
    said = refused(tmp_path, text, capsys)
    assert all(word in said for word in ["official.yaml", *words]), said


def test_main__says_what_does_not_belong_to_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    converted(tmp_path, "student: {pretrained_weights: /w/vitl14.pth}\ntrain: {saveckp_freq: 5}", gpus=16)
    comments = "".join(line for line in (tmp_path / "out.yaml").read_text().splitlines() if line.startswith("#"))
    printed = capsys.readouterr().out
    for word in ["--data", "--cluster.workers", "--import vitl14.pth", "saveckp_freq = 5", "--cluster.precision"]:
        assert word in comments
        assert word in printed


def test_main__overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "official.yaml").write_text("")
    (tmp_path / "out.yaml").write_text("mine")
    arguments = [str(tmp_path / "official.yaml"), "--gpus", "8", "--out", str(tmp_path / "out.yaml")]
    assert convert.main("", arguments) == 2
    assert (tmp_path / "out.yaml").read_text() == "mine"
    assert "out.yaml: there is something" in capsys.readouterr().err
    assert convert.main("", [*arguments[:1], "--gpus", "0", "--out", str(tmp_path / "new.yaml")]) == 2
    assert "gpus = 0" in capsys.readouterr().err
