from dataclasses import replace

from raydino.launch.checks.numbers import Facts
from raydino.launch.cluster import ClusterConfig
from raydino.launch.terminal.announce import plan_text, tokens_per_image
from raydino.methods.distillation_config import DistillationConfig, FrozenTeacher
from raydino.recipe import Recipe
from raydino.train.config import InitConfig

FACTS = Facts(images=10_000, classes=10, dropped=16, read_amplification=1.0, parameters=1000, images_per_second=32.0)


def test_plan_text__numbers_worked_out_by_hand():
    # 10,000 images, 16 dropped: 156 steps of 64 an epoch; 1000 steps = 6.41 epochs; 64,000 images at 32/s = 2000 s.
    text = plan_text(Recipe(), ClusterConfig(workers=2, accumulate=4), FACTS, warnings=["mind the gap"])
    for words in (
        Recipe().id,
        "10,000 from builtin, 10 classes",
        "1,000 steps of 64 = 64,000 images = 6.41 epochs",
        "156 steps, 16 images left over",
        "2 workers x 4 micro-batches x 8 images, 8 lanes",
        "100 steps = 10.0% of the run",
        "0.000125 at its peak",  # 5e-4 * sqrt(64 / 1024)
        "690 per image in the student, 394 in the teacher",  # 2 * 197 + 8 * 37 and 2 * 197
        "33 min 20 s",
        "warning  mind the gap",
    ):
        assert words in text, words


def test_plan_text__leaves_out_what_is_unknown():
    unknown = replace(FACTS, parameters=0, images_per_second=0.0, classes=0)
    text = plan_text(Recipe(), ClusterConfig(), unknown, warnings=[])
    assert "memory" not in text
    assert "time " not in text
    assert "no labels" in text


def test_plan_text__says_which_images_and_steps_are_not_for_training():
    text = plan_text(Recipe(), ClusterConfig(), replace(FACTS, held_back=1111), warnings=[], done=153)
    assert "10 classes; 1,111 more are held back for evaluation\n" in text
    assert "resumes  after step 153 of 1,000" in text
    plain = plan_text(Recipe(), ClusterConfig(), FACTS, warnings=[])
    assert "held back" not in plain and "resumes" not in plain


def test_plan_text__says_how_long_crops_are_small():
    recipe = Recipe().override({"method.curriculum": {"length": 0.6}})
    assert "crops of 112 and 48 pixels for the first 600 steps" in plan_text(
        recipe, ClusterConfig(), FACTS, warnings=[]
    )
    assert "pixels" not in plan_text(Recipe(), ClusterConfig(), FACTS, warnings=[])


def test_plan_text__says_what_a_run_begins_with():
    weights = {"init": InitConfig(weights="runs/a", digest="1" * 64, parts="all")}
    phase, cluster = Recipe().override(weights), ClusterConfig()
    assert "begins   with the last state of runs/a (sha256 111111111111…)" in plan_text(
        phase, cluster, FACTS, warnings=[]
    )
    backbone = plan_text(phase.override({"init.parts": "backbone"}), cluster, FACTS, warnings=[])
    assert "with the backbone of runs/a" in backbone and "frozen" not in backbone
    teacher = FrozenTeacher(weights="runs/b", digest="2" * 64)
    distilled = plan_text(Recipe(method=DistillationConfig(teacher=teacher)), cluster, FACTS, warnings=[])
    assert "frozen   teacher of runs/b, vit_small_patch16_224 (sha256 222222222222…)" in distilled
    assert "begins" not in distilled


def test_tokens_per_image__counted_patch_by_patch():
    recipe = Recipe().override({"backbone.registers": 4, "backbone.patch_size": 8, "method.local_crops.count": 3})

    def count(size):
        return len([(y, x) for y in range(0, size, 8) for x in range(0, size, 8)]) + 1 + 4

    assert tokens_per_image(recipe) == (2 * count(224) + 3 * count(96), 2 * count(224))


def test_plan_text__says_that_weights_shorten_the_epoch():
    text = plan_text(Recipe(), ClusterConfig(), replace(FACTS, share=0.25), warnings=[])
    assert "25.0% of those kept, by their weights" in text
    assert "weights" not in plan_text(Recipe(), ClusterConfig(), FACTS, warnings=[])


def test_plan_text__memory_by_its_uses_the_most_first():
    facts = replace(FACTS, memory={"student": 4_000_000, "activations": 50_000_000, "gathered": 0})
    text = plan_text(Recipe(), ClusterConfig(), facts, warnings=[])
    assert "about 54 MB per worker (activations 50 MB, student 4 MB); a checkpoint is 16 kB" in text
    assert "per worker" not in plan_text(Recipe(), ClusterConfig(), FACTS, warnings=[])
