"""DINOv2 on your images (Oquab et al. 2023): masked self-distillation with iBOT and KoLeo.

    python recipes/dinov2.py                                        # built-in images, two CPU cores, minutes
    python recipes/dinov2.py --preset cifar --data PATH             # 32-pixel images
    python recipes/dinov2.py --preset vits16 --data PATH            # one GPU
    python recipes/dinov2.py --preset vitl16-short --data PATH --cluster clusters/one_node.yaml
    python recipes/dinov2.py --preset vits16 --data PATH --dry-run  # what it would do, and how long it would take
    ray job submit --working-dir . -- python recipes/dinov2.py

Measured scores stand beside each preset; the way to the loss is main -> train_worker -> training_steps -> DINOv2.forward.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))  # this checkout, also inside a Ray job

from raydino.data.config import DataConfig
from raydino.evals.config import KNNConfig
from raydino.launch.driver import main
from raydino.methods.config import DINOv2Config
from raydino.nn.config import BackboneConfig, HeadConfig
from raydino.recipe import Recipe
from raydino.schedule import constant, cosine
from raydino.train.config import Cadence, OptimConfig
from raydino.views import Crops

# Two CPU cores, generated textures: shows in minutes that everything works and that it learns.
LAPTOP = Recipe(
    name="dinov2-laptop",
    steps=210,
    global_batch=64,
    backbone=BackboneConfig(name="vit_tiny_patch16_224", patch_size=4, width=192, depth=3, heads=3),
    method=DINOv2Config(
        global_crops=Crops(count=2, size=24, scale=(0.4, 1.0), blur=(0.0, 0.5), solarize=(0.0, 0.2)),
        local_crops=Crops(count=2, size=12, scale=(0.1, 0.4), blur=(0.5,)),
        head=HeadConfig(prototypes=256, hidden=256, bottleneck=64, train_gain=True),
        teacher_temperature=constant(0.04),
        teacher_momentum=cosine(0.98, 0.992),
        freeze_last_layer=0,
    ),
    optim=OptimConfig(lr=2.8e-3, warmup=0.1, weight_decay=constant(0.04), betas=(0.9, 0.95)),
    evals={"knn": KNNConfig(bank=2048, queries=1024)},
    cadence=Cadence(log=10, evaluate=0.5, checkpoint=0.5),
)

# CIFAR-sized images. Prototypes: about a tenth of 50k images, so that each stands for several. Not yet measured to the end.
CIFAR = Recipe(
    name="dinov2-cifar",
    steps=20_000,  # about 100 epochs of 50k images
    global_batch=256,
    data=DataConfig(),
    backbone=BackboneConfig(name="vit_tiny_patch16_224", patch_size=4, width=192, depth=6, heads=3, drop_path=0.05),
    method=DINOv2Config(
        global_crops=Crops(
            count=2, size=32, scale=(0.32, 1.0), blur=(0.0,), solarize=(0.0, 0.2)
        ),  # blur erases 32 pixels
        local_crops=Crops(count=4, size=16, scale=(0.05, 0.32), blur=(0.0,)),
        head=HeadConfig(prototypes=4096, hidden=1024, bottleneck=256, train_gain=True),
        teacher_temperature=constant(0.07, warmup=0.3, warmup_from=0.04),
        teacher_momentum=cosine(0.994, 1.0),
    ),
    optim=OptimConfig(lr=1e-3, warmup=0.1, weight_decay=cosine(0.04, 0.2)),
    cadence=Cadence(log=20, evaluate=0.05, checkpoint=0.05),
)

# One GPU, 10k to 1M images of ordinary size. Not yet measured.
VITS16 = Recipe(
    name="dinov2-vits16",
    steps=100_000,
    global_batch=256,
    backbone=BackboneConfig(name="vit_small_patch16_224", patch_size=16, layer_scale=1e-5, drop_path=0.1),
    method=DINOv2Config(head=HeadConfig(prototypes=16_384, train_gain=True), teacher_momentum=cosine(0.994, 1.0)),
    optim=OptimConfig(lr=1e-3, warmup=0.1, weight_decay=cosine(0.04, 0.2)),
    cadence=Cadence(log=50, evaluate=0.05, checkpoint=0.02),
)

# The published short recipe (vitl16_short.yaml): 32 A100, a day, ImageNet-1k k-NN 81.6. Not yet measured here.
VITL16_SHORT = Recipe(
    name="dinov2-vitl16-short",
    steps=125_000,  # 100 "epochs" of 1,250 iterations
    global_batch=2048,
    lanes=32,
    backbone=BackboneConfig(name="vit_large_patch16_224", patch_size=16, layer_scale=1e-5, drop_path=0.3),
    method=DINOv2Config(),
    optim=OptimConfig(lr=4e-3, warmup=0.1, weight_decay=cosine(0.04, 0.4), layer_decay=0.9, patch_embed_lr=0.2),
    cadence=Cadence(log=50, evaluate=12_500, checkpoint=3750),
)

PRESETS = {"laptop": LAPTOP, "cifar": CIFAR, "vits16": VITS16, "vitl16-short": VITL16_SHORT}

if __name__ == "__main__":
    main(LAPTOP, PRESETS, description=__doc__ or "")
