"""Every preset, as data: what was published, with its source, and what we chose for small data, with its reason.

Published presets keep their authors' numbers; lengths are shares of the run, so `--steps` shortens them as a whole.
A score stands beside a preset only if it was measured with this code.
"""

from raydino.evals.config import KNNConfig
from raydino.methods.config import DINOConfig, DINOv2Config, SupervisedConfig
from raydino.nn.config import BackboneConfig, HeadConfig
from raydino.recipe import Recipe
from raydino.schedule import constant, cosine
from raydino.train.config import Cadence, OptimConfig
from raydino.views import Crops

IMAGENET_EPOCH = 1_281_167  # images

# ---------------------------------------------------------------- ours: two CPU cores, 32-pixel images, one GPU

# Generated textures: shows in minutes that everything works and that it learns. Teacher k-NN 0.92, 0.88, 0.88 on seeds 0, 1, 2.
_LAPTOP = Recipe(
    name="dinov2-laptop",
    steps=210,
    global_batch=64,
    backbone=BackboneConfig(name="vit_tiny_patch16_224", patch_size=4, width=192, depth=3, heads=3),
    method=DINOv2Config(
        global_crops=Crops(count=2, size=24, scale=(0.4, 1.0), blur=(0.0, 0.5), solarize=(0.0, 0.2)),
        local_crops=Crops(count=2, size=12, scale=(0.1, 0.4)),
        blur="custom",
        head=HeadConfig(prototypes=256, hidden=256, bottleneck=64, train_gain=True),
        teacher_temperature=constant(0.04),
        teacher_momentum=cosine(0.98, 0.992),
        freeze_last_layer=0,
    ),
    optim=OptimConfig(lr=2.8e-3, warmup=0.1, weight_decay=constant(0.04), betas=(0.9, 0.95)),
    evals={"knn": KNNConfig(bank=2048, queries=1024)},
    cadence=Cadence(log=10, evaluate=0.5, checkpoint=0.5),
)

# 32-pixel images, 10k to 100k of them. Blur would erase what 32 pixels hold.
_CIFAR = Recipe(
    name="dinov2-cifar",
    steps=20_000,  # about 100 epochs of 50k images
    global_batch=256,
    backbone=BackboneConfig(name="vit_tiny_patch16_224", patch_size=4, width=192, depth=6, heads=3, drop_path=0.05),
    method=DINOv2Config(
        global_crops=Crops(count=2, size=32, scale=(0.32, 1.0), blur=(0.0,), solarize=(0.0, 0.2)),
        local_crops=Crops(count=4, size=16, scale=(0.05, 0.32), blur=(0.0,)),
        blur="custom",
        head=HeadConfig(prototypes=4096, hidden=1024, bottleneck=256, train_gain=True),
        teacher_temperature=constant(0.07, warmup=0.3, warmup_from=0.04),
        teacher_momentum=cosine(0.994, 1.0),
    ),
    optim=OptimConfig(lr=1e-3, warmup=0.1, weight_decay=cosine(0.04, 0.2)),
    cadence=Cadence(log=20, evaluate=0.05, checkpoint=0.05),
)

# The same on two CPU cores, for a curve in minutes: larger patches, one epoch of CIFAR-10 at most. Scores in README.md.
_CIFAR_CPU = _LAPTOP.override(
    {
        "name": "dinov2-cifar-cpu",
        "steps": 300,
        "global_batch": 128,
        "backbone": {"patch_size": 8, "depth": 4},
        "method.global_crops": {"size": 32, "blur": (0.0,)},
        "method.local_crops": {"size": 16, "blur": (0.0,)},
        "evals": {"knn": KNNConfig(bank=10_000, queries=2000)},
        "cadence": {"evaluate": 0.25},
    }
)

# One GPU, 100k to 1M images of ordinary size. Not yet measured.
_VITS16 = Recipe(
    name="dinov2-vits16",
    steps=100_000,
    global_batch=256,
    backbone=BackboneConfig(name="vit_small_patch16_224", patch_size=16, layer_scale=1e-5, drop_path=0.1),
    method=DINOv2Config(head=HeadConfig(prototypes=16_384, train_gain=True), teacher_momentum=cosine(0.994, 1.0)),
    optim=OptimConfig(lr=1e-3, warmup=0.1, weight_decay=cosine(0.04, 0.2)),
    cadence=Cadence(log=50, evaluate=0.05, checkpoint=0.02),
)

# ---------------------------------------------------------------- DINOv2 as published (configs/train/*.yaml of the official code)

