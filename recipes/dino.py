"""DINO on your images (Caron et al. 2021): self-distillation with no labels.

    python recipes/dino.py                                # built-in images, two CPU cores, minutes
    python recipes/dino.py --preset cifar --data PATH     # 32-pixel images
    python recipes/dino.py --preset vits16 --data PATH --cluster clusters/one_node.yaml

Measured scores stand beside each preset; the way to the loss is main -> train_worker -> training_steps -> DINO.forward.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))  # this checkout, also inside a Ray job

from raydino.evals.config import KNNConfig
from raydino.launch.driver import main
from raydino.methods.config import DINOConfig
from raydino.nn.config import BackboneConfig, HeadConfig
from raydino.recipe import Recipe
from raydino.schedule import constant, cosine
from raydino.train.config import Cadence, OptimConfig
from raydino.views import Crops

# Two CPU cores, generated textures. DINO without KoLeo and masks learns them several times more slowly than DINOv2.
LAPTOP = Recipe(
    name="dino-laptop",
    steps=210,
    global_batch=64,
    backbone=BackboneConfig(name="vit_tiny_patch16_224", patch_size=4, width=192, depth=3, heads=3),
    method=DINOConfig(
        global_crops=Crops(count=2, size=24, scale=(0.4, 1.0), blur=(0.5, 0.1), solarize=(0.0, 0.2)),
        local_crops=Crops(count=2, size=12, scale=(0.1, 0.4), blur=(0.5,)),
        head=HeadConfig(prototypes=256, hidden=256, bottleneck=64),
        teacher_momentum=cosine(0.98, 0.992),
        freeze_last_layer=0,
        learning_rate_batch="sqrt/1024",
        clip="per_module",
    ),
    optim=OptimConfig(lr=2.8e-3, warmup=0.1, weight_decay=constant(0.04), betas=(0.9, 0.95)),
    evals={"knn": KNNConfig(bank=2048, queries=1024)},
    cadence=Cadence(log=10, evaluate=0.5, checkpoint=0.5),
)

# CIFAR-sized images. Not yet measured to the end.
CIFAR = Recipe(
    name="dino-cifar",
    steps=20_000,  # about 100 epochs of 50k images
    global_batch=256,
    backbone=BackboneConfig(name="vit_tiny_patch16_224", patch_size=4, width=192, depth=6, heads=3, drop_path=0.05),
    method=DINOConfig(
        global_crops=Crops(
            count=2, size=32, scale=(0.4, 1.0), blur=(0.0,), solarize=(0.0, 0.2)
        ),  # blur erases 32 pixels
        local_crops=Crops(count=4, size=16, scale=(0.05, 0.4), blur=(0.0,)),
        head=HeadConfig(prototypes=4096, hidden=1024, bottleneck=256),
        teacher_temperature=constant(0.04),
        teacher_momentum=cosine(0.994, 1.0),
    ),
    optim=OptimConfig(lr=5e-4, warmup=0.1, weight_decay=cosine(0.04, 0.4)),
    cadence=Cadence(log=20, evaluate=0.05, checkpoint=0.05),
)

# The published "vanilla" recipe: 8 GPUs, 1.75 days of V100, ImageNet-1k k-NN 69.3. Not yet measured here.
VITS16 = Recipe(
    name="dino-vits16",
    steps=250_200,  # 100 epochs of 1,281,167 images
    global_batch=512,
    backbone=BackboneConfig(name="vit_small_patch16_224", patch_size=16, drop_path=0.1),
    method=DINOConfig(),
    optim=OptimConfig(lr=5e-4, warmup=0.1, weight_decay=cosine(0.04, 0.4)),
    cadence=Cadence(log=50, evaluate=0.05, checkpoint=0.01),
)

PRESETS = {"laptop": LAPTOP, "cifar": CIFAR, "vits16": VITS16}

if __name__ == "__main__":
    main(LAPTOP, PRESETS, description=__doc__ or "")