# 32 A100 for a day, ImageNet-1k: k-NN 81.6. Not measured here. EPOCH_LEN is 1,250 steps: 100 make the run, 10 the warm-up,
# 30 that of the temperature, 1 keeps the last layer still.
_VITL16_SHORT = Recipe(
    name="dinov2-vitl16-short",
    steps=125_000,
    global_batch=2048,
    lanes=32,
    backbone=BackboneConfig(name="vit_large_patch16_224", patch_size=16, layer_scale=1e-5, drop_path=0.3),
    method=DINOv2Config(),
    optim=OptimConfig(lr=4e-3, warmup=0.1, weight_decay=cosine(0.04, 0.4), layer_decay=0.9, patch_embed_lr=0.2),
    cadence=Cadence(log=50, evaluate=12_500, checkpoint=3750),
)

DINOV2 = {
    "laptop": _LAPTOP,
    "cifar": _CIFAR,
    "cifar-cpu": _CIFAR_CPU,
    "vits16": _VITS16,
    "vitl16-short": _VITL16_SHORT,
}

# ---------------------------------------------------------------- DINO

_DINO_LAPTOP = _LAPTOP.override(
    {
        "name": "dino-laptop",
        "method": DINOConfig(
            global_crops=Crops(count=2, size=24, scale=(0.4, 1.0), blur=(0.5, 0.1), solarize=(0.0, 0.2)),
            local_crops=Crops(count=2, size=12, scale=(0.1, 0.4)),
            head=HeadConfig(prototypes=256, hidden=256, bottleneck=64),
            teacher_momentum=cosine(0.98, 0.992),
            freeze_last_layer=0,
            learning_rate_batch="sqrt/1024",
            clip="per_module",
        ),
    }
)
_DINO_CIFAR = _CIFAR.override(
    {
        "name": "dino-cifar",
        "method": DINOConfig(
            global_crops=Crops(count=2, size=32, scale=(0.4, 1.0), blur=(0.0,), solarize=(0.0, 0.2)),
            local_crops=Crops(count=4, size=16, scale=(0.05, 0.4), blur=(0.0,)),
            head=HeadConfig(prototypes=4096, hidden=1024, bottleneck=256),
            teacher_temperature=constant(0.04),
            teacher_momentum=cosine(0.994, 1.0),
        ),
        "optim": OptimConfig(lr=5e-4, warmup=0.1, weight_decay=cosine(0.04, 0.4)),
    }
)
_DINO_CIFAR_CPU = _CIFAR_CPU.override(
    {
        "name": "dino-cifar-cpu",
        "method": DINOConfig(
            global_crops=_CIFAR_CPU.method.global_crops,
            local_crops=_CIFAR_CPU.method.local_crops,
            head=HeadConfig(prototypes=256, hidden=256, bottleneck=64),
            teacher_momentum=cosine(0.98, 0.992),
        ),
        "optim": OptimConfig(lr=5e-4, warmup=0.1, weight_decay=constant(0.04)),
    }
)
# The published "vanilla" ViT-S/16 (defaults of main_dino.py): 8 V100, 1.75 days, ImageNet-1k k-NN 69.3. Not measured here.
_DINO_VITS16 = Recipe(
    name="dino-vits16",
    steps=100 * (IMAGENET_EPOCH // 512),
    global_batch=512,
    backbone=BackboneConfig(name="vit_small_patch16_224", patch_size=16, drop_path=0.1),
    method=DINOConfig(),
    optim=OptimConfig(lr=5e-4, warmup=0.1, weight_decay=cosine(0.04, 0.4)),
    cadence=Cadence(log=50, evaluate=0.05, checkpoint=0.01),
)

DINO = {"laptop": _DINO_LAPTOP, "cifar": _DINO_CIFAR, "cifar-cpu": _DINO_CIFAR_CPU, "vits16": _DINO_VITS16}


# ---------------------------------------------------------------- the supervised twin of each small DINOv2 preset


def _twin(recipe: Recipe) -> Recipe:
    """The same backbone, views, data and budget, trained with labels."""
    views = recipe.views.crops  # with the blur that the method settled on
    method = SupervisedConfig(
        global_crops=views["global"],
        local_crops=views["local"],
        teacher_momentum=recipe.method.teacher_momentum,
        learning_rate_batch=recipe.method.learning_rate_batch,
        clip=recipe.method.clip,
    )
    return recipe.override({"name": recipe.name.replace("dinov2", "supervised"), "method": method})


SUPERVISED = {name: _twin(DINOV2[name]) for name in ("laptop", "cifar", "cifar-cpu", "vits16")}
